"""Interactors: a prompt and an image become tensors; logits become a probability map of a region of the image."""
