"""Stage: an encoder as files that other programs load."""
