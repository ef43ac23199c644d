"""One annotator's stream: the current image, the newest prompt of each object, and what is remembered of both."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from polywand_server import metrics
from polywand_server.config import Limits
from polywand_server.decoding import load_picture
from polywand_server.errors import InvalidInputError, PolywandError, TooLargeError, WrongStateError, or_error
from polywand_server.geometry.shapes import Shape, make_shape
from polywand_server.images import ImageSource, Picture
from polywand_server.inference import Inference
from polywand_server.interactors.memory import MaskMemory
from polywand_server.interactors.pipeline import max_points, segment
from polywand_server.interactors.prompt import Label, Missing, Prompt, missing
from polywand_server.registry import Interactor, Registry
from polywand_server.timing import Stopwatch

# Replies that may wait for a slow reader; after that its prompts are skipped and its messages left on the wire.
OUTBOX_REPLIES = 16


@dataclass(frozen=True, slots=True)
class ImageReady:
    """The image is decoded; pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Segmentation:
    """An object's outline, and what made it."""

    shape: Shape
    width: int
    height: int
    model: str
    version: int
    threshold: float


@dataclass(frozen=True, slots=True)
class Draining:
    """The stream ends because the server does."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, for the prompt or image of this sequence; skipped counts the prompts that it covers as well."""

    sequence: int
    object_id: str
    skipped: int
    watch: Stopwatch
    result: ImageReady | Segmentation | Missing | PolywandError | Draining


@dataclass(frozen=True, slots=True)
class _Ask:
    sequence: int
    prompt: Prompt
    watch: Stopwatch


