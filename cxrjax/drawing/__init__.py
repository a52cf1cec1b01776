"""How figures look, and the sheet of what a network sees; knows no method, set or model."""
