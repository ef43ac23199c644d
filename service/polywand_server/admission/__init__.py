"""Who may use what only a few may use at once, and how much of what is sent is taken in."""
