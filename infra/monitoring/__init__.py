"""What Prometheus and Grafana show of a cluster."""
