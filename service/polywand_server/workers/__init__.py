"""Child processes with limits: where work on large or hostile input runs, so that it can be ended at any moment."""
