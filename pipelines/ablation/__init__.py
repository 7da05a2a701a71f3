"""Stage: which mask strategy and which loss are better, with seeds and error bars."""
