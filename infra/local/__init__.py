"""A cluster on one machine: `make cluster`, `make cluster-stop`."""
