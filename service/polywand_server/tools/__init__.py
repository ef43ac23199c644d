"""Tools: which exist, which are ready, and what Triton has loaded of the repository."""
