"""Radiology reports: sections and sentences (reports), WordPiece tokens (tokenizer)."""
