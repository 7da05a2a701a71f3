"""Freeing a store of what nothing needs any more."""
