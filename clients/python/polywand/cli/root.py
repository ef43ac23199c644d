"""The command `polywand`, with its subcommands."""

from typing import Any

import click

import polywand
from polywand.cli import printing
from polywand.cli.completion import completion
from polywand.cli.connection import connect, connection_options
from polywand.cli.detect import detect
from polywand.cli.interact import interact
from polywand.cli.listing import models
from polywand.errors import InvalidRequest, PolywandError
from polywand_common.console import Group

EXAMPLES = """\b
Examples:
  polywand models
  polywand interact photo.jpg --positive 200,330 --overlay outline.jpg
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
        hint = ", ".join(f"'--{violation.field}'" for violation in error.violations) or None
        raise click.BadParameter(printing.message(error), ctx, param_hint=hint) from error


for command in (models, interact, detect, completion):
    main.add_command(command)
