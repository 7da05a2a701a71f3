"""Context encoders in plain PyTorch: no files, no clock, no global random state."""
