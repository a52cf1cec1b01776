"""Encoders to and from the layouts that PyTorch users load: NumPy and safetensors only, no torch at run time."""
