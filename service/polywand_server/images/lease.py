"""Leases: while a request or a stream has one, its picture stays in memory."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from polywand_pictures import ValueRange
from polywand_server.errors import PolywandError
from polywand_server.images.picture import Picture


@dataclass(frozen=True, slots=True)
class Key:
    """What a picture is found by. principal: nothing is shared between two. value_range: as given in the request."""

    principal: str
    digest: bytes
    value_range: ValueRange | None


@dataclass(slots=True, eq=False)
class Holding:
    """A picture with leases.

    result: None while it is decoded, by `task`. stays: whether it stays after its last lease, while there is room.
    """

    key: Key
    leases: int = 0
    stays: bool = False
    result: Picture | PolywandError | None = None
    task: asyncio.Task[None] | None = None


class Lease:
    """One lease of a picture. on_release: called once, with the holding."""

    def __init__(self, holding: Holding, on_release: Callable[[Holding], None]) -> None:
        self.digest = holding.key.digest
        self._holding: Holding | None = holding
        self._on_release = on_release
        holding.leases += 1

    @property
    def picture(self) -> Picture:
        """The picture; only before `release`."""
        assert self._holding is not None
        assert isinstance(self._holding.result, Picture)
        return self._holding.result

    @property
    def count(self) -> int:
        """How many leases the picture has; 0 after `release`."""
        return self._holding.leases if self._holding is not None else 0

    def release(self) -> None:
        """End the lease; further calls do nothing."""
        holding, self._holding = self._holding, None
        if holding is not None:
            holding.leases -= 1
            self._on_release(holding)
