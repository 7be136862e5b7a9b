"""Cleaning of whole corpora in three passes: scan, link and write, over fixed units."""
