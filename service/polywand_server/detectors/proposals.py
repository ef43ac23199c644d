"""Proposals: where a detector sees objects in a picture, so that an interactor looks there for what a click means."""

import asyncio
import logging
import time
from dataclasses import dataclass

from polywand_server.detectors.detection import Detection, detect
from polywand_server.detectors.options import DetectOptions
from polywand_server.errors import DeadlineError, NotFoundError, PolywandError, UnavailableError, or_error
from polywand_server.images import Picture
from polywand_server.interactors.prompt import Supersession
from polywand_server.interactors.proposals import Proposed
from polywand_server.lanes import Lane
from polywand_server.timing import Stopwatch
from polywand_server.tools.registry import Registry
from polywand_server.tools.specs import ProposalSpec

# How long a click waits for them: without proposals its answer is not as good, and it is an answer.
PATIENCE_SECONDS = 4.0
# How long the clicks on a picture go without, before a detector that failed is asked again.
PAUSE_SECONDS = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of a detector. score: from which a box counts."""

    model: str
    version: int
    score: float


class DetectorProposals:
    """What detectors see in one picture: each is run when a click needs it, once. These are its `Proposals`."""

    def __init__(self, registry: Registry, lane: Lane, picture: Picture) -> None:
        self._registry = registry
        self._lane = lane
        self._picture = picture
        self._seen: dict[_Question, Proposed] = {}
        self._asking: dict[_Question, asyncio.Task[None]] = {}
        self._paused_until: dict[_Question, float] = {}

    def close(self) -> None:
        """See `Proposals`."""
        for task in self._asking.values():
            task.cancel()

    async def find(self, wanted: ProposalSpec, timer: Stopwatch, newer: Supersession) -> Proposed:
        """See `Proposals`."""
        try:
            question = self._question(wanted)
        except (NotFoundError, UnavailableError):  # the registry tells what is not there, and why
            return Proposed()
        except PolywandError as error:
            _log.warning("no proposals: %s", error)
            return Proposed()
        if question not in self._seen and time.monotonic() >= self._paused_until.get(question, 0.0):
            await self._wait_for(question, timer, newer)
        return self._seen.get(question, Proposed())

    def are_current(self, wanted: ProposalSpec, version: int) -> bool:
        """See `Proposals`."""
        try:
            question = self._question(wanted)
        except PolywandError:
            return True  # what was seen before is as good as can be
        return question not in self._seen if version == 0 else version == question.version

    def may_come(self, wanted: ProposalSpec) -> bool:
        """See `Proposals`."""
        return self._registry.knows(wanted.model)

    def _question(self, wanted: ProposalSpec) -> _Question:
        """Resolve the detector's version. Raises what `Registry.detector` does."""
        detector = self._registry.detector(wanted.model, 0)
        return _Question(detector.name, detector.version, wanted.score)

    async def _wait_for(self, question: _Question, timer: Stopwatch, newer: Supersession) -> None:
        """Have a detector asked, and wait for it; objects that start at the same time share one answer."""
        began, asked = timer.total(), Stopwatch()
        if question not in self._asking:
            task = asyncio.create_task(self._ask(question, asked), name="ask for proposals")
            self._asking[question] = task
            task.add_done_callback(lambda _: self._asking.pop(question, None))
        task = self._asking[question]
        superseded = asyncio.create_task(newer.wait(), name="wait for a newer prompt")
        try:
            await asyncio.wait((task, superseded), return_when=asyncio.FIRST_COMPLETED)
        finally:
            superseded.cancel()
        if task.done() and asked.seconds:
            timer.add(asked)  # of the prompts that waited, this is the one for which it was asked
        else:
            timer.seconds["wait"] = timer.seconds.get("wait", 0.0) + timer.total() - began

    async def _ask(self, question: _Question, timer: Stopwatch) -> None:
        found = await or_error(self._detect(question, timer))
        if isinstance(found, PolywandError):
            self._paused_until[question] = time.monotonic() + PAUSE_SECONDS
            _log.warning("clicks on an image go without the proposals of '%s': %s", question.model, found)
        else:
            self._seen[question] = Proposed(question.version, [detection.box for detection in found])

    async def _detect(self, question: _Question, timer: Stopwatch) -> list[Detection]:
        options = DetectOptions(question.model, question.version, question.score)
        detector = self._registry.detector(question.model, question.version)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await detect(self._lane, detector, self._picture, options, timer)
        except TimeoutError:
            raise DeadlineError(f"no answer within {PATIENCE_SECONDS:g} s") from None
