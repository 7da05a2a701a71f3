"""The dataset contract, the training stream, and images."""
