"""Ingress: what connections have sent of messages that are not whole yet, kept within a bound for all together.

gRPC hands a message over when all of it has come; until then it holds what has come, and nobody can ask how much that
is. But the kernel knows what each connection has received, and we know what whole messages were handed over: the
difference is what is on its way.
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
TEXT = "too much has come of messages that are not whole, and most of it on this connection: send one after another"
# Of a message and of a call, beyond their own bytes: frames, headers, window updates.
MESSAGE_OVERHEAD_BYTES = 256
CALL_OVERHEAD_BYTES = 4096
# And of all that comes: frames' heads, records of TLS.
OVERHEAD_SHARE = 0.01
# Of struct tcp_info in linux/tcp.h: tcpi_bytes_received.
_TCP_INFO_BYTES = 256
_BYTES_RECEIVED_AT = 128

_log = logging.getLogger(__name__)

# Address and port of a connection's other end.
Peer = tuple[str, int]


class Ingress:
    """Ends the calls of the connection that has most on its way, when all together have more than most_bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._handed_over: Counter[str] = Counter()
        self._calls: defaultdict[str, set[Ending]] = defaultdict(set)

    @contextmanager
    def call(self, end: Ending) -> Iterator[None]:
        """Know how to end the current call, until the block ends."""
        client = current().client
        self._calls[client].add(end)
        self._handed_over[client] += CALL_OVERHEAD_BYTES
        try:
            yield
        finally:
            self._calls[client].discard(end)

    def handed_over(self, nbytes: int) -> None:
        """Count a whole message of the current call's connection."""
        self._handed_over[current().client] += nbytes + MESSAGE_OVERHEAD_BYTES

    async def run(self) -> None:
        """Look at what has come until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if self._calls:
                self._check(await asyncio.to_thread(received_bytes))

    def _check(self, received: dict[Peer, int]) -> None:
        on_the_way: dict[str, float] = {}
        for client in list(self._calls):
            nbytes = received.get(_peer(client))
            if nbytes is None and not self._calls[client]:
                del self._calls[client], self._handed_over[client]  # it has gone
            elif nbytes is not None:
                on_the_way[client] = nbytes * (1 - OVERHEAD_SHARE) - self._handed_over[client]
        total = sum(part for part in on_the_way.values() if part > 0)
        for client, part in sorted(on_the_way.items(), key=lambda item: -item[1]):
            if total <= self._most:
                return
            total -= part
            _log.warning(
                "messages that are not whole take %d of %d MiB: ending the calls of %s, which has %d MiB of them",
                *(round((total + part) / MEBIBYTE), self._most // MEBIBYTE, client, round(part / MEBIBYTE)),
            )
            for end in [*self._calls[client]]:
                end(QuotaError("images that wait", TEXT, RETRY_SECONDS))
            self._handed_over[client] += int(part)  # it is let go of


def received_bytes() -> dict[Peer, int]:
    """What each TCP connection of this process has received so far, by its other end."""
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
    """Read gRPC's name of a connection: "ipv4:127.0.0.1:50123", "ipv6:%5B::1%5D:50123"."""
    host, _, port = unquote(client).partition(":")[2].rpartition(":")
    return (_plain(host.strip("[]")), int(port)) if port.isdecimal() else ("", 0)


def _plain(host: str) -> str:
    """An address as text, one that is IPv4 in IPv6's clothes as IPv4."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
