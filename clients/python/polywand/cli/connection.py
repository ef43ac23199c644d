"""The connection to the server, and the options that make it."""

import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import grpc

import polywand
from polywand import channel
from polywand.cli.params import KeyValue, Text
from polywand_common.console import Number

MAX_TOKEN_BYTES = 8192  # of all metadata, gRPC's default

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

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
    click.option(
        "--tls-ca", type=_FILE, show_envvar=True, help="PEM root certificates to trust instead. Implies --tls."
    ),
    # Not POLYWAND_TLS_CERT and POLYWAND_TLS_KEY: beside a server, these name the files of its own port.
    click.option(
        "--tls-cert",
        type=_FILE,
        envvar="POLYWAND_CLIENT_CERT",
        allow_from_autoenv=False,
        show_envvar=True,
        help="PEM certificate chain of this client, for mutual TLS. Implies --tls.",
    ),
    click.option(
        "--tls-key",
        type=_FILE,
        envvar="POLYWAND_CLIENT_KEY",
        allow_from_autoenv=False,
        show_envvar=True,
        help="PEM private key of it, without a password.",
    ),
)


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the connection to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def connect(options: Mapping[str, Any]) -> polywand.Client:
    """Make a client from the values of these options.

    Raises:
        InvalidRequest: as `polywand.connect` does.
        click.UsageError: files of TLS are missing or cannot be used.
    """
    return polywand.connect(
        options["target"],
        timeout=options["timeout"],
        credentials=_credentials(options),
        token=options["token"],
        insecure_token=options["insecure_token"],
        metadata=options["metadata"],
    )


def _credentials(options: Mapping[str, Any]) -> grpc.ChannelCredentials | None:
    authorities, certificate, key = (options[f"tls_{part}"] for part in ("ca", "cert", "key"))
    if (certificate is None) != (key is None):
        raise click.UsageError("--tls-cert and --tls-key belong together: give both or none.")
    if not options["tls"] and authorities is None and certificate is None:
        return None
    # gRPC would only fail each handshake.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authorities is not None:
        _check(
            "--tls-ca", f"'{authorities}' has no PEM certificate", lambda: context.load_verify_locations(authorities)
        )
    if certificate is not None:
        text = f"'{certificate}' and '{key}' are not a PEM certificate and its private key without a password"
        _check("--tls-cert' / '--tls-key", text, lambda: context.load_cert_chain(certificate, key, password=""))
    return grpc.ssl_channel_credentials(*(path and path.read_bytes() for path in (authorities, key, certificate)))


def _check(option: str, text: str, load: Callable[[], object]) -> None:
    try:
        load()
    except (ssl.SSLError, ValueError) as error:
        raise click.BadParameter(f"{text}.", param_hint=f"'{option}'") from error
