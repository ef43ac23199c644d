"""The ports: gRPC, HTTP and metrics; what is on each, and with which locks."""

import errno
import ipaddress
import logging
import socket
from collections.abc import Coroutine
from typing import Any

from starlette.requests import Request

from polywand_server.auth.authenticator import Authenticator, require
from polywand_server.config import Settings
from polywand_server.ops import pages
from polywand_server.ops.certificates import CertificateError, Certificates
from polywand_server.ops.descriptors import ConnectionLimits
from polywand_server.ops.health import Health
from polywand_server.ops.http import HttpServer
from polywand_server.ops.triton_metrics import TritonMetrics
from polywand_server.principal import Role
from polywand_server.rpc.server import GrpcServer

log = logging.getLogger(__name__)


class StartError(Exception):
    """The service cannot start; the text says what to do."""


class Ports:
    """The ports of one service; bound when created, they are served by `tasks`.

    connections: how many each may have. certificates: whose files are to be followed; None without TLS.

    Raises:
        StartError: a port is taken, certificates cannot be used, or the ports would be open to other machines.
    """

    def __init__(
        self,
        settings: Settings,
        grpc: GrpcServer,
        health: Health,
        triton_metrics: TritonMetrics | None,
        authenticator: Authenticator,
        connections: ConnectionLimits,
    ) -> None:
        check_doors(settings)
        self.certificates = certificates = _certificates(settings)
        probes = pages.probes(health)
        has_metrics_port = settings.metrics_port is not None
        metrics = [] if has_metrics_port else pages.metrics(triton_metrics, _reader_of_metrics(authenticator))
        app = pages.make_app([*probes, *metrics])
        tls = (lambda: certificates.context) if certificates is not None else lambda: None
        self._grpc = grpc
        self._http = {_listen(settings.host, settings.http_port, "http"): HttpServer(app, connections.http, tls)}
        self._texts = [
            f"gRPC on {_bind(grpc, settings, certificates)}",
            f"HTTP on {_address(settings.host, next(iter(self._http)))}",
        ]
        if settings.metrics_port is not None:
            host = settings.metrics_host or settings.host
            listener = _listen(host, settings.metrics_port, "metrics")
            self._http[listener] = HttpServer(
                pages.make_app([*probes, *pages.metrics(triton_metrics)]), connections.http
            )
            self._texts.append(f"metrics on {_address(host, listener)}")

    def __str__(self) -> str:
        return ", ".join(self._texts)

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """Return what serves them; `stop` ends it."""
        return [server.serve_on(listener) for listener, server in self._http.items()]

    def stop(self) -> None:
        """Serve HTTP no more."""
        for server in self._http.values():
            server.should_exit = True


def _reader_of_metrics(authenticator: Authenticator) -> pages.Admit:
    """Admit whoever may read metrics."""

    async def admit(request: Request) -> None:
        names = request.state.certificate_names
        principal = await authenticator.authenticate(request.headers.getlist("authorization"), names)
        require(principal, Role.METRICS)

    return admit


def check_doors(settings: Settings) -> None:
    """Refuse to serve other machines with neither TLS nor tokens, unless it is said to be wanted. Raises StartError."""
    if _is_loopback(settings.host):
        return
    if settings.tls is None and settings.access.is_open:
        if not settings.insecure:
            raise StartError(
                f"--host {settings.host} would serve other machines with neither TLS nor tokens: give --tls-cert and "
                "--tls-key, or --principals or --jwks, or --insecure if whoever reaches the ports may use them"
            )
        log.warning("neither TLS nor tokens: whoever reaches %s may use the service", settings.host)
    elif settings.tls is None:
        log.warning("tokens without TLS: whoever is on the way to %s can read them", settings.host)
    elif settings.access.is_open and settings.tls.client_roots is None:
        log.warning("neither tokens nor clients' certificates: whoever reaches %s may use the service", settings.host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _certificates(settings: Settings) -> Certificates | None:
    try:
        return Certificates(settings.tls) if settings.tls is not None else None
    except CertificateError as error:
        raise StartError(str(error)) from error


def _bind(server: GrpcServer, settings: Settings, certificates: Certificates | None) -> str:
    """Bind the gRPC server; return its address. Raises StartError."""
    host = _in_url(settings.host)
    try:
        credentials = certificates.credentials() if certificates is not None else None
        return f"{host}:{server.bind(f'{host}:{settings.grpc_port}', credentials)}"
    except RuntimeError as error:
        text = f"cannot listen on {host}:{settings.grpc_port} (is it in use?): choose another --grpc-port"
        raise StartError(text) from error


def _listen(host: str, port: int, what: str) -> socket.socket:
    """what: of --WHAT-port."""
    is_ipv6 = ":" in host
    try:
        # As gRPC does: on :: for IPv4 too.
        return socket.create_server(
            (host, port),
            family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
            dualstack_ipv6=is_ipv6 and socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        of_host = "--metrics-host" if what == "metrics" else "--host"
        option = f"--{what}-port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else of_host
        raise StartError(
            f"cannot listen on {_in_url(host)}:{port} ({error.strerror}): choose another {option}"
        ) from error


def _address(host: str, listener: socket.socket) -> str:
    return f"{_in_url(host)}:{listener.getsockname()[1]}"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
