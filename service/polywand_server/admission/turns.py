"""Turns: fair shares of what only a few may use at once, over clients first, then over each client's streams.

A client is a principal, or where there is none, a connection (`Caller.share`).

Interactive turns go first: a client that paused since its last turns and requests one turn at a time is taken for a
person who clicks. Its next few turns come before those of clients that request turns without a pause.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

from polywand_server.caller import Caller, current
from polywand_server.errors import QuotaError

# A client counts as active for this long after its last turn: the others leave it its share.
ACTIVE_SECONDS = 1.0
# A client that requested nothing for this long has rested.
REST_SECONDS = 0.1
# This many turns after a rest are interactive: enough for all passes of a click.
TURNS_AFTER_REST = 16
# The same for a client that is new.
NEW_CLIENT_TURNS = 5
# A client gets this many turns before it goes to the end of the queue: a click that has begun is finished before the
# next one begins, or all would be finished late.
TURNS_PER_RANK = 4
# A client that is not active is forgotten this long after its last use.
KNOWN_SECONDS = 60.0
# After an interactive turn, another one is expected for this long.
INTERACTIVE_SECONDS = 10.0
# Meanwhile the other turns in use are at most 1 / OTHERS_PART of all, so that an interactive one finds a free turn.
OTHERS_PART = 8
# After this many interactive turns in a row, one of the others is granted.
MOST_IN_A_ROW = 4


class Line:
    """Waiters by client; a client's streams take turns, and the waiters of a stream are in order of arrival."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, OrderedDict[int, deque[asyncio.Future[None]]]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def clients(self) -> list[str]:
        """The clients that wait."""
        return list(self._clients)

    def count(self, client: str) -> int:
        """Count the waiters of a client."""
        return sum(map(len, self._clients.get(client, {}).values()))

    def push(self, caller: Caller, waiter: "asyncio.Future[None]") -> None:
        """Add a waiter."""
        streams = self._clients.setdefault(caller.share, OrderedDict())
        streams.setdefault(caller.stream, deque()).append(waiter)
        self._length += 1

    def remove(self, caller: Caller, waiter: "asyncio.Future[None]") -> None:
        """Remove a waiter, if it is still queued."""
        streams = self._clients.get(caller.share, OrderedDict())
        waiters = streams.get(caller.stream, deque())
        if waiter not in waiters:
            return
        waiters.remove(waiter)
        self._length -= 1
        if not waiters:
            del streams[caller.stream]
        if not streams:
            del self._clients[caller.share]

    def pop(self, client: str) -> "asyncio.Future[None]":
        """Remove and return a client's next waiter."""
        streams = self._clients[client]
        stream, waiters = next(iter(streams.items()))
        waiter = waiters.popleft()
        self._length -= 1
        streams.move_to_end(stream)
        if not waiters:
            del streams[stream]
        if not streams:
            del self._clients[client]
        return waiter


@dataclass(slots=True)
class _Client:
    """The turns of one client.

    held: turns in use. wanted: turns in use and requests that wait. used_at: its last request, grant or release.
    since_rest: turns since its last rest. has_rested: whether it has rested since it is known. rank: the client with
    the lowest is next. turns: granted at this rank.
    """

    rank: int = 0
    turns: int = 0
    held: int = 0
    wanted: int = 0
    since_rest: int = 0
    used_at: float = 0.0
    has_rested: bool = False


