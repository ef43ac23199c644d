"""Ingress: a limit for the bytes of incomplete messages, of all connections together.

gRPC buffers a message until it is complete, and does not tell how much it buffers. The kernel counts the bytes that
each connection has received, and this module counts the bytes of complete messages: the difference is incomplete.
"""

import asyncio
import ipaddress
import logging
import os
import socket
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import unquote

from polywand_server.caller import current
from polywand_server.config import MEBIBYTE
from polywand_server.errors import QuotaError
from polywand_server.rpc.endings import Ending

POLL_SECONDS = 0.5
RETRY_SECONDS = 1.0
TEXT = "too many bytes of incomplete messages, most of them on this connection: send one message after another"
# Bytes on the wire beyond those of a message and of a call: frames, headers, window updates.
MESSAGE_OVERHEAD_BYTES = 256
CALL_OVERHEAD_BYTES = 4096
# And as a share of all bytes: frame headers, TLS records.
OVERHEAD_SHARE = 0.01
# The field tcpi_bytes_received of struct tcp_info in linux/tcp.h.
_TCP_INFO_BYTES = 256
_BYTES_RECEIVED_AT = 128

_log = logging.getLogger(__name__)

# The remote address and port of a connection.
Peer = tuple[str, int]


class Ingress:
    """Ends the calls of the connection with the most incomplete bytes, when all together exceed most_bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._complete: Counter[str] = Counter()
        self._calls: defaultdict[str, set[Ending]] = defaultdict(set)

    @contextmanager
    def call(self, end: Ending) -> Iterator[None]:
        """Register the current call, which `end` ends, until the block ends."""
        client = current().client
        self._calls[client].add(end)
        self._complete[client] += CALL_OVERHEAD_BYTES
        try:
            yield
        finally:
            self._calls[client].discard(end)

    def handed_over(self, nbytes: int) -> None:
        """Count a complete message of the current call's connection."""
        self._complete[current().client] += nbytes + MESSAGE_OVERHEAD_BYTES

    async def run(self) -> None:
        """Check the limit periodically until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if self._calls:
                self._check(await asyncio.to_thread(received_bytes))

    def _check(self, received: dict[Peer, int]) -> None:
        incomplete: dict[str, float] = {}
        for client in list(self._calls):
            nbytes = received.get(_peer(client))
            if nbytes is None and not self._calls[client]:
                del self._calls[client], self._complete[client]  # the connection is closed
            elif nbytes is not None:
                incomplete[client] = nbytes * (1 - OVERHEAD_SHARE) - self._complete[client]
        total = sum(part for part in incomplete.values() if part > 0)
        for client, part in sorted(incomplete.items(), key=lambda item: -item[1]):
            if total <= self._most:
                return
            total -= part
            _log.warning(
                "incomplete messages take %d of %d MiB: ending the calls of %s, which has %d MiB of them",
                round((total + part) / MEBIBYTE),
                self._most // MEBIBYTE,
                client,
                round(part / MEBIBYTE),
            )
            for end in [*self._calls[client]]:
                end(QuotaError("images that wait", TEXT, RETRY_SECONDS))
            self._complete[client] += int(part)  # gRPC drops it with the calls


def received_bytes() -> dict[Peer, int]:
    """Return the bytes that each TCP connection of this process has received so far, by its remote end."""
    received = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError, struct.error, ValueError):
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                    host, port = connection.getpeername()[:2]
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
                    received[_plain(host), port] = int(struct.unpack_from("=Q", info, _BYTES_RECEIVED_AT)[0])
    return received


def _peer(client: str) -> Peer:
    """Parse gRPC's name of a connection: "ipv4:127.0.0.1:50123", "ipv6:%5B::1%5D:50123"."""
    host, _, port = unquote(client).partition(":")[2].rpartition(":")
    return (_plain(host.strip("[]")), int(port)) if port.isdecimal() else ("", 0)


def _plain(host: str) -> str:
    """Return an address in its plain form: without a zone, and an IPv4-mapped one as IPv4."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
