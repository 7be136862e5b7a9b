"""The one training loop, and all that a run is: schedule, checkpoints, records."""
