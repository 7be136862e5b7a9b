"""`--sweep`: plans, checks, runs and compares the configurations of a grid."""
