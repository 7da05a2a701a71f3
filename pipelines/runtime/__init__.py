"""Ray, progress, threads and memory: what every stage runs on."""
