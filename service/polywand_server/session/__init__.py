"""One annotator's stream: which prompt is worked on next, and what waits to be read."""
