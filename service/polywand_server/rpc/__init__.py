"""The gRPC edge: validation, canonical status codes, metrics of calls. No pixels here."""
