"""What a session answers, before it is written as messages of the contract."""

from dataclasses import dataclass

from polywand_server.errors import PolywandError
from polywand_server.interactors.estimate import Segmentation
from polywand_server.interactors.prompt import Incomplete
from polywand_server.timing import Stopwatch

# What a reply takes beside its outline.
REPLY_BYTES = 2048


@dataclass(frozen=True, slots=True)
class ImageReady:
    """The image is decoded; pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Draining:
    """The stream ends because the server does."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, for the prompt or image of this sequence; skipped counts the prompts that it covers as well."""

    sequence: int
    object_id: str
    skipped: int
    timer: Stopwatch
    result: ImageReady | Segmentation | Incomplete | PolywandError | Draining

    @property
    def nbytes(self) -> int:
        """About how much memory it takes while it waits."""
        return REPLY_BYTES + (self.result.shape.nbytes if isinstance(self.result, Segmentation) else 0)
