"""Answers of a session, before they are converted to messages of the contract."""

from dataclasses import dataclass

from polywand_server.errors import PolywandError
from polywand_server.interactors.estimate import Segmentation
from polywand_server.interactors.prompt import Incomplete
from polywand_server.timing import Stopwatch

# The answer to a prompt.
Answer = Segmentation | Incomplete | PolywandError
_OUTCOMES = {Segmentation: "segmentation", Incomplete: "incomplete"}

# Memory of a reply beside its outline.
REPLY_BYTES = 2048


@dataclass(frozen=True, slots=True)
class ImageReady:
    """The image is decoded; width, height: in pixels. digest: see `images.digests`."""

    width: int
    height: int
    digest: bytes


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
        return answer_bytes(self.result)


def outcome(answer: Answer) -> str:
    """Return the name of an answer's kind, for metrics."""
    return _OUTCOMES.get(type(answer), "error")


def answer_bytes(answer: object) -> int:
    """Estimate the memory of an answer while it waits."""
    return REPLY_BYTES + (answer.shape.nbytes if isinstance(answer, Segmentation) else 0)
