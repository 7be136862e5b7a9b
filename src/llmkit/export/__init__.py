"""What becomes of a finished model: its card."""
