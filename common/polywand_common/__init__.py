"""What the command lines of service, SDK and zoo share: exit codes, printing, and gRPC's proxies."""
