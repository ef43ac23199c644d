"""Triton: the client, and NVIDIA's own tritonserver as a child of the service. Nothing else here knows tritonclient."""
