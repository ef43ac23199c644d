"""The connection to the server, and the options that make it."""

from collections.abc import Callable, Mapping
from typing import Any

import click
import grpc

import polywand
from polywand import channel
from polywand.cli.params import KeyValue, Text
from polywand_common.console import Number

MAX_TOKEN_BYTES = 8192  # of all metadata, gRPC's default

_OPTIONS = (
    click.option(
        "--target",
        default=channel.DEFAULT_TARGET,
        metavar="HOST:PORT",
        show_envvar=True,
        help="The server.",
    ),
    click.option(
        "--timeout",
        default=channel.TIMEOUT_S,
        type=Number(channel.MIN_TIMEOUT_S, channel.MAX_TIMEOUT_S),
        metavar="SECONDS",
        show_envvar=True,
        help="How long to wait for any one answer.",
    ),
    click.option(
        "--token",
        metavar="TEXT",
        type=Text(MAX_TOKEN_BYTES),
        show_envvar=True,
        help="Sent with every call as `authorization: Bearer TEXT`. Without TLS, to this machine only.",
    ),
    click.option("--insecure-token", is_flag=True, help="Send it to other machines without TLS, too."),
    click.option(
        "--metadata",
        type=KeyValue(),
        multiple=True,
        show_envvar=True,
        help="Sent with every call. Repeatable.",
    ),
    click.option("--tls", is_flag=True, show_envvar=True, help="Use TLS, with the root certificates that gRPC trusts."),
)


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the connection to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def connect(options: Mapping[str, Any]) -> polywand.Client:
    """Make a client from the values of these options. Raises InvalidRequest as `polywand.connect` does."""
    credentials = grpc.ssl_channel_credentials() if options["tls"] else None
    return polywand.connect(
        options["target"],
        timeout=options["timeout"],
        credentials=credentials,
        token=options["token"],
        insecure_token=options["insecure_token"],
        metadata=options["metadata"],
    )
