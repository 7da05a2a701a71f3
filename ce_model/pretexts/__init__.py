"""Sibling pretexts: what an encoder can learn to answer about images instead of filling holes."""
