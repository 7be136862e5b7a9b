"""One file for each thing that a model can learn."""
