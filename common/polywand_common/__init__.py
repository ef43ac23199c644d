"""What the command lines of service, SDK and zoo share: how they end, what they print, which proxies gRPC passes."""
