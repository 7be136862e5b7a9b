"""Processes, devices, signals and failures."""
