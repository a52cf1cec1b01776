"""Reads the results of any number of runs: comparison, curves, calibration, subgroups, examples, one page."""
