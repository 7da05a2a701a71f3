"""Encoders at other tasks: heads, initialisation, metrics."""
