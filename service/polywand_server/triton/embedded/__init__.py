"""NVIDIA's own tritonserver as a child of the service."""
