"""Detectors: a whole frame becomes a tensor; boxes and scores become labelled detections in image coordinates."""
