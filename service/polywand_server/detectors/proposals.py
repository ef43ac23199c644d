"""Proposals: a detector's boxes in a picture, which become candidate crops of clicks."""

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

# How long a click waits for proposals; after that it is answered without them.
DETECT_SECONDS = 4.0
# A detector that failed is not run again on the same picture for this long.
RETRY_SECONDS = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _DetectorKey:
    """A detector and its threshold. score: the lowest of a box that counts."""

    model: str
    version: int
    score: float


class DetectorProposals:
    """Implements `Proposals` for one picture: each detector is run once, when a click needs it."""

    def __init__(self, registry: Registry, lane: Lane, picture: Picture) -> None:
        self._registry = registry
        self._lane = lane
        self._picture = picture
        self._found: dict[_DetectorKey, Proposed] = {}
        self._running: dict[_DetectorKey, asyncio.Task[None]] = {}
        self._paused_until: dict[_DetectorKey, float] = {}

    def close(self) -> None:
        """See `Proposals`."""
        for task in self._running.values():
            task.cancel()

    async def find(self, wanted: ProposalSpec, timer: Stopwatch, newer: Supersession) -> Proposed:
        """See `Proposals`."""
        try:
            key = self._resolve(wanted)
        except (NotFoundError, UnavailableError):  # the registry reports why
            return Proposed()
        except PolywandError as error:
            _log.warning("no proposals: %s", error)
            return Proposed()
        if key not in self._found and time.monotonic() >= self._paused_until.get(key, 0.0):
            await self._wait_for(key, timer, newer)
        return self._found.get(key, Proposed())

    def are_current(self, wanted: ProposalSpec, version: int) -> bool:
        """See `Proposals`."""
        try:
            key = self._resolve(wanted)
        except PolywandError:
            return True  # nothing newer can be found
        return key not in self._found if version == 0 else version == key.version

    def may_come(self, wanted: ProposalSpec) -> bool:
        """See `Proposals`."""
        return self._registry.knows(wanted.model)

    def _resolve(self, wanted: ProposalSpec) -> _DetectorKey:
        """Resolve the detector's version. Raises what `Registry.detector` does."""
        detector = self._registry.detector(wanted.model, 0)
        return _DetectorKey(detector.name, detector.version, wanted.score)

    async def _wait_for(self, key: _DetectorKey, timer: Stopwatch, newer: Supersession) -> None:
        """Run a detector, or wait for its run; objects that start at the same time share one run."""
        began, run_timer = timer.total(), timer.part()
        if key not in self._running:
            task = asyncio.create_task(self._run(key, run_timer), name="detect proposals")
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key, None))
        task = self._running[key]
        superseded = asyncio.create_task(newer.wait(), name="wait for a newer prompt")
        try:
            await asyncio.wait((task, superseded), return_when=asyncio.FIRST_COMPLETED)
        finally:
            superseded.cancel()
        if task.done() and run_timer.seconds:
            timer.add(run_timer)  # this prompt started the run; others only waited for it
        else:
            timer.count("wait", timer.total() - began)

    async def _run(self, key: _DetectorKey, timer: Stopwatch) -> None:
        found = await or_error(self._detect(key, timer))
        if isinstance(found, PolywandError):
            self._paused_until[key] = time.monotonic() + RETRY_SECONDS
            _log.warning("clicks on an image are answered without proposals of '%s': %s", key.model, found)
        else:
            self._found[key] = Proposed(key.version, [detection.box for detection in found])

    async def _detect(self, key: _DetectorKey, timer: Stopwatch) -> list[Detection]:
        options = DetectOptions(key.model, key.version, key.score)
        detector = self._registry.detector(key.model, key.version)
        try:
            async with asyncio.timeout(DETECT_SECONDS):
                return await detect(self._lane, detector, self._picture, options, timer)
        except TimeoutError:
            raise DeadlineError(f"no answer within {DETECT_SECONDS:g} s") from None
