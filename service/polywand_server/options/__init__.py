"""The options of the command `polywand-server`, by subject.

Each module has its OPTIONS, and `take`, which removes their values from those that were given and returns settings.
"""
