"""Devices that are there or not: their figures, their compilers, and what was compiled."""
