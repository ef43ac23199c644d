"""The command `polywand`: its subcommands, and the connection that they share."""

from typing import Any

import click
import grpc

import polywand
from polywand import channel
from polywand.cli import printing
from polywand.cli.detect import detect
from polywand.cli.interact import interact
from polywand.cli.listing import models
from polywand.errors import InvalidRequest, PolywandError
from polywand_common.console import Group, Number


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
@click.option("--target", default=channel.DEFAULT_TARGET, show_envvar=True, help="The server, as host:port.")
@click.option(
    "--timeout",
    default=channel.TIMEOUT_S,
    type=Number(channel.MIN_TIMEOUT_S, channel.MAX_TIMEOUT_S),
    show_envvar=True,
    help="Seconds to wait for any one answer.",
)
@click.option("--tls", is_flag=True, show_envvar=True, help="Use TLS, with the root certificates that gRPC trusts.")
@click.pass_context
def main(ctx: click.Context, target: str, timeout: float, tls: bool) -> None:
    """Annotate images with a Polywand server: clicks in, polygons out.

    Coordinates are image pixels, x to the right, y down, pixel corners at integers. IMAGE may be - for standard input.
    Every option can also be set by an environment variable: POLYWAND_TARGET, POLYWAND_INTERACT_MODEL,
    POLYWAND_DETECT_JSON and so on; semicolons separate the values of a repeatable option. Exit codes: 1 when anything
    failed, 2 when the command is wrong.
    """
    credentials = grpc.ssl_channel_credentials() if tls else None
    try:
        ctx.obj = ctx.with_resource(polywand.connect(target, timeout=timeout, credentials=credentials))
    except InvalidRequest as error:
        raise click.BadParameter(printing.message(error), ctx, param_hint="'--target'") from error


for command in (models, interact, detect):
    main.add_command(command)
