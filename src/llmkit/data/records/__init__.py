"""Rows to labels, conversations and pairs, with their checks and splits."""
