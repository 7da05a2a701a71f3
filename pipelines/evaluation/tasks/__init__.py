"""One file per task of the evaluation."""
