"""Starting and stopping what the jobs run on; no product logic."""
