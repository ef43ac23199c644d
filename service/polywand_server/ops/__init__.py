"""What the people who run the service see of it: metrics, health, the HTTP port, the log."""
