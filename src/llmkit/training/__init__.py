"""The training loop and everything around it: schedule, checkpoints, records."""
