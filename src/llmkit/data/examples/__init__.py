"""Training examples, and the order in which they form batches."""
