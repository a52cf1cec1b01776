"""The simulated patient: anatomy, projection, radiograph, findings and report."""