@dataclass(slots=True)
class _Object:
    """One object's newest prompt that waits, and the task that answers its prompts one after another."""

    waiting: _Ask | None = None
    skipped: int = 0
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Session:
    """Answers the prompts of one stream.

    Newest wins: while an inference of an object runs, at most one newer prompt of it waits; a still newer one replaces
    that. Objects do not wait for each other. Use as an async context manager: on exit everything in work is cancelled.
    """

    def __init__(self, registry: Registry, inference: Inference, limits: Limits) -> None:
        self._registry = registry
        self._inference = inference
        self._limits = limits
        self._picture: Picture | None = None
        self._objects: dict[str, _Object] = {}
        self._memory = MaskMemory(limits.stream_memory_bytes)
        self._places = asyncio.Semaphore(limits.stream_inflight)
        self._outbox: asyncio.Queue[Reply | None] = asyncio.Queue(OUTBOX_REPLIES)
        self._sequence = 0

    async def __aenter__(self) -> "Session":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._cancel_objects()
        self._hold(None)

    async def replies(self) -> AsyncIterator[Reply]:
        """Yield replies until `finish`."""
        while (reply := await self._outbox.get()) is not None:
            yield reply

    async def set_image(self, sequence: int, source: ImageSource, watch: Stopwatch) -> None:
        """Make this the current image and forget the last one's objects; answered with `ImageReady` or an error."""
        picture = await or_error(self._load(sequence, source, watch))
        if isinstance(picture, PolywandError):
            await self.refuse(sequence, "", picture, watch)
            return
        skipped = await self._cancel_objects()
        self._hold(picture)
        await self._outbox.put(Reply(sequence, "", skipped, watch, ImageReady(picture.width, picture.height)))

    async def submit(self, sequence: int, prompt: Prompt, watch: Stopwatch) -> None:
        """Take a prompt; it is answered by its own reply, or covered by that of a newer one of the same object."""
        try:
            self._advance(sequence)
            item = self._object(prompt)
        except PolywandError as error:
            await self.refuse(sequence, prompt.object_id, error, watch)
            return
        if item.waiting is not None:
            item.skipped += 1
            metrics.PROMPTS_SKIPPED.labels(self._label(item.waiting.prompt.model)).inc()
        item.waiting = _Ask(sequence, prompt, watch)
        if item.task is None or item.task.done():
            item.task = asyncio.create_task(self._answer_all(item), name="answer prompts")

    async def refuse(self, sequence: int, object_id: str, error: PolywandError, watch: Stopwatch) -> None:
        """Answer a message with an error; the stream lives on."""
        await self._outbox.put(Reply(sequence, object_id, 0, watch, error))

    async def finish(self, *, draining: bool) -> None:
        """Answer what was taken, say goodbye if the server is draining, and end `replies`."""
        tasks = [item.task for item in self._objects.values() if item.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        if draining:
            await self._outbox.put(Reply(self._sequence, "", 0, Stopwatch(), Draining()))
        await self._outbox.put(None)

    async def _load(self, sequence: int, source: ImageSource, watch: Stopwatch) -> Picture:
        self._advance(sequence)
        return await load_picture(self._inference, source, self._limits, watch)

    def _advance(self, sequence: int) -> None:
        if sequence < self._sequence:
            raise InvalidInputError("sequence", f"{sequence} came after {self._sequence}; it must not decrease")
        self._sequence = sequence

    def _object(self, prompt: Prompt) -> _Object:
        picture = self._picture
        if picture is None:
            raise WrongStateError("prompt", "there is no image yet: send one on this stream first")
        _check_inside(prompt, picture)
        if prompt.object_id not in self._objects and len(self._objects) >= self._limits.objects:
            raise TooLargeError(
                "prompt.object_id", f"there are already {self._limits.objects} objects on this image, the most that fit"
            )
        return self._objects.setdefault(prompt.object_id, _Object())

    async def _answer_all(self, item: _Object) -> None:
        while item.waiting is not None:
            ask, skipped = item.waiting, item.skipped
            item.waiting, item.skipped = None, 0
            result = await self._answer(ask)
            await self._outbox.put(Reply(ask.sequence, ask.prompt.object_id, skipped, ask.watch, result))

    async def _answer(self, ask: _Ask) -> Segmentation | Missing | PolywandError:
        async with self._places:
            ask.watch.waited()
            result = await or_error(self._segment(ask.prompt, ask.watch))
        model = self._label(ask.prompt.model)
        outcome = {Segmentation: "segmentation", Missing: "incomplete"}.get(type(result), "error")
        metrics.PROMPTS.labels(model, outcome).inc()
        metrics.PROMPT_SECONDS.labels(model).observe(ask.watch.total())
        metrics.observe_stages(ask.watch, model)
        return result

    async def _segment(self, prompt: Prompt, watch: Stopwatch) -> Segmentation | Missing:
        picture = self._picture
        assert picture is not None  # no prompt is taken before an image
        tool = self._registry.interactor(prompt.model, prompt.version)
        _check_fits(prompt, tool)
        lacking = missing(prompt, tool.spec.prompt)
        if lacking:
            return lacking
        probabilities = self._memory.exact(prompt, tool.version)
        if probabilities is None:
            previous = self._memory.extended(prompt, tool.version)
            probabilities = await segment(self._inference, tool, picture, prompt, previous, watch)
            self._memory.remember(prompt, tool.version, probabilities)
        threshold = prompt.output.threshold or tool.spec.threshold
        found = probabilities
        with watch.stage("geometry"):
            shape = await self._inference.compute(
                lambda: make_shape(found, threshold, prompt.output, picture.width, picture.height, prompt.clicks())
            )
        return Segmentation(shape, picture.width, picture.height, tool.name, tool.version, threshold)

    async def _cancel_objects(self) -> int:
        """Stop all work and forget all objects; returns how many prompts go unanswered."""
        items = list(self._objects.values())
        running = [item.task for item in items if item.task is not None and not item.task.done()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        skipped = len(running) + sum(item.skipped + (item.waiting is not None) for item in items)
        self._objects.clear()
        self._memory.clear()
        return skipped

    def _hold(self, picture: Picture | None) -> None:
        metrics.IMAGE_MEMORY.inc((picture.nbytes if picture else 0) - (self._picture.nbytes if self._picture else 0))
        self._picture = picture

    def _label(self, model: str) -> str:
        return model if self._registry.knows(model) else metrics.UNKNOWN_MODEL


def _check_inside(prompt: Prompt, picture: Picture) -> None:
    limit = f"the image spans 0..{picture.width} by 0..{picture.height}"
    for number, point in enumerate(prompt.points):
        if not (0 <= point.x <= picture.width and 0 <= point.y <= picture.height):
            raise InvalidInputError(f"prompt.points[{number}]", f"({point.x:g}, {point.y:g}) is outside: {limit}")
    box = prompt.box
    if box is not None and not (box.x0 >= 0 and box.y0 >= 0 and box.x1 <= picture.width and box.y1 <= picture.height):
        raise InvalidInputError(
            "prompt.box", f"({box.x0:g}, {box.y0:g}, {box.x1:g}, {box.y1:g}) reaches outside: {limit}"
        )


def _check_fits(prompt: Prompt, tool: Interactor) -> None:
    needs = tool.spec.prompt
    if prompt.box is not None and needs.box == "none":
        raise InvalidInputError("prompt.box", f"model '{tool.name}' reads no box")
    if needs.extreme_points == 0 and prompt.count(Label.EXTREME):
        raise InvalidInputError("prompt.points", f"model '{tool.name}' reads no extreme points")
    most = max_points(needs, tool.config)
    if len(prompt.points) > most:
        raise InvalidInputError(
            "prompt.points", f"{len(prompt.points)} points; model '{tool.name}' takes at most {most}"
        )
