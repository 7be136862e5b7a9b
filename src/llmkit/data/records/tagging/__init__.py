"""Texts with a tag for each word: read, checked and split."""
