"""Answers of a session, before they are converted to messages of the contract."""

from dataclasses import dataclass

from polywand_server.errors import DeadlineError, PolywandError, Reason
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
class Forgotten:
    """Objects are freed. objects: how many there were."""

    objects: int


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, for the message of this sequence; skipped: older prompts that get no reply of their own."""

    sequence: int
    object_id: str
    skipped: int
    timer: Stopwatch
    result: ImageReady | Segmentation | Incomplete | PolywandError | Forgotten

    @property
    def nbytes(self) -> int:
        """Estimated memory while it waits."""
        return answer_bytes(self.result)


def outcome(answer: Answer) -> str:
    """Return the name of an answer's kind, for metrics."""
    return _OUTCOMES.get(type(answer), "error")


def answering_model(named: str, answer: Answer) -> str:
    """Return the name of the tool that answered, for metrics; named: by the prompt, which may name none."""
    return answer.model if isinstance(answer, Segmentation) else named


def answer_bytes(answer: object) -> int:
    """Estimate the memory of an answer while it waits."""
    return REPLY_BYTES + (answer.nbytes if isinstance(answer, Segmentation) else 0)


def prompt_timeout(seconds: float, advice: str) -> DeadlineError:
    """Make the error of a prompt that took longer than it may. advice: what to do, with the punctuation before it."""
    text = f"the prompt took longer than {seconds:g} s, the most that this server gives one{advice}"
    return DeadlineError(text, reason=Reason.PROMPT_TIMEOUT, metadata={"limit": "prompt_ms"})
