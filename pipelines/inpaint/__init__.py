"""Stage: fill the holes of images."""
