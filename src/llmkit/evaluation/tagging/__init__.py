"""Metrics of tagged words, and how taggers are measured by them."""
