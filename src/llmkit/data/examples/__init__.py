"""What batches are made of, and in which order."""
