"""The entry point of `polywand`: the command line, or how to install it."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line; exit with 1 where click is not installed."""
    if find_spec("click") is None:
        sys.exit("Error: the command line needs click: pip install 'polywand[cli]'")
    from polywand.cli import main as command  # noqa: PLC0415 - without click, this import fails

    command()


if __name__ == "__main__":
    main()
