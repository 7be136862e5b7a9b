"""Several runs of one command line: the grid of `--sweep`, and what `merge --train` needs."""
