"""One annotator's stream: which prompt runs next, and which replies wait to be read."""
