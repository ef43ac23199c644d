"""Proposals: where a detector sees objects in a picture, so that an interactor looks there for what a click means."""

import asyncio
import logging
import time

from polywand_server.detectors.detection import Detection, detect
from polywand_server.detectors.options import DetectOptions
from polywand_server.errors import DeadlineError, NotFoundError, PolywandError, UnavailableError, or_error
from polywand_server.images import Picture
from polywand_server.interactors.prompt import Supersession
from polywand_server.interactors.proposals import Proposed
from polywand_server.lanes import Lane
from polywand_server.timing import Stopwatch
from polywand_server.tools.kinds import Detector
from polywand_server.tools.registry import Registry
from polywand_server.tools.specs import ProposalSpec

# How long a click waits for them: without proposals its answer is not as good, and it is an answer.
PATIENCE_SECONDS = 4.0
# How long the clicks on a picture go without, before a detector that failed is asked again.
PAUSE_SECONDS = 30.0

_Key = tuple[str, int, float]

_log = logging.getLogger(__name__)


class DetectorProposals:
    """What detectors see in one picture: each is run when a click needs it, once. These are its `Proposals`."""

    def __init__(self, registry: Registry, lane: Lane, picture: Picture) -> None:
        self._registry = registry
        self._lane = lane
        self._picture = picture
        self._seen: dict[_Key, Proposed] = {}
        self._asking: dict[_Key, asyncio.Task[None]] = {}
        self._paused_until: dict[_Key, float] = {}

    def close(self) -> None:
        """See `Proposals`."""
        for task in self._asking.values():
            task.cancel()

    async def find(self, wanted: ProposalSpec, timer: Stopwatch, newer: Supersession) -> Proposed:
        """See `Proposals`."""
        try:
            detector = self._registry.detector(wanted.model, 0)
        except (NotFoundError, UnavailableError):  # what is not there, and why, is the registry's to tell
            return Proposed()
        except PolywandError as error:
            _log.warning("no proposals: %s", error)
            return Proposed()
        key = _key(detector, wanted)
        if key not in self._seen and time.monotonic() >= self._paused_until.get(key, 0.0):
            await self._wait_for(detector, key, timer, newer)
        return self._seen.get(key, Proposed())

    def are_current(self, wanted: ProposalSpec, version: int) -> bool:
        """See `Proposals`."""
        try:
            detector = self._registry.detector(wanted.model, 0)
        except PolywandError:
            return True  # what was seen before is as good as can be
        return _key(detector, wanted) not in self._seen if version == 0 else version == detector.version

    def may_come(self, wanted: ProposalSpec) -> bool:
        """See `Proposals`."""
        return self._registry.knows(wanted.model)

    async def _wait_for(self, detector: Detector, key: _Key, timer: Stopwatch, newer: Supersession) -> None:
        """Have a detector asked, and wait until it was; objects that start at the same time share one answer."""
        began, asked = timer.total(), Stopwatch()
        if key not in self._asking:
            task = asyncio.create_task(self._ask(detector, key, asked), name="ask for proposals")
            self._asking[key] = task
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        task = self._asking[key]
        superseded = asyncio.create_task(newer.wait(), name="wait for a newer prompt")
        try:
            await asyncio.wait((task, superseded), return_when=asyncio.FIRST_COMPLETED)
        finally:
            superseded.cancel()
        if task.done() and asked.seconds:
            timer.add(asked)  # of those that waited, this is the one for which it was asked
        else:
            timer.seconds["wait"] = timer.seconds.get("wait", 0.0) + timer.total() - began

    async def _ask(self, detector: Detector, key: _Key, timer: Stopwatch) -> None:
        found = await self._detect(detector, key[-1], timer)
        if isinstance(found, PolywandError):
            self._paused_until[key] = time.monotonic() + PAUSE_SECONDS
            _log.warning("clicks on an image go without the proposals of '%s': %s", detector.name, found)
        else:
            self._seen[key] = Proposed(detector.version, [detection.box for detection in found])

    async def _detect(self, detector: Detector, score: float, timer: Stopwatch) -> list[Detection] | PolywandError:
        options = DetectOptions(detector.name, detector.version, score)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await or_error(detect(self._lane, detector, self._picture, options, timer))
        except TimeoutError:
            return DeadlineError(f"no answer within {PATIENCE_SECONDS:g} s")


def _key(detector: Detector, wanted: ProposalSpec) -> _Key:
    return detector.name, detector.version, wanted.score
