"""Turns: fair shares of what only a few may use at once, over clients first, then over each client's streams."""

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from polywand_server.errors import QuotaError
from polywand_server.requester import Requester, current

# A client that had a turn so short a time ago counts as active: the others leave it its share.
ACTIVE_SECONDS = 1.0


class Line:
    """Waiters in fair order: clients take turns, each one's streams take turns, and a stream's stand in line."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, OrderedDict[int, deque[asyncio.Future[None]]]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def clients(self) -> list[str]:
        """Those that wait, the next one first."""
        return list(self._clients)

    def count(self, client: str) -> int:
        """How many of a client's wait."""
        return sum(map(len, self._clients.get(client, {}).values()))

    def push(self, requester: Requester, waiter: "asyncio.Future[None]") -> None:
        """Stand in line."""
        streams = self._clients.setdefault(requester.client, OrderedDict())
        streams.setdefault(requester.stream, deque()).append(waiter)
        self._length += 1

    def remove(self, requester: Requester, waiter: "asyncio.Future[None]") -> None:
        """Leave the line, if it still stands in it."""
        streams = self._clients.get(requester.client, OrderedDict())
        waiters = streams.get(requester.stream, deque())
        if waiter not in waiters:
            return
        waiters.remove(waiter)
        self._length -= 1
        if not waiters:
            del streams[requester.stream]
        if not streams:
            del self._clients[requester.client]

    def pop(self, client: str) -> "asyncio.Future[None]":
        """Take the next one of a client's; the client goes to the end of the line."""
        streams = self._clients[client]
        stream, waiters = next(iter(streams.items()))
        waiter = waiters.popleft()
        self._length -= 1
        streams.move_to_end(stream)
        self._clients.move_to_end(client)
        if not waiters:
            del streams[stream]
        if not streams:
            del self._clients[client]
        return waiter


class Turns:
    """Lets `capacity` in at once.

    Where several clients are active, none has more than its share, and each has one. most_waiting: longer than that the
    line does not grow; None is no limit. what: is waited for, in words, for errors.
    """

    def __init__(self, capacity: int, most_waiting: int | None = None, what: str = "turns") -> None:
        self._capacity = capacity
        self._most_waiting = most_waiting
        self._what = what
        self._line = Line()
        self._held: Counter[str] = Counter()
        self._last_turn: dict[str, float] = {}

    @property
    def waiting(self) -> int:
        """How many stand in line."""
        return len(self._line)

    @property
    def in_use(self) -> int:
        """How many turns are held."""
        return self._held.total()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and hold it until the block ends.

        Raises:
            QuotaError: the line is full, or this client has its share of it.
        """
        requester = current()
        await self._acquire(requester)
        try:
            yield
        finally:
            self._release(requester.client)

    async def _acquire(self, requester: Requester) -> None:
        client = requester.client
        if (
            self.in_use < self._capacity
            and client not in self._line.clients
            and self._held[client] < self._share(client)
        ):
            self._take(client)
            return
        self._check_line(client)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.push(requester, waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._release(client)
            else:
                self._line.remove(requester, waiter)
            raise

    def _check_line(self, client: str) -> None:
        """Refuse who would make the line too long: of a client that waits for more than others do, the next one."""
        most = self._most_waiting
        if most is None:
            return
        share = max(1, most // len({client, *self._line.clients}))
        if self._line.count(client) >= share:
            raise QuotaError(
                self._what, f"{len(self._line)} wait for {self._what} already, of at most {most}: try again later", 1.0
            )

    def _take(self, client: str) -> None:
        self._held[client] += 1
        self._last_turn[client] = time.monotonic()

    def _release(self, client: str) -> None:
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
        self._last_turn[client] = time.monotonic()
        self._hand_on()

    def _hand_on(self) -> None:
        for client in self._line.clients:
            while (
                self.in_use < self._capacity and self._line.count(client) and self._held[client] < self._share(client)
            ):
                waiter = self._line.pop(client)
                if not waiter.cancelled():  # it may not have left the line yet
                    self._take(client)
                    waiter.set_result(None)

    def _share(self, client: str) -> int:
        """How many turns a client may hold at once, as long as so many others are active."""
        since = time.monotonic() - ACTIVE_SECONDS
        if len(self._last_turn) > 1:
            self._last_turn = {name: at for name, at in self._last_turn.items() if at > since or self._held[name]}
        active = {client, *self._last_turn, *self._held, *self._line.clients}
        return max(1, self._capacity // len(active))
