"""Child processes with limits, for work on large or hostile input; they can be killed at any moment."""
