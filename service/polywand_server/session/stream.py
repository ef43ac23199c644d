"""One annotator's stream: the current image, and the newest prompt of each object."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from polywand_server.config import MEBIBYTE, Limits
from polywand_server.detectors.proposals import Proposals
from polywand_server.errors import (
    FAILED,
    DeadlineError,
    ImageGivenUpError,
    InternalError,
    InvalidInputError,
    PolywandError,
    TooLargeError,
    WrongStateError,
    or_error,
)
from polywand_server.images import ImageSource, Picture
from polywand_server.images.decoder import Decoder
from polywand_server.images.holders import Holders
from polywand_server.interactors.checks import check_fits, check_inside
from polywand_server.interactors.drawer import Drawer
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.hurry import Hurry
from polywand_server.interactors.memory import Allowance, EstimateMemory
from polywand_server.interactors.predictor import Predictor
from polywand_server.interactors.prompt import Missing, Prompt, missing
from polywand_server.lanes import Lane, RightOfWay
from polywand_server.ops import metrics
from polywand_server.requester import current
from polywand_server.session.answers import Draining, ImageReady, Reply, Segmentation
from polywand_server.session.outbox import Outbox, Unread
from polywand_server.timing import Stopwatch
from polywand_server.tools.kinds import Interactor
from polywand_server.tools.registry import Registry
from polywand_server.tools.retry import use_tool

# Points that are checked at once; no model of ours takes as many.
FEW_POINTS = 256
# Of the prompts of one stream that wait, one for each object at most; after that its messages are left on the wire.
WAITING_BYTES = 8 * MEBIBYTE

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Ask:
    sequence: int
    prompt: Prompt
    watch: Stopwatch


@dataclass(frozen=True, slots=True)
class _Found:
    """What the network made of a prompt, before it is an outline."""

    tool: Interactor
    picture: Picture
    estimate: Estimate
    is_provisional: bool


@dataclass(slots=True)
class _Object:
    """One object's newest prompt that waits, and the task that answers its prompts one after another.

    skipped: prompts that the waiting one replaced. in_work: taken ones that have no reply yet, and how many others the
    reply to each will cover. newer: set when a prompt comes.
    """

    waiting: _Ask | None = None
    skipped: int = 0
    in_work: dict[_Ask, int] = field(default_factory=dict)
    task: asyncio.Task[None] | None = field(default=None, repr=False)
    newer: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def waiting_bytes(self) -> int:
        """What the prompt that waits takes."""
        return self.waiting.prompt.nbytes if self.waiting is not None else 0

    def supersedes(self, prompt: Prompt) -> bool:
        """Whether a newer prompt waits behind this one, and has no use for its answer."""
        return self.waiting is not None and not self.waiting.prompt.builds_on(prompt)


@dataclass(frozen=True, slots=True)
class Workplace:
    """What all sessions share."""

    registry: Registry
    lane: Lane
    decoder: Decoder
    drawer: Drawer
    precedence: RightOfWay
    allowance: Allowance
    holders: Holders
    unread: Unread
    limits: Limits


class Session:
    """Answers the prompts of one stream.

    Newest wins: while an inference of an object runs, at most one newer prompt of it waits; a still newer one replaces
    that. Objects do not wait for each other. Use as an async context manager: on exit everything in work is cancelled.

    overflow: ends the stream, because its replies are not read while too many wait.
    """

    def __init__(self, place: Workplace, overflow: Callable[[], None]) -> None:
        self._place = place
        self.client = current().client
        self._predictor: Predictor | None = None
        self._image_was_given_up = False
        self._loading = False
        self._last_used = time.monotonic()
        self._objects: dict[str, _Object] = {}
        self._places = asyncio.Semaphore(place.limits.stream_inflight)
        self._outbox = Outbox(place.unread, overflow)
        self._sequence = 0
        self._waiting_bytes = 0
        self._room = asyncio.Event()

    async def __aenter__(self) -> "Session":
        self._place.holders.add(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._cancel_objects()
        finally:  # also when this is cancelled itself
            self._place.holders.remove(self)
            self._let_go()
            self._outbox.close()

    def replies(self) -> AsyncGenerator[Reply, None]:
        """Yield replies until `finish`."""
        return self._outbox.replies()

    @property
    def image_bytes(self) -> int:
        """What the current image takes; 0 when there is none."""
        return self._predictor.picture.nbytes if self._predictor is not None else 0

    def unused_seconds(self) -> float:
        """How long nothing has been asked; 0 while something is in work."""
        in_work = any(item.waiting or item.in_work for item in self._objects.values())
        return 0.0 if in_work or self._loading else time.monotonic() - self._last_used

    def give_up_image(self) -> None:
        """Let go of the image, because others need its room; prompts are refused until it is sent again."""
        self._let_go()
        self._objects.clear()
        self._image_was_given_up = True
        metrics.IMAGES.labels("given_up").inc()

    async def set_image(self, sequence: int, source: ImageSource, watch: Stopwatch) -> None:
        """Make this the current image and forget the last one's objects; answered with `ImageReady` or an error."""
        self._loading = True
        try:
            picture = await or_error(self._load(sequence, source, watch))
        finally:
            self._loading = False
            self._last_used = time.monotonic()
        if isinstance(picture, PolywandError):
            await self.refuse(sequence, picture, watch)
            return
        metrics.observe_stages(watch, metrics.NO_MODEL)
        skipped = await self._cancel_objects()
        self._let_go()
        self._image_was_given_up = False
        self._predictor = self._work_on(picture)
        await self._outbox.put(Reply(sequence, "", skipped, watch, ImageReady(picture.width, picture.height)))

    async def submit(self, sequence: int, prompt: Prompt, watch: Stopwatch) -> None:
        """Take a prompt; it is answered by its own reply, or covered by that of a newer one of the same object."""
        self._last_used = time.monotonic()
        try:
            self._advance(sequence)
            await self._check_many_points(prompt)
            item = self._object(prompt)
        except PolywandError as error:
            await self.refuse_prompt(sequence, prompt.object_id, prompt.model, error, watch)
            return
        with self._skipped_if_cancelled(prompt.model):
            await self._make_room(prompt, item)
        if item.waiting is not None:
            self._waiting_bytes -= item.waiting_bytes
            item.skipped += 1
            metrics.PROMPTS_SKIPPED.labels(self._label(item.waiting.prompt.model)).inc()
        item.waiting = _Ask(sequence, prompt, watch)
        self._waiting_bytes += prompt.nbytes
        item.newer.set()
        if item.task is None or item.task.done():
            item.task = asyncio.create_task(self._work(item), name="answer prompts")

    async def _check_many_points(self, prompt: Prompt) -> None:
        """Check in a thread what would hold the event loop."""
        predictor = self._predictor
        if predictor is not None and len(prompt.points) > FEW_POINTS:
            await self._place.lane.compute(lambda: check_inside(prompt, predictor.picture))

    async def _make_room(self, prompt: Prompt, item: _Object) -> None:
        """Wait until the prompts that wait leave room for another; meanwhile the stream is not read.

        The one that this one replaces takes none, or the newest would wait behind what it makes superfluous.
        """
        while (others := self._waiting_bytes - item.waiting_bytes) and others + prompt.nbytes > WAITING_BYTES:
            self._room.clear()
            await self._room.wait()

    async def refuse(self, sequence: int, error: PolywandError, watch: Stopwatch) -> None:
        """Answer a message that is no prompt with an error; the stream lives on."""
        await self._outbox.put(Reply(sequence, "", 0, watch, error))

    async def refuse_prompt(
        self, sequence: int, object_id: str, model: str, error: PolywandError, watch: Stopwatch
    ) -> None:
        """Answer a prompt with an error before it is taken; the stream lives on. model: as the client named it."""
        seconds = watch.total()
        with self._skipped_if_cancelled(model):
            await self._outbox.put(Reply(sequence, object_id, 0, watch, error))
        self._count(model, "error", watch, seconds)

    async def finish(self, *, draining: bool) -> None:
        """Answer what was taken, say goodbye if the server is draining, and end `replies`."""
        tasks = [item.task for item in self._objects.values() if item.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        if draining:
            await self._outbox.put(Reply(self._sequence, "", 0, Stopwatch(), Draining()))
        await self._outbox.put(None)

    async def _load(self, sequence: int, source: ImageSource, watch: Stopwatch) -> Picture:
        self._advance(sequence)
        return await self._place.decoder.decode(source, watch, self._predictor.picture if self._predictor else None)

    def _work_on(self, picture: Picture) -> Predictor:
        place = self._place
        proposals = Proposals(place.registry, place.lane, picture)
        return Predictor(place.lane, place.drawer, proposals, EstimateMemory(place.allowance), picture)

    def _let_go(self) -> None:
        """Forget the image and all that was found on it."""
        predictor, self._predictor = self._predictor, None
        if predictor is not None:
            predictor.close()

    def _advance(self, sequence: int) -> None:
        if sequence < self._sequence:
            raise InvalidInputError("sequence", f"{sequence} came after {self._sequence}; it must not decrease")
        self._sequence = sequence

    def _object(self, prompt: Prompt) -> _Object:
        if self._image_was_given_up:
            raise ImageGivenUpError(
                "prompt", "this stream was idle, and its image made room for others: send the image again"
            )
        if self._predictor is None:
            raise WrongStateError("prompt", "there is no image yet: send one on this stream first")
        if len(prompt.points) <= FEW_POINTS:
            check_inside(prompt, self._predictor.picture)
        limit = self._place.limits.objects
        if prompt.object_id not in self._objects and len(self._objects) >= limit:
            raise TooLargeError(
                "prompt.object_id", f"there are already {limit} objects on this image, the most that fit"
            )
        return self._objects.setdefault(prompt.object_id, _Object())

    async def _work(self, item: _Object) -> None:
        """Answer an object's prompts; none is lost, whatever happens."""
        while item.waiting is not None:
            first = item.waiting
            try:
                await self._answer_all(item)
            except Exception:
                _log.exception("answering the prompts of an object failed")
                if item.waiting is first:  # it had not even been taken
                    self._next(item)
                for ask in list(item.in_work):
                    await self._give_up(ask, item)

    async def _give_up(self, ask: _Ask, item: _Object) -> None:
        """Answer a prompt that failed for a reason that nobody thought of, unless it has its answer."""
        skipped, seconds = item.in_work.get(ask), ask.watch.total()
        if skipped is None:
            return
        try:
            error = InternalError(FAILED)
            await self._outbox.put(Reply(ask.sequence, ask.prompt.object_id, skipped, ask.watch, error))
            del item.in_work[ask]
            self._count(ask.prompt.model, "error", ask.watch, seconds)
        except Exception:
            _log.exception("a prompt could not be given up")

    async def _answer_all(self, item: _Object) -> None:
        """Answer an object's prompts in their order; while one's outline is drawn, the network sees the next.

        Every prompt in work holds one of the stream's places until its reply is in the outbox, which bounds what a
        stream makes others wait for, and what it holds while its client does not read.
        """
        drawing: asyncio.Task[None] | None = None
        try:
            while True:
                if item.waiting is None:
                    if drawing is None:
                        return
                    await drawing
                    drawing = None
                    continue
                await self._places.acquire()
                frames_may_go_on = self._place.precedence.prompt()
                try:
                    ask = self._next(item)
                    found = await self._find(ask, item)
                    if drawing is not None:
                        await drawing
                except BaseException:
                    self._places.release()
                    frames_may_go_on()
                    raise
                answering = self._reply(ask, found, item, frames_may_go_on)
                drawing = asyncio.create_task(answering, name="draw an outline")
                drawing.add_done_callback(partial(self._answered, frames_may_go_on))
        finally:
            if drawing is not None:
                drawing.cancel()
                await asyncio.gather(drawing, return_exceptions=True)

    def _answered(self, frames_may_go_on: Callable[[], None], _: object) -> None:
        self._places.release()
        frames_may_go_on()

    def _next(self, item: _Object) -> _Ask:
        """Take the prompt that waits."""
        assert item.waiting is not None  # only a newer prompt takes its place
        ask = item.waiting
        self._waiting_bytes -= item.waiting_bytes
        item.in_work[ask] = item.skipped
        item.waiting, item.skipped = None, 0
        self._room.set()
        return ask

    async def _find(self, ask: _Ask, item: _Object) -> _Found | Missing | PolywandError:
        ask.watch.waited()
        return await or_error(self._look_in_time(ask.prompt, item, ask.watch))

    async def _reply(
        self,
        ask: _Ask,
        found: _Found | Missing | PolywandError,
        item: _Object,
        frames_may_go_on: Callable[[], None],
    ) -> None:
        """Answer one prompt, whatever happens, and count it."""
        try:
            result: Segmentation | Missing | PolywandError
            if isinstance(found, _Found):
                result = await or_error(self._draw(ask.prompt, found, ask.watch))
            else:
                result = found
            frames_may_go_on()  # whether or not this reply is read
            outcome = {Segmentation: "segmentation", Missing: "incomplete"}.get(type(result), "error")
            seconds, skipped = ask.watch.total(), item.in_work[ask]
            await self._outbox.put(Reply(ask.sequence, ask.prompt.object_id, skipped, ask.watch, result))
            self._last_used = time.monotonic()
            # Once the reply is sure to leave: every prompt counts as answered or as skipped, and none as both.
            del item.in_work[ask]
            self._count(ask.prompt.model, outcome, ask.watch, seconds)
        except Exception:
            _log.exception("answering a prompt failed")
            await self._give_up(ask, item)

    async def _look_in_time(self, prompt: Prompt, item: _Object, watch: Stopwatch) -> _Found | Missing:
        seconds = self._place.limits.prompt_seconds
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await self._look(prompt, item, watch)
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineError(
                f"the prompt took longer than {seconds:g} s, the most that this server gives one; the clicks that were "
                "worked through by then are remembered for a while: send it again, or a simpler one"
            ) from None
        finally:
            del limit  # it knows its task, and when that is cancelled, it knows this frame: none of them would go

    async def _look(self, prompt: Prompt, item: _Object, watch: Stopwatch) -> _Found | Missing:
        registry = self._place.registry
        return await use_tool(
            registry,
            lambda: registry.interactor(prompt.model, prompt.version),
            lambda tool: self._look_with(tool, prompt, item, watch),
        )

    async def _look_with(self, tool: Interactor, prompt: Prompt, item: _Object, watch: Stopwatch) -> _Found | Missing:
        predictor = self._predictor
        assert predictor is not None  # no prompt is taken before an image
        check_fits(prompt, tool)
        lacking = missing(prompt, tool.spec.prompt)
        if lacking:
            return lacking
        hurry = Hurry(lambda: item.supersedes(prompt), item.newer)
        estimate = await predictor.find(tool, prompt, watch, hurry)
        return _Found(tool, predictor.picture, estimate, predictor.is_provisional(tool, estimate))

    async def _draw(self, prompt: Prompt, found: _Found, watch: Stopwatch) -> Segmentation:
        tool, picture, probabilities = found.tool, found.picture, found.estimate.probabilities
        threshold = prompt.output.threshold or tool.spec.threshold
        drawer, size = self._place.drawer, (picture.width, picture.height)
        with watch.stage("geometry"):
            if prompt.seed is not None and prompt.is_seed_alone:
                shape = await drawer.seed_shape(prompt.seed, probabilities, threshold, prompt.output, size)
            else:
                shape = await drawer.shape(
                    probabilities, threshold, prompt.output, size, prompt.clicks(), "prompt.output.threshold"
                )
        return Segmentation(
            shape, picture.width, picture.height, tool.name, tool.version, threshold, found.is_provisional
        )

    async def _cancel_objects(self) -> int:
        """Stop all work and forget all objects; returns how many prompts go unanswered."""
        items = list(self._objects.values())
        running = [item.task for item in items if item.task is not None and not item.task.done()]
        for task in running:
            task.cancel()
        try:
            await asyncio.gather(*running, return_exceptions=True)
        finally:  # also when this is cancelled itself
            skipped = self._forget_objects(items)
        return skipped

    def _forget_objects(self, items: Sequence[_Object]) -> int:
        """Count what goes unanswered; returns how many prompts."""
        for item in items:
            item.task = None  # its traceback holds its frames, and these the image, until the collector comes by
        left = [ask for item in items for ask in (*item.in_work, item.waiting) if ask is not None]
        for ask in left:
            metrics.PROMPTS_SKIPPED.labels(self._label(ask.prompt.model)).inc()
        skipped = len(left) + sum(item.skipped + sum(item.in_work.values()) for item in items)
        self._objects.clear()
        self._waiting_bytes = 0
        return skipped

    @contextmanager
    def _skipped_if_cancelled(self, model: str) -> Iterator[None]:
        """Count a prompt whose stream ends before it is taken or refused."""
        try:
            yield
        except asyncio.CancelledError:
            metrics.PROMPTS_SKIPPED.labels(self._label(model)).inc()
            raise

    def _count(self, model: str, outcome: str, watch: Stopwatch, seconds: float) -> None:
        label = self._label(model)
        metrics.PROMPTS.labels(label, outcome).inc()
        metrics.PROMPT_SECONDS.labels(label).observe(seconds)
        metrics.observe_stages(watch, label)

    def _label(self, model: str) -> str:
        return model if self._place.registry.knows(model) else metrics.UNKNOWN_MODEL
