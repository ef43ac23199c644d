"""Answers of a session, before they are converted to messages of the contract."""

from dataclasses import dataclass

from polywand_server.errors import PolywandError
from polywand_server.interactors.estimate import Segmentation
from polywand_server.interactors.prompt import Incomplete
from polywand_server.timing import Stopwatch

# Memory of a reply beside its outline.
REPLY_BYTES = 2048


@dataclass(frozen=True, slots=True)
class ImageReady:
    """The image is decoded; width, height: in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Draining:
    """The stream ends because the server does."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, for the prompt or image of this sequence; skipped: older prompts that it also answers."""

    sequence: int
    object_id: str
    skipped: int
    timer: Stopwatch
    result: ImageReady | Segmentation | Incomplete | PolywandError | Draining

    @property
    def nbytes(self) -> int:
        """Estimated memory while it waits."""
        return REPLY_BYTES + (self.result.nbytes if isinstance(self.result, Segmentation) else 0)
