"""Builders that write chest X-ray sets into one schema, once, as TFDS ArrayRecord."""
