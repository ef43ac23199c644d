"""Backpropagating refinement (Sofiiuk et al. 2020) of click networks, served without PyTorch."""
