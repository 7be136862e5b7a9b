"""What a run will take, from its config and data alone: steps, time and memory."""
