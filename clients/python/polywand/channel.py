"""The server's address, and the options of the gRPC channel."""

import os
from typing import Any

import grpc

from polywand import checks
from polywand.errors import InvalidRequest, Violation
from polywand_common.proxies import authority, direct, scheme

DEFAULT_TARGET = "localhost:50051"
TARGET_VARIABLE = "POLYWAND_TARGET"
TIMEOUT_S = 30.0
MAX_TARGET_BYTES = 4096
MIN_TIMEOUT_S, MAX_TIMEOUT_S = 0.001, 1e6  # eleven days: locks accept not much more

MAX_SEND_BYTES = 256 << 20  # more than any image that a server accepts; its error names its own limit
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # polygons at tolerance 0 and masks may be large
    ("grpc.max_send_message_length", MAX_SEND_BYTES),
    # Detects a lost server within 40 s, and keeps idle connections through NATs open.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]


def resolve_target(target: str | None) -> str:
    """Return `target`, else the value of the environment variable POLYWAND_TARGET, else "localhost:50051".

    Raises InvalidRequest when it is neither host:port nor a gRPC target of another scheme.
    """
    if target is None:
        target = os.environ.get(TARGET_VARIABLE) or DEFAULT_TARGET
    problem = _problem(checks.text("target", target, MAX_TARGET_BYTES))
    if problem:
        raise InvalidRequest(
            f"{target!r} is not a target: {problem}. A target is host:port, such as {DEFAULT_TARGET}.",
            grpc.StatusCode.INVALID_ARGUMENT,
            [Violation("target", problem)],
        )
    return target


def checked_timeout(timeout_s: float) -> float:
    """Return a timeout in seconds. Raises InvalidRequest when it is out of its range."""
    return checks.number("timeout", timeout_s, MIN_TIMEOUT_S, MAX_TIMEOUT_S)


def options(target: str) -> list[tuple[str, Any]]:
    """Return the channel options for a target."""
    return [*CHANNEL_OPTIONS, *direct(target)]


def checked_credentials(credentials: grpc.ChannelCredentials | None) -> grpc.ChannelCredentials | None:
    """Return a channel's credentials. Raises InvalidRequest when they have another type."""
    if credentials is not None and not isinstance(credentials, grpc.ChannelCredentials):
        kind = type(credentials).__name__
        raise checks.invalid("credentials", f"grpc.ChannelCredentials are needed, or None for plain text, not {kind}")
    return credentials


def _problem(target: str) -> str:
    """Return what is wrong with a target, or "". Only gRPC can check targets of schemes other than dns."""
    if not target:
        return "it is empty"
    if scheme(target) not in ("", "dns"):
        return ""
    if not target.isprintable() or " " in target or not target.isascii():
        return "it contains blanks, or characters that host names do not have"
    if "://" in target and not scheme(target):
        return "it is a URL (TLS is an option of its own: --tls, credentials=)"
    return _address_problem(authority(target))


def _address_problem(address: str) -> str:
    if "/" in address or "@" in address:
        return "it contains a path or a user name"
    host, colon, port = address.rpartition(":")
    if not colon or (address.startswith("[") and not host.endswith("]")):
        return "it has no port"
    if not host or host == "[]":
        return "it has no host"
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        return "an IPv6 address needs brackets: [::1]:50051"
    if not port.isdecimal() or not 0 < int(port) < 65536:
        return f"its port {port!r} is not a number from 1 to 65535"
    return ""
