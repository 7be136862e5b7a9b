"""Progress on a terminal: lines that fit it, and the display of a running training."""
