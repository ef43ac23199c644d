"""Training of the wand network: photos with outlines in, weights out."""
