"""How a client reaches its server: the address, credentials and metadata, and the options of the gRPC channel."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, TypeAlias, TypeVar

import grpc

from polywand import checks
from polywand.errors import InvalidRequest, Violation
from polywand_common.proxies import authority, direct, is_local, scheme
from polywand_contract.v1 import annotation_pb2 as pb

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
    # Between attempts to connect, gRPC fails all calls: by its own numbers for up to two minutes after a long outage.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Finds a server that was restarted within 2 s; gRPC's own delays between two tries grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.primary_user_agent", f"polywand-python/{version('polywand')}"),
]

MetadataLike: TypeAlias = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]
"""Pairs of a key and a value to send with every call; values of keys that end in -bin are bytes."""

_GIVEN_CHANNEL = "the given channel"  # instead of a target, in error texts
_METADATA_KEY = re.compile(r"[0-9a-z_.-]{1,256}")
_METADATA_VALUE = re.compile(r"[\x20-\x7e]{0,8192}")
_TOKEN = re.compile(r"[\x21-\x7e]{1,8192}")

Channel = TypeVar("Channel", grpc.Channel, grpc.aio.Channel)


@dataclass(frozen=True, slots=True)
class Connection:
    """How a client reaches its server: the checked arguments of `connect`.

    target: the address; of a channel of the caller's own, words for error texts.
    credentials: of the channel to make; None is plain text. metadata: to send with every call.
    """

    target: str
    timeout_s: float
    credentials: grpc.ChannelCredentials | None
    metadata: tuple[tuple[str, str | bytes], ...]

    @property
    def options(self) -> list[tuple[str, Any]]:
        """The options of the channel to make."""
        return [*CHANNEL_OPTIONS, *direct(self.target)]

    def prepared(self, stub: Any) -> Any:
        """Return a stub, synchronous or asyncio, whose calls send the metadata."""
        if self.metadata:
            for method in pb.DESCRIPTOR.services_by_name["AnnotationService"].methods:
                setattr(stub, method.name, partial(getattr(stub, method.name), metadata=self.metadata))
        return stub


def connection(
    target: str | None,
    *,
    timeout: float,
    credentials: grpc.ChannelCredentials | None,
    token: str | None,
    insecure_token: bool,
    metadata: MetadataLike,
    channel: object | None,
) -> Connection:
    """Check the arguments of `polywand.connect`, which describes them. Raises InvalidRequest."""
    if channel is None:
        target = resolve_target(target)
    elif target is not None or credentials is not None or token is not None:
        raise checks.invalid("channel", "it has a target and credentials of its own: give no others, nor a token")
    else:
        target = _GIVEN_CHANNEL
    pairs = _checked_metadata(metadata)
    credentials = checked_credentials(credentials)
    if token is not None:
        _check_token(token)
        if credentials is not None:
            credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
        elif is_local(target) or insecure_token:
            pairs = (*pairs, ("authorization", f"Bearer {token}"))
        else:
            raise checks.invalid(
                "token",
                f"without TLS, anyone between here and {target} can read it: give credentials, such as "
                "grpc.ssl_channel_credentials(), or insecure_token=True where the network is trusted",
            )
    return Connection(target, checked_timeout(timeout), credentials, pairs)


def checked_channel(channel: object | None, kind: type[Channel]) -> Channel | None:
    """Return a caller's own channel. Raises InvalidRequest when it is not of this kind."""
    if channel is not None and not isinstance(channel, kind):
        module = kind.__module__.partition("._")[0]  # grpc, or grpc.aio
        raise checks.invalid("channel", f"a channel of {module} is needed, not {type(channel).__name__}")
    return channel


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


def checked_timeout(timeout_s: Any) -> float:
    """Return a timeout in seconds. Raises InvalidRequest when it is out of its range."""
    return checks.number("timeout", timeout_s, MIN_TIMEOUT_S, MAX_TIMEOUT_S)


def call_timeout(timeout_s: Any, default_s: float) -> float:
    """Return the timeout of one call in seconds; None is the client's."""
    return default_s if timeout_s is None else checked_timeout(timeout_s)


def checked_credentials(credentials: grpc.ChannelCredentials | None) -> grpc.ChannelCredentials | None:
    """Return a channel's credentials. Raises InvalidRequest when they have another type."""
    if credentials is not None and not isinstance(credentials, grpc.ChannelCredentials):
        kind = type(credentials).__name__
        raise checks.invalid("credentials", f"grpc.ChannelCredentials are needed, or None for plain text, not {kind}")
    return credentials


def _check_token(token: Any) -> None:
    """Raise InvalidRequest for what is not a token; the error does not show it."""
    if not isinstance(token, str) or _TOKEN.fullmatch(token) is None:
        raise checks.invalid("token", "a token is a text of printable ASCII without blanks")


def _checked_metadata(metadata: Any) -> tuple[tuple[str, str | bytes], ...]:
    """Return metadata as pairs. Errors name the key; values may be secret."""
    pairs = metadata.items() if isinstance(metadata, Mapping) else metadata
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Iterable):
        raise checks.invalid("metadata", f"pairs of a key and a value are needed, not {type(metadata).__name__}")
    return tuple(map(_checked_pair, pairs))


def _checked_pair(pair: Any) -> tuple[str, str | bytes]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise checks.invalid("metadata", f"a pair of a key and a value is needed, not {type(pair).__name__}")
    key, value = pair
    if not isinstance(key, str) or _METADATA_KEY.fullmatch(key) is None or key.startswith("grpc-"):
        raise checks.invalid(
            "metadata", f"{key!r} is not a key: lower-case letters, digits and _ . - are, but not grpc-…"
        )
    if key.endswith("-bin") and isinstance(value, bytes):
        return key, value
    if not isinstance(value, str) or key.endswith("-bin") or _METADATA_VALUE.fullmatch(value) is None:
        needed = "bytes" if key.endswith("-bin") else "a text of printable ASCII"
        raise checks.invalid("metadata", f"the value of {key!r} must be {needed}")
    return key, value


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
