"""Trained models at work: batched generation and classification."""
