"""What a step costs and how fast it is, beside the device's peak and PyTorch."""