class Turns:
    """Grants at most `capacity` turns at once.

    Where several clients are active, none has more than its share, and each has one; where interactive turns are
    expected, the others leave most turns free. most_waiting: the most requests that wait; None is no limit. what: name
    of the work, for errors. others_part: while interactive turns are expected, others get 1 / others_part of all.
    """

    def __init__(
        self, capacity: int, most_waiting: int | None = None, what: str = "turns", others_part: int = OTHERS_PART
    ) -> None:
        self._capacity = capacity
        self._most_others = max(1, capacity // others_part)
        self._most_waiting = most_waiting
        self._what = what
        self._interactive, self._others = Line(), Line()
        self._clients: dict[str, _Client] = {}
        self._inactive: dict[str, _Client] = {}  # by used_at, oldest first
        self._interactive_at: dict[str, float] = {}  # time of each client's last interactive turn
        self._in_use = 0
        self._others_in_use = 0
        self._in_a_row = 0
        self._ranks = count(1)

    @property
    def waiting(self) -> int:
        """Count the requests that wait."""
        return len(self._interactive) + len(self._others)

    @property
    def in_use(self) -> int:
        """Count the turns in use."""
        return self._in_use

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and hold it until the block ends.

        Raises:
            QuotaError: the queue is full, or this client has its share of it.
        """
        caller = current()
        is_interactive = await self._acquire(caller)
        try:
            yield
        finally:
            self._release(caller.share, is_interactive=is_interactive)

    async def _acquire(self, caller: Caller) -> bool:
        """Wait for a turn; return whether it is interactive."""
        client, name = self._client(caller.share), caller.share
        is_interactive = client.since_rest < TURNS_AFTER_REST and client.wanted == 0
        # Many new clients at once are not interactive.
        is_interactive &= client.has_rested or len(self._interactive) < self._capacity
        line = self._interactive if is_interactive else self._others
        if name not in line.clients and self._is_allowed(name, is_interactive=is_interactive):
            client.wanted += 1
            self._grant(name, is_interactive=is_interactive)
            return is_interactive
        self._check_line(name)
        client.wanted += 1
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.push(caller, waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._release(name, is_interactive=is_interactive)
            else:
                line.remove(caller, waiter)
                self._want_less(name)
                self._grant_free()
            raise
        return is_interactive

    def _release(self, name: str, *, is_interactive: bool) -> None:
        self._clients[name].held -= 1
        self._in_use -= 1
        self._others_in_use -= not is_interactive
        self._want_less(name)
        self._grant_free()

    def _client(self, name: str) -> _Client:
        """Return the record of a client; if it has rested, its turns are counted anew."""
        now = time.monotonic()
        client = self._clients.get(name) or self._inactive.pop(name, None)
        if client is None:
            client = _Client(since_rest=TURNS_AFTER_REST - NEW_CLIENT_TURNS)
            self._move_to_end(client)
        elif client.wanted == 0 and now - client.used_at > REST_SECONDS:
            client.since_rest, client.has_rested = 0, True
            self._move_to_end(client)
        client.used_at = now
        self._clients[name] = client
        return client

    def _move_to_end(self, client: _Client) -> None:
        """Move a client behind all others."""
        client.rank, client.turns = next(self._ranks), 0

    def _want_less(self, name: str) -> None:
        client = self._clients[name]
        client.wanted -= 1
        client.used_at = time.monotonic()

    def _check_line(self, client: str) -> None:
        """Refuse a request if the client already has its share of the queue. Raises QuotaError."""
        most = self._most_waiting
        if most is None:
            return
        waiting = {client, *self._interactive.clients, *self._others.clients}
        if self._interactive.count(client) + self._others.count(client) >= max(1, most // len(waiting)):
            text = f"{self.waiting} wait for {self._what} already, of at most {most}: try again later"
            raise QuotaError(self._what, text, 1.0)

    def _grant(self, name: str, *, is_interactive: bool) -> None:
        client = self._clients[name]
        client.held += 1
        client.since_rest += 1
        client.turns += 1
        if client.turns == TURNS_PER_RANK:
            self._move_to_end(client)
        client.used_at = time.monotonic()
        self._in_use += 1
        self._others_in_use += not is_interactive
        self._in_a_row = self._in_a_row + 1 if is_interactive else 0
        if is_interactive and client.has_rested:
            self._interactive_at[name] = client.used_at

    def _grant_free(self) -> None:
        while self._in_use < self._capacity and (found := self._next()) is not None:
            name, is_interactive = found
            waiter = (self._interactive if is_interactive else self._others).pop(name)
            if not waiter.cancelled():  # it may still be queued
                self._grant(name, is_interactive=is_interactive)
                waiter.set_result(None)

    def _next(self) -> tuple[str, bool] | None:
        """Choose the client of the next turn, and whether the turn is interactive."""
        interactive = self._first(self._interactive, is_interactive=True)
        other = self._first(self._others, is_interactive=False)
        if interactive is not None and (other is None or self._in_a_row < MOST_IN_A_ROW):
            return interactive, True
        return None if other is None else (other, False)

    def _first(self, line: Line, *, is_interactive: bool) -> str | None:
        """Return the client of a line with the lowest rank among those that may have a turn."""
        allowed = [name for name in line.clients if self._is_allowed(name, is_interactive=is_interactive)]
        return min(allowed, key=lambda name: self._clients[name].rank, default=None)

    def _is_allowed(self, name: str, *, is_interactive: bool) -> bool:
        """Whether a client may have one more turn now."""
        self._forget_inactive()
        if self._in_use >= self._capacity:
            return False
        if not is_interactive and self._interactive_at.keys() - {name}:
            return self._others_in_use < self._most_others
        return self._clients[name].held < max(1, self._capacity // len(self._clients))

    def _forget_inactive(self) -> None:
        now = time.monotonic()
        since = now - ACTIVE_SECONDS
        self._interactive_at = {name: at for name, at in self._interactive_at.items() if at > now - INTERACTIVE_SECONDS}
        gone = [name for name, client in self._clients.items() if not client.wanted and client.used_at < since]
        for name in gone:
            self._inactive[name] = self._clients.pop(name)
        while self._inactive:
            name, client = next(iter(self._inactive.items()))
            if client.used_at > now - KNOWN_SECONDS:
                break
            del self._inactive[name]
