"""Frames: one image is decoded, detected and, if wanted, outlined. A bounded number of frames is in work at once."""

from contextlib import AsyncExitStack
from dataclasses import dataclass

from polywand_server.detectors.detection import Detection, check_labels, detect
from polywand_server.detectors.options import DetectOptions
from polywand_server.detectors.outliner import Outliner, find_outliner
from polywand_server.detectors.outlines import OutlineMaker, Outlines
from polywand_server.detectors.permits import FramePermit, FramePermits
from polywand_server.images import Decoder, ImageSource, Picture
from polywand_server.lanes import Lane
from polywand_server.ops import metrics
from polywand_server.timing import Stopwatch
from polywand_server.tools.kinds import Detector
from polywand_server.tools.registry import Registry
from polywand_server.tools.retry import use_tool


@dataclass(frozen=True, slots=True)
class FrameResult:
    """What a frame shows. width, height: of its image, pixels. outlines: None where none were asked for."""

    tool: Detector
    width: int
    height: int
    detections: list[Detection]
    outlines: Outlines | None


@dataclass(frozen=True, slots=True)
class _Tools:
    detector: Detector
    outliner: Outliner | None


class Frames:
    """Works on frames. lane: of frames, which gives way to prompts before each stage."""

    def __init__(
        self, registry: Registry, lane: Lane, decoder: Decoder, outlines: OutlineMaker, permits: FramePermits
    ) -> None:
        self._registry = registry
        self._lane = lane
        self._decoder = decoder
        self._outlines = outlines
        self._permits = permits

    async def detect(
        self, source: ImageSource, options: DetectOptions, timer: Stopwatch, until_paused: AsyncExitStack
    ) -> FrameResult:
        """Find the objects of a frame. until_paused: see `FramePermits.permit`.

        Raises:
            InvalidInputError, NotFoundError, WrongStateError, TooLargeError, QuotaError, UnavailableError,
            DeadlineError, ModelFailedError
        """
        model, outcome = metrics.UNKNOWN_MODEL, "error"
        try:
            model = self._choose(options).detector.name  # a wrong request is refused before anything waits for it
            async with self._permits.permit(until_paused) as permit:
                timer.waited()
                await self._lane.turn(timer)
                picture = await self._decoder.decode(source, timer)
                result = await use_tool(
                    self._registry,
                    lambda: self._choose(options),
                    lambda tools: self._detect_with(tools, picture, options, timer, permit),
                )
            outcome = "ok"
            return result
        finally:
            metrics.FRAMES.labels(model, outcome).inc()
            metrics.observe_stages(timer, model)

    def count_refused(self, timer: Stopwatch) -> None:
        """Count a frame that could not be read."""
        metrics.FRAMES.labels(metrics.UNKNOWN_MODEL, "error").inc()
        metrics.observe_stages(timer, metrics.UNKNOWN_MODEL)

    def _choose(self, options: DetectOptions) -> _Tools:
        detector = self._registry.detector(options.model, options.version)
        check_labels(options.labels, detector)
        return _Tools(detector, find_outliner(self._registry, options.polygons) if options.polygons else None)

    async def _detect_with(
        self, tools: _Tools, picture: Picture, options: DetectOptions, timer: Stopwatch, permit: FramePermit
    ) -> FrameResult:
        found = await detect(self._lane, tools.detector, picture, options, timer)
        outlines = None
        if tools.outliner is not None:
            boxes = [detection.box for detection in found]
            outlines = await self._outlines.outline(tools.outliner, picture, boxes, timer, permit)
        return FrameResult(tools.detector, picture.width, picture.height, found, outlines)
