"""Which tools there are: what the repository holds, what Triton has loaded of it, and what of that would serve now."""
