"""Proposals: a detector's boxes, in which the object of a first click is searched."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from polywand_server.geometry.boxes import Box
from polywand_server.interactors.prompt import Supersession
from polywand_server.timing import Stopwatch
from polywand_server.tools.specs import ProposalSpec


@dataclass(frozen=True, slots=True)
class Proposed:
    """A detector's boxes, by descending score. version: its own; 0 where it did not answer."""

    version: int = 0
    boxes: Sequence[Box] = ()


class Proposals(Protocol):
    """The boxes of detectors in one picture; implemented by `detectors.proposals`."""

    async def find(self, wanted: ProposalSpec, timer: Stopwatch, newer: Supersession) -> Proposed:
        """Return the boxes that an interactor's crop policy wants; none if the prompt is superseded first.

        A detector that is not ready or that fails is not an error: then there are no proposals.
        """
        ...

    def are_current(self, wanted: ProposalSpec, version: int) -> bool:
        """Whether an object would start now with the boxes of this version of the detector; 0: without any."""
        ...

    def may_come(self, wanted: ProposalSpec) -> bool:
        """Whether there is such a detector, ready or not."""
        ...

    def close(self) -> None:
        """Cancel running detections."""
        ...
