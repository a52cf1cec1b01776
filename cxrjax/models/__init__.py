"""Flax Linen modules. No losses, no devices, no data."""
