"""Losses as pure functions on global arrays: no gather, no rank, no axis name."""
