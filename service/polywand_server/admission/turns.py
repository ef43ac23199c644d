"""Turns: fair shares of what only a few may use at once, over clients first, then over each client's streams.

Hands go first: a client that has rested since its last turns, and wants one thing at a time, is taken to be somebody
who looks and then clicks. Its next few turns come before those of clients that want one after another without a pause.
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

# A client that had a turn so short a time ago counts as active: the others leave it its share.
ACTIVE_SECONDS = 1.0
# A client that wanted nothing for so long has rested.
REST_SECONDS = 0.1
# So many turns after a rest come first: those of a click, with all passes that it may take.
TURNS_AFTER_REST = 16
# So many at first, of a client that was not here before.
TURNS_OF_A_NEW_ONE = 5
# So many turns a client has before it goes to the end of the line: a click that has begun is finished before the next
# one begins, or all would be finished late.
TURNS_OF_A_PLACE = 4
# So long it is known that a client was here.
KNOWN_SECONDS = 60.0
# So long after a hand's turn another one is expected.
HANDS_SECONDS = 10.0
# Then the others hold no more than this part of all turns, so that it finds one free.
OTHERS_PART = 8
# After so many of these in a row, one of the others goes.
MOST_IN_A_ROW = 4


class Line:
    """Waiters by client; each one's streams take turns, and a stream's stand in line."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, OrderedDict[int, deque[asyncio.Future[None]]]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def clients(self) -> list[str]:
        """Those that wait."""
        return list(self._clients)

    def count(self, client: str) -> int:
        """How many of a client's wait."""
        return sum(map(len, self._clients.get(client, {}).values()))

    def push(self, caller: Caller, waiter: "asyncio.Future[None]") -> None:
        """Stand in line."""
        streams = self._clients.setdefault(caller.client, OrderedDict())
        streams.setdefault(caller.stream, deque()).append(waiter)
        self._length += 1

    def remove(self, caller: Caller, waiter: "asyncio.Future[None]") -> None:
        """Leave the line, if it still stands in it."""
        streams = self._clients.get(caller.client, OrderedDict())
        waiters = streams.get(caller.stream, deque())
        if waiter not in waiters:
            return
        waiters.remove(waiter)
        self._length -= 1
        if not waiters:
            del streams[caller.stream]
        if not streams:
            del self._clients[caller.client]

    def pop(self, client: str) -> "asyncio.Future[None]":
        """Take the next one of a client's."""
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
    """held: turns now. wanted: those, and what waits. used_at: when it had one last.

    since_rest: turns since it rested. has_rested: ever; a new one has not. place: in the line, counted from the first
    one ever; turns: of this place.
    """

    place: int = 0
    turns: int = 0
    held: int = 0
    wanted: int = 0
    since_rest: int = 0
    used_at: float = 0.0
    has_rested: bool = False


