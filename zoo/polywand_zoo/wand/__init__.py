"""The wand: a compact interactive segmenter of our own; its network, its weights and its export."""
