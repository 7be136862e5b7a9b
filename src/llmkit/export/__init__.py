"""What becomes of a finished model: its card, and its way to the hub."""
