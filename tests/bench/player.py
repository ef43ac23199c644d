"""What the three ways of answering a click have in common, so that every scenario plays them alike."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tests.bench.photos import Click, Photo

ANSWER_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What one click cost.

    wait_ms: from sending it to having its answer, parsed. parse_ms: the part of it in which the client parsed, where
    that is an act of its own. inferences: how often the network ran for it.
    sent, received: bytes of the messages, without the framing of HTTP/1 or HTTP/2.
    """

    wait_ms: float
    inferences: int
    sent: int = 0
    received: int = 0
    skipped: int = 0
    parse_ms: float = 0


class Player(Protocol):
    """One annotator at one of the three servers."""

    async def open(self, photo: Photo) -> Answer | None:
        """Make this the photo that is clicked; None where that asks the server nothing."""

    async def click(self, object_id: str, clicks: Sequence[Click]) -> Answer:
        """Ask for an object's outline; clicks: all of them so far, the newest last."""

    async def undo(self, object_id: str, clicks: Sequence[Click]) -> Answer | None:
        """Go back to fewer clicks; None where that asks the server nothing."""


def deadline() -> asyncio.Timeout:
    """The longest that any answer may take, to be entered around waiting for it."""
    return asyncio.timeout(ANSWER_SECONDS)
