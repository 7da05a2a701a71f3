"""The container image and the lock that it is built from."""
