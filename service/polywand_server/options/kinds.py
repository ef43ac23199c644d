"""The kinds of values that options take."""

from pathlib import Path

import click

MAX_SECONDS = 1e6  # the longest of any time: eleven days

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def names(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    """Split a comma-separated list of names."""
    found = tuple(name.strip() for name in value.split(",")) if value.strip() else ()
    if not all(found):
        raise click.BadParameter("a name in the list is empty")
    return tuple(dict.fromkeys(found))
