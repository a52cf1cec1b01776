"""Encoders of reports that are trained on a set's own, and how alike reports are."""
