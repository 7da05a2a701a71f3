"""Entry points: each parses a config and runs one stage or chain."""
