"""The kinds of values that options take."""

from pathlib import Path

import click

from polywand_server.ops.triton_metrics import check_url

MAX_SECONDS = 1e6  # the longest of any time: eleven days

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def names(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    """Split a comma-separated list of names."""
    found = tuple(name.strip() for name in value.split(",")) if value.strip() else ()
    if not all(found):
        raise click.BadParameter("a name in the list is empty")
    return tuple(dict.fromkeys(found))


def metrics_url(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """Check the URL of a Triton's metrics."""
    try:
        if value is not None:
            check_url(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return value
