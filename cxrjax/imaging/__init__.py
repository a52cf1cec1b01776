"""Pixel readers: bytes on disk to one grey picture and a record of what was done to it."""
