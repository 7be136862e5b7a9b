"""Preference tuning: of two responses to a prompt, one is preferred."""
