"""Entry points of the three commands. Where an extra is not installed, they say so in one line and exit with 1."""

import sys
from importlib import import_module
from typing import NoReturn


def polywand() -> NoReturn:
    """Run `polywand`."""
    _run("polywand", "polywand.cli", "cli")


def server() -> NoReturn:
    """Run `polywand-server`."""
    _run("polywand-server", "polywand_server.cli", "server")


def zoo() -> NoReturn:
    """Run `polywand-zoo`."""
    _run("polywand-zoo", "polywand_zoo.cli", "zoo")


def _run(command: str, module: str, extra: str) -> NoReturn:
    try:
        main = import_module(module).main
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("polywand"):
            raise  # a bug, not an extra
        sys.exit(f"Error: {command} needs {error.name.partition('.')[0]}: pip install 'polywand[{extra}]'")
    sys.exit(main(prog_name=command))
