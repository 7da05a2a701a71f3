"""Stage: pretraining on Ray Train."""
