"""`--sweep`: the configurations of a grid, their checks, their runs and what comes of them."""
