"""Cases: what one hostile client does on one call."""

import base64
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

SERVICE = "/polywand.v1.AnnotationService"
LIST_MODELS, SEGMENT, INTERACT = "ListModels", "Segment", "Interact"
DETECT, DETECT_STREAM = "Detect", "DetectStream"
UNARY = (LIST_MODELS, SEGMENT, DETECT)


@dataclass(frozen=True, slots=True)
class Send:
    """Send one message. data: its bytes, whether they can be parsed or not."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Await:
    """Wait until so many messages are answered or superseded, or the call has ended."""

    messages: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Do nothing for a while."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel the call; the last step."""


Step = Send | Await | Pause | Cancel


class Reading(StrEnum):
    """When a client reads its replies."""

    AT_ONCE = "at once"
    SLOWLY = "slowly"
    NEVER = "never"  # such a case ends with `Cancel`


@dataclass(frozen=True, slots=True)
class Case:
    """One call. The client half-closes after the last step.

    kind: names the generator. method: of the service, without its name. gzip: whether messages are compressed.
    """

    kind: str
    method: str
    steps: tuple[Step, ...]
    reading: Reading = Reading.AT_ONCE
    gzip: bool = False

    @property
    def messages(self) -> tuple[bytes, ...]:
        """All that is sent."""
        return tuple(step.data for step in self.steps if isinstance(step, Send))

    @property
    def is_cancelled(self) -> bool:
        """Whether the client ends the call."""
        return any(isinstance(step, Cancel) for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Write the case for people and other programs; messages in base64."""
        return {
            "kind": self.kind,
            "method": self.method,
            "reading": self.reading,
            "gzip": self.gzip,
            "steps": [_step_to_json(step) for step in self.steps],
        }


def _step_to_json(step: Step) -> dict[str, Any]:
    match step:
        case Send(data):
            return {"send": base64.b64encode(data).decode(), "bytes": len(data)}
        case Await(messages):
            return {"await": messages}
        case Pause(seconds):
            return {"pause": seconds}
        case Cancel():
            return {"cancel": True}
