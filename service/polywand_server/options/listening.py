"""Options of the ports: where they are, and who may come in."""

from typing import Any

import click

from polywand_server.config import Access, ServerTls, Settings
from polywand_server.options.kinds import FILE

_DEFAULTS = Settings()

OPTIONS = (
    click.option(
        "--host",
        default=_DEFAULTS.host,
        show_envvar=True,
        help="Address to listen on; 0.0.0.0 for all of IPv4, :: for IPv6 too.",
    ),
    click.option(
        "--grpc-port",
        default=_DEFAULTS.grpc_port,
        type=click.IntRange(0, 65535),
        show_envvar=True,
        help="Port of the annotation service, gRPC health and reflection. 0: any free port; the log says which.",
    ),
    click.option(
        "--http-port",
        default=_DEFAULTS.http_port,
        type=click.IntRange(0, 65535),
        show_envvar=True,
        help="Port of /metrics, /livez and /readyz. 0: any free port; the log says which.",
    ),
    click.option(
        "--metrics-port",
        type=click.IntRange(0, 65535),
        show_envvar=True,
        help="Port of its own for /metrics, /livez and /readyz, without TLS and tokens; /metrics is on no other port "
        "then. 0: any free port; the log says which. Default: they are on the HTTP port.",
    ),
    click.option(
        "--metrics-host",
        show_envvar=True,
        help="Address of the metrics port. Default: that of --host.",
    ),
    click.option(
        "--tls-cert",
        type=FILE,
        show_envvar=True,
        help="PEM certificate chain of both ports; read again when it changes.",
    ),
    click.option("--tls-key", type=FILE, show_envvar=True, help="PEM private key of it."),
    click.option(
        "--tls-client-ca",
        type=FILE,
        show_envvar=True,
        help="PEM root certificates: clients must have a certificate of one of them (mutual TLS).",
    ),
    click.option(
        "--principals",
        type=FILE,
        show_envvar=True,
        help="TOML file of those who may call: names, hashes of tokens, roles and quotas; read again when it changes.",
    ),
    click.option(
        "--jwks",
        show_envvar=True,
        help="File or https URL of the keys (JWKS) whose JSON Web Tokens are accepted.",
    ),
    click.option("--jwt-issuer", show_envvar=True, help="The issuer (iss) that these tokens must have."),
    click.option("--jwt-audience", show_envvar=True, help="The audience (aud) that these tokens must have."),
    click.option(
        "--insecure",
        is_flag=True,
        show_envvar=True,
        help="Serve other machines with neither TLS nor tokens: whoever reaches the ports may use them.",
    ),
    click.option(
        "--reflection/--no-reflection",
        default=True,
        show_envvar=True,
        help="Describe the contract to clients such as grpcurl (gRPC reflection).",
    ),
)


def take(given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of these options.

    Raises:
        click.UsageError: options do not go together.
    """
    certificate, key, client_ca = (given.pop(f"tls_{part}") for part in ("cert", "key", "client_ca"))
    if (key is None) != (certificate is None):
        raise click.UsageError("--tls-cert and --tls-key belong together: give both or none")
    if client_ca is not None and certificate is None:
        raise click.UsageError("--tls-client-ca needs --tls-cert and --tls-key")
    jwt = tuple(given.pop(name) for name in ("jwks", "jwt_issuer", "jwt_audience"))
    if jwt[0] is None and any(jwt):
        raise click.UsageError("--jwt-issuer and --jwt-audience need --jwks")
    names = ("host", "grpc_port", "http_port", "metrics_host", "metrics_port", "insecure", "reflection")
    return {
        "tls": ServerTls(certificate, key, client_ca) if certificate else None,
        "access": Access(given.pop("principals"), *jwt),
        **{name: given.pop(name) for name in names},
    }
