"""Proposals: where a detector sees objects in a picture, so that an interactor looks there for what a click means."""

import asyncio
import logging
import time
from collections.abc import Sequence

from polywand_server.detectors.pipeline import Detection, DetectOptions, detect
from polywand_server.errors import DeadlineError, NotFoundError, PolywandError, UnavailableError, or_error
from polywand_server.images import Picture
from polywand_server.inference import Inference
from polywand_server.interactors.prompt import Box
from polywand_server.specs import ProposalSpec
from polywand_server.timing import Stopwatch
from polywand_server.tools.registry import Detector, Registry

# How long a click waits for them: without proposals its answer is not as good, and it is an answer.
PATIENCE_SECONDS = 4.0
# How long the clicks on a picture go without, before a detector that failed is asked again.
PAUSE_SECONDS = 30.0

_Key = tuple[str, int, float]

_log = logging.getLogger(__name__)


class Proposals:
    """What detectors see in one picture; each is asked when a click needs it, and remembered."""

    def __init__(self, registry: Registry, inference: Inference, picture: Picture) -> None:
        self._registry = registry
        self._inference = inference
        self._picture = picture
        self._seen: dict[_Key, Sequence[Box]] = {}
        self._paused_until: dict[_Key, float] = {}
        self._asking = asyncio.Lock()

    async def by(self, wanted: ProposalSpec, watch: Stopwatch) -> Sequence[Box]:
        """The boxes that an interactor's crop policy asks for, by descending score.

        Neither a detector that is not ready nor one that fails is an error: then there are no proposals.
        """
        try:
            detector = self._registry.detector(wanted.model, 0)
        except (NotFoundError, UnavailableError):  # what is not there, and why, is the registry's to tell
            return ()
        except PolywandError as error:
            _log.warning("no proposals: %s", error)
            return ()
        key = (detector.name, detector.version, wanted.score)
        async with self._asking:  # objects that start at the same time share one answer
            if key not in self._seen and time.monotonic() >= self._paused_until.get(key, 0.0):
                found = await self._ask(detector, wanted.score, watch)
                if isinstance(found, PolywandError):
                    self._paused_until[key] = time.monotonic() + PAUSE_SECONDS
                    _log.warning("clicks on an image go without the proposals of '%s': %s", detector.name, found)
                else:
                    self._seen[key] = [Box(*detection.box) for detection in found]
            return self._seen.get(key, ())

    async def _ask(self, detector: Detector, score: float, watch: Stopwatch) -> list[Detection] | PolywandError:
        options = DetectOptions(detector.name, detector.version, score)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await or_error(detect(self._inference, detector, self._picture, options, watch))
        except TimeoutError:
            return DeadlineError(f"no answer within {PATIENCE_SECONDS:g} s")
