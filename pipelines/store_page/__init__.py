"""`index.html` of a store: what was trained, prepared, measured and compared, newest first."""
