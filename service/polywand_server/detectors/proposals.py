"""Proposals: where a detector sees objects in a picture, so that an interactor looks there for what a click means."""

import asyncio
import logging
from collections.abc import Sequence

from polywand_server.detectors.pipeline import DetectOptions, detect
from polywand_server.errors import NotFoundError, PolywandError, UnavailableError
from polywand_server.images import Picture
from polywand_server.inference import Inference
from polywand_server.interactors.prompt import Box
from polywand_server.registry import Detector, Registry
from polywand_server.specs import ProposalSpec
from polywand_server.timing import Stopwatch

# How long a click waits for them: without proposals its answer is not as good, and it is an answer.
PATIENCE_SECONDS = 2.0

_log = logging.getLogger(__name__)


class Proposals:
    """What detectors see in one picture; each is asked once, when a click needs it."""

    def __init__(self, registry: Registry, inference: Inference, picture: Picture) -> None:
        self._registry = registry
        self._inference = inference
        self._picture = picture
        self._seen: dict[tuple[str, int, float], Sequence[Box]] = {}

    async def by(self, wanted: ProposalSpec, watch: Stopwatch) -> Sequence[Box]:
        """The boxes that an interactor's crop policy asks for, by descending score.

        Neither a detector that is not ready nor one that fails is an error: then there are no proposals.
        """
        try:
            detector = self._registry.detector(wanted.model, 0)
        except (NotFoundError, UnavailableError):
            return ()
        except PolywandError as error:
            _log.warning("an interactor wants proposals of what is no detector: %s", error)
            return ()
        key = (detector.name, detector.version, wanted.score)
        if key not in self._seen:
            found = await self._ask(detector, wanted, watch)
            if found is None:
                return ()
            self._seen[key] = found
        return self._seen[key]

    async def _ask(self, detector: Detector, wanted: ProposalSpec, watch: Stopwatch) -> Sequence[Box] | None:
        """What a detector sees; nothing if it fails, None if it may well answer when it is asked again."""
        options = DetectOptions(detector.name, detector.version, wanted.score)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                found = await detect(self._inference, detector, self._picture, options, watch)
        except UnavailableError:
            return None
        except (PolywandError, TimeoutError) as error:
            why = str(error) or f"no answer within {PATIENCE_SECONDS:g} s"
            _log.warning("clicks on an image go without the proposals of '%s': %s", detector.name, why)
            return ()
        return [Box(*detection.box) for detection in found]