class Turns:
    """Lets `capacity` in at once.

    Where several clients are active, none has more than its share, and each has one; where hands are expected, the
    others leave most turns free. most_waiting: longer than that the lines do not grow; None is no limit. what: is
    waited for, in words, for errors. others_part: of the turns, what is left to others where hands are expected.
    """

    def __init__(
        self, capacity: int, most_waiting: int | None = None, what: str = "turns", others_part: int = OTHERS_PART
    ) -> None:
        self._capacity = capacity
        self._most_others = max(1, capacity // others_part)
        self._most_waiting = most_waiting
        self._what = what
        self._hands, self._others = Line(), Line()
        self._clients: dict[str, _Client] = {}
        self._inactive: dict[str, _Client] = {}  # the one that was used last stands last
        self._hands_at: dict[str, float] = {}  # when each had its last turn as one
        self._in_use = 0
        self._others_in_use = 0
        self._in_a_row = 0
        self._places = count(1)

    @property
    def waiting(self) -> int:
        """How many stand in line."""
        return len(self._hands) + len(self._others)

    @property
    def in_use(self) -> int:
        """How many turns are held."""
        return self._in_use

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and hold it until the block ends.

        Raises:
            QuotaError: the line is full, or this client has its share of it.
        """
        caller = current()
        is_hand = await self._acquire(caller)
        try:
            yield
        finally:
            self._release(caller.client, is_hand=is_hand)

    async def _acquire(self, caller: Caller) -> bool:
        """Wait for a turn; returns whether it is a hand's."""
        client, name = self._client(caller.client), caller.client
        is_hand = client.since_rest < TURNS_AFTER_REST and client.wanted == 0
        # Many new ones at once are no hands that have just arrived.
        is_hand &= client.has_rested or len(self._hands) < self._capacity
        line = self._hands if is_hand else self._others
        if name not in line.clients and self._may(name, is_hand=is_hand):
            client.wanted += 1
            self._take(name, is_hand=is_hand)
            return is_hand
        self._check_line(name)
        client.wanted += 1
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.push(caller, waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._release(name, is_hand=is_hand)
            else:
                line.remove(caller, waiter)
                self._want_less(name)
                self._hand_on()
            raise
        return is_hand

    def _release(self, name: str, *, is_hand: bool) -> None:
        self._clients[name].held -= 1
        self._in_use -= 1
        self._others_in_use -= not is_hand
        self._want_less(name)
        self._hand_on()

    def _client(self, name: str) -> _Client:
        """What is known of a client; of one that has rested, turns are counted anew."""
        now = time.monotonic()
        client = self._clients.get(name) or self._inactive.pop(name, None)
        if client is None:
            client = _Client(since_rest=TURNS_AFTER_REST - TURNS_OF_A_NEW_ONE)
            self._to_the_end(client)
        elif client.wanted == 0 and now - client.used_at > REST_SECONDS:
            client.since_rest, client.has_rested = 0, True
            self._to_the_end(client)
        client.used_at = now
        self._clients[name] = client
        return client

    def _to_the_end(self, client: _Client) -> None:
        """Give a client the last place."""
        client.place, client.turns = next(self._places), 0

    def _want_less(self, name: str) -> None:
        client = self._clients[name]
        client.wanted -= 1
        client.used_at = time.monotonic()

    def _check_line(self, client: str) -> None:
        """Refuse who would make the line too long: of a client that waits for more than others do, the next one."""
        most = self._most_waiting
        if most is None:
            return
        waiting = {client, *self._hands.clients, *self._others.clients}
        if self._hands.count(client) + self._others.count(client) >= max(1, most // len(waiting)):
            text = f"{self.waiting} wait for {self._what} already, of at most {most}: try again later"
            raise QuotaError(self._what, text, 1.0)

    def _take(self, name: str, *, is_hand: bool) -> None:
        client = self._clients[name]
        client.held += 1
        client.since_rest += 1
        client.turns += 1
        if client.turns == TURNS_OF_A_PLACE:
            self._to_the_end(client)
        client.used_at = time.monotonic()
        self._in_use += 1
        self._others_in_use += not is_hand
        self._in_a_row = self._in_a_row + 1 if is_hand else 0
        if is_hand and client.has_rested:
            self._hands_at[name] = client.used_at

    def _hand_on(self) -> None:
        while self._in_use < self._capacity and (found := self._next()) is not None:
            name, is_hand = found
            waiter = (self._hands if is_hand else self._others).pop(name)
            if not waiter.cancelled():  # it may not have left the line yet
                self._take(name, is_hand=is_hand)
                waiter.set_result(None)

    def _next(self) -> tuple[str, bool] | None:
        """Whose turn it is, and whether it is a hand's."""
        hand, other = self._first(self._hands, is_hand=True), self._first(self._others, is_hand=False)
        if hand is not None and (other is None or self._in_a_row < MOST_IN_A_ROW):
            return hand, True
        return None if other is None else (other, False)

    def _first(self, line: Line, *, is_hand: bool) -> str | None:
        """The client of a line that has the first place of those that may have a turn."""
        allowed = [name for name in line.clients if self._may(name, is_hand=is_hand)]
        return min(allowed, key=lambda name: self._clients[name].place, default=None)

    def _may(self, name: str, *, is_hand: bool) -> bool:
        """Whether a client may have a turn more now."""
        self._forget_inactive()
        if self._in_use >= self._capacity:
            return False
        if not is_hand and self._hands_at.keys() - {name}:
            return self._others_in_use < self._most_others
        return self._clients[name].held < max(1, self._capacity // len(self._clients))

    def _forget_inactive(self) -> None:
        now = time.monotonic()
        since = now - ACTIVE_SECONDS
        self._hands_at = {name: at for name, at in self._hands_at.items() if at > now - HANDS_SECONDS}
        gone = [name for name, client in self._clients.items() if not client.wanted and client.used_at < since]
        for name in gone:
            self._inactive[name] = self._clients.pop(name)
        while self._inactive:
            name, client = next(iter(self._inactive.items()))
            if client.used_at > now - KNOWN_SECONDS:
                break
            del self._inactive[name]
