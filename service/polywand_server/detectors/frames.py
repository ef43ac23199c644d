"""Frames: one image is decoded, detected and, if wanted, outlined. A bounded number of frames is in work at once."""

from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from prometheus_client import Gauge

from polywand_server.admission.permits import FramePermit, FramePermits
from polywand_server.admission.quotas import Accounts
from polywand_server.detectors.detection import Detection, detect
from polywand_server.detectors.options import DetectOptions
from polywand_server.detectors.outlines import OutlineMaker, Outlines
from polywand_server.detectors.toolbox import FrameToolbox, FrameTools
from polywand_server.geometry.windows import Window
from polywand_server.images import ImageSource, ImageStore, Lease
from polywand_server.lanes import Lane
from polywand_server.ops import metrics
from polywand_server.timing import Stopwatch


@dataclass(frozen=True, slots=True)
class FrameResult:
    """The result of one frame.

    model, version: of the detector. width, height, digest: of the image. outlines: None where none were requested.
    """

    model: str
    version: int
    width: int
    height: int
    digest: bytes
    detections: list[Detection]
    outlines: Outlines | None


class FrameLoad:
    """One frame in the gauges: it waits, then is in work. Use as a context manager: on exit it is neither."""

    def __init__(self) -> None:
        self._counted_in: Gauge | None = None

    def __enter__(self) -> Self:
        self._move(metrics.FRAMES_WAITING)
        return self

    def __exit__(self, *_: object) -> None:
        self._move(None)

    def begin(self) -> None:
        """Count it as in work."""
        self._move(metrics.FRAMES_IN_WORK)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count it as waiting until the block ends."""
        self._move(metrics.FRAMES_WAITING)
        try:
            yield
        finally:
            self._move(metrics.FRAMES_IN_WORK)

    def _move(self, gauge: Gauge | None) -> None:
        if self._counted_in is not None:
            self._counted_in.dec()
        if gauge is not None:
            gauge.inc()
        self._counted_in = gauge


class Frames:
    """Processes frames. lane: of frames, which gives way to prompts before each stage."""

    def __init__(
        self,
        toolbox: FrameToolbox,
        lane: Lane,
        store: ImageStore,
        outlines: OutlineMaker,
        permits: FramePermits,
        accounts: Accounts,
    ) -> None:
        self._toolbox = toolbox
        self._lane = lane
        self._store = store
        self._outlines = outlines
        self._permits = permits
        self._accounts = accounts

    async def detect(
        self,
        source: ImageSource,
        options: DetectOptions,
        timer: Stopwatch,
        until_paused: AsyncExitStack,
        load: FrameLoad,
        *,
        image_stays: bool,
    ) -> FrameResult:
        """Find the objects of a frame.

        until_paused: see `FramePermits.permit`. load: of this frame. image_stays: see `ImageStore.lease`.

        Raises:
            InvalidInputError, NotFoundError, WrongStateError, TooLargeError, QuotaError, UnavailableError,
            DeadlineError, ModelFailedError
        """
        model, outcome = metrics.UNKNOWN_MODEL, "error"
        try:
            model = self._toolbox.choose(options).detector.name  # an invalid request is refused before it waits
            self._accounts.frame()
            async with self._permits.permit(until_paused, load.paused) as permit:
                load.begin()
                timer.waited()
                await self._lane.turn(timer)
                async with self._store.hold(source, timer, stays=image_stays) as lease:
                    result = await self._toolbox.use(
                        options, lambda tools: self._detect_with(tools, lease, options, timer, permit)
                    )
            outcome = "ok"
            return result
        finally:
            metrics.FRAMES.labels(model, outcome).inc()
            metrics.observe_stages(timer, model)
            timer.finish("frame", model=model, outcome=outcome, inferences=timer.inferences)

    def check(self, options: DetectOptions) -> None:
        """Refuse options for which there is no tool now. Raises what `FrameToolbox.choose` does."""
        self._toolbox.choose(options)

    def count_refused(self, timer: Stopwatch) -> None:
        """Count a frame that could not be read."""
        metrics.FRAMES.labels(metrics.UNKNOWN_MODEL, "error").inc()
        metrics.observe_stages(timer, metrics.UNKNOWN_MODEL)
        timer.finish("frame", outcome="error")

    async def _detect_with(
        self, tools: FrameTools, lease: Lease, options: DetectOptions, timer: Stopwatch, permit: FramePermit
    ) -> FrameResult:
        detector, picture, outlines = tools.detector, lease.picture, None
        size = picture.width, picture.height
        window = Window.around(options.roi, picture) if options.roi is not None else None
        if window is not None:
            with timer.stage("prepare"):
                picture = await self._lane.compute(partial(window.cut, picture))
        found = await detect(self._lane, detector, picture, options, timer)
        if tools.outliner is not None:
            boxes = [detection.box for detection in found]
            outlines = await self._outlines.outline(tools.outliner, picture, boxes, timer, permit)
        if window is not None:
            found = [replace(detection, box=window.outward(detection.box)) for detection in found]
            if outlines is not None:
                outlines = await self._lane.compute(partial(outlines.moved, window.drawn_outward))
        return FrameResult(detector.name, detector.version, *size, lease.digest, found, outlines)
