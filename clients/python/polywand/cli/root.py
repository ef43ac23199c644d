"""The command `polywand`, with its subcommands."""

from typing import Any

import click

import polywand
from polywand.cli import printing
from polywand.cli.completion import completion
from polywand.cli.connection import connect, connection_options
from polywand.cli.detect import detect
from polywand.cli.interact import interact
from polywand.cli.listing import info, models
from polywand.cli.segment import segment
from polywand.errors import InvalidRequest, PolywandError
from polywand_common.console import Group

EXAMPLES = """\b
Examples:
  polywand models
  polywand interact photo.jpg --positive 200,330 --overlay outline.jpg
  polywand segment photo.jpg --box 20,30,180,240 --box 200,40,260,90 --json
  polywand detect *.jpg --json > found.jsonl
"""


class _Group(Group):
    """Turns PolywandError into one sentence and exit code 1."""

    catches_signals = True

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PolywandError as error:
            raise click.ClickException(printing.message(error)) from error


@click.group(
    cls=_Group,
    epilog=EXAMPLES,
    context_settings={
        "auto_envvar_prefix": "POLYWAND",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
        "show_default": True,
    },
)
@click.version_option(
    polywand.__version__, prog_name="polywand", message="%(prog)s %(version)s", allow_from_autoenv=False
)
@connection_options
@click.pass_context
def main(ctx: click.Context, /, **options: Any) -> None:
    """Annotate images with a Polywand server: clicks in, polygons out.

    IMAGE is a file, or - for standard input. Coordinates are image pixels, x to the right, y down, pixel corners at
    integers.

    Every option can also be set by an environment variable: POLYWAND_TARGET, POLYWAND_INTERACT_MODEL,
    POLYWAND_DETECT_JSON and so on; semicolons separate the values of a repeatable option.

    Exit codes: 0 success, 1 something failed, 2 the command is wrong.
    """
    try:
        ctx.obj = ctx.with_resource(connect(options))
    except InvalidRequest as error:
        raise _bad_option(error, ctx) from error


def _bad_option(error: InvalidRequest, ctx: click.Context) -> click.BadParameter:
    """Return an invalid argument of the connection as the error of its option."""
    fields = [violation.field for violation in error.violations]
    if fields == ["token"] and "TLS" in str(error):
        text = "Without TLS, anyone on the way can read it: add --tls, or --insecure-token if the network is trusted."
    else:
        text = printing.message(error).removeprefix(f"{fields[0]}: " if fields else "")
    return click.BadParameter(text, ctx, param_hint=" / ".join(f"'--{field}'" for field in fields) or None)


for command in (info, models, segment, interact, detect, completion):
    main.add_command(command)
