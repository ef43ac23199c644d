"""`polywand` on the command line; needs the extra `cli`. `polywand.cli.main` is the command."""

from polywand.cli.root import main

__all__ = ["main"]
