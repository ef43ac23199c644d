"""The kinds of values that options take."""

from pathlib import Path
from urllib.parse import urlsplit

import click

from polywand_server.ops.triton_metrics import check_url

MAX_SECONDS = 1e6  # the longest of any time: eleven days

# Of the programs that this one calls.
SCHEMES = ("http", "https")

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def names(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    """Split a comma-separated list of names."""
    found = tuple(name.strip() for name in value.split(",")) if value.strip() else ()
    if not all(found):
        raise click.BadParameter("a name in the list is empty")
    return tuple(dict.fromkeys(found))


def url(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """Check the base URL of a server, where there is one."""
    if value is None:
        return None
    try:
        parts = urlsplit(value)
        is_right = parts.scheme in SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_right = False
    if not is_right or parts.query or parts.fragment:
        raise click.BadParameter(f"'{value}' is not a URL such as http://host:4318")
    return value


def metrics_url(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """Check the URL of a Triton's metrics."""
    try:
        if value is not None:
            check_url(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return value
