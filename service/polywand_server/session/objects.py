"""One object's prompts: the newest one waits, and those in work are answered one after another, each exactly once."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from polywand_server.admission.quotas import Accounts
from polywand_server.errors import FAILED, InternalError, PolywandError, or_error
from polywand_server.interactors.estimate import Found, Segmentation
from polywand_server.interactors.predictor import Predictor
from polywand_server.interactors.prompt import Incomplete, Prompt, Supersession
from polywand_server.lanes import RightOfWay
from polywand_server.session.answers import Reply, answering_model, outcome, prompt_timeout
from polywand_server.session.backlog import Backlog
from polywand_server.session.counts import PromptCounts
from polywand_server.session.outbox import Outbox
from polywand_server.timing import Stopwatch

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class PromptRequest:
    """A prompt, its number on the stream, and the timer that was started when it was received."""

    sequence: int
    prompt: Prompt
    timer: Stopwatch


@dataclass(frozen=True, slots=True)
class ObjectServices:
    """Services that the objects of one image share.

    permits: for prompts of the stream in work. prompt_seconds: the time limit of `Predictor.find`.
    """

    predictor: Predictor
    outbox: Outbox
    permits: asyncio.Semaphore
    right_of_way: RightOfWay
    backlog: Backlog
    counts: PromptCounts
    accounts: Accounts
    prompt_seconds: float


class ObjectQueue:
    """The prompts of one object on one image.

    Newest wins: while one is in work, at most one newer prompt waits; a still newer one replaces that.
    """

    def __init__(self, services: ObjectServices) -> None:
        self._services = services
        self._waiting: PromptRequest | None = None
        self._skipped = 0  # prompts that the waiting one has replaced
        self._in_work: dict[PromptRequest, int] = {}  # to the number of replaced prompts that its reply covers
        self._task: asyncio.Task[None] | None = None
        self._new_prompt = asyncio.Event()
        self._last_reply = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether a prompt waits or is in work."""
        return self._waiting is not None or bool(self._in_work)

    @property
    def last_reply(self) -> float:
        """When the last reply was put into the outbox, on the monotonic clock; 0 before the first."""
        return self._last_reply

    @property
    def waiting_bytes(self) -> int:
        """Memory of the prompt that waits."""
        return self._waiting.prompt.nbytes if self._waiting is not None else 0

    def put(self, request: PromptRequest) -> None:
        """Queue a prompt in place of the one that waits; it gets its own reply, or is covered by a newer one's."""
        services = self._services
        if self._waiting is not None:
            services.backlog.remove(self.waiting_bytes)
            self._skipped += 1
            services.counts.skipped(self._waiting.prompt.model)
        else:
            services.counts.waits(1)
        self._waiting = request
        services.backlog.add(self.waiting_bytes)
        self._new_prompt.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="answer prompts")

    async def finish(self) -> None:
        """Wait until every prompt is answered."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def cancel(self) -> asyncio.Task[None] | None:
        """Cancel the work; return the task that has still to end, or None."""
        if self._task is None or self._task.done():
            return None
        self._task.cancel()
        return self._task

    def abandon(self) -> int:
        """Discard the unanswered prompts, after `cancel`; return their number."""
        self._task = None  # its traceback holds its frames, and these the image, until the garbage collector runs
        left = [request for request in (*self._in_work, self._waiting) if request is not None]
        for request in left:
            self._services.counts.skipped(request.prompt.model)
        self._services.backlog.remove(self.waiting_bytes)
        if self._waiting is not None:
            self._services.counts.waits(-1)
        unanswered = len(left) + self._skipped + sum(self._in_work.values())
        self._waiting, self._skipped, self._in_work = None, 0, {}
        return unanswered

    async def _run(self) -> None:
        """Answer all prompts; an unexpected error is answered too."""
        while self._waiting is not None:
            first = self._waiting
            try:
                await self._answer_all()
            except Exception:
                _log.exception("unexpected error while answering the prompts of an object")
                if self._waiting is first:  # it was not in work yet
                    self._begin()
                for request in list(self._in_work):
                    await self._fail(request)

    async def _answer_all(self) -> None:
        """Answer prompts in their order; while the outline of one is drawn, the network works on the next.

        A prompt in work holds a permit of the stream until its reply is in the outbox. That bounds how long a stream
        keeps others waiting, and the memory that it holds while its client does not read.
        """
        services = self._services
        drawing: asyncio.Task[None] | None = None
        try:
            while True:
                if self._waiting is None:
                    if drawing is None:
                        return
                    await drawing
                    drawing = None
                    continue
                await services.permits.acquire()
                release_frames = services.right_of_way.prompt()
                try:
                    request = self._begin()
                    found = await self._find(request)
                    if drawing is not None:
                        await drawing
                except BaseException:
                    services.permits.release()
                    release_frames()
                    raise
                drawing = asyncio.create_task(self._reply(request, found, release_frames), name="draw an outline")
                drawing.add_done_callback(partial(self._end, release_frames))
        finally:
            if drawing is not None:
                drawing.cancel()
                await asyncio.gather(drawing, return_exceptions=True)

    def _begin(self) -> PromptRequest:
        """Move the waiting prompt into work."""
        request = self._waiting
        assert request is not None  # the callers have checked, and only a newer prompt replaces it
        self._services.backlog.remove(self.waiting_bytes)
        self._services.counts.waits(-1)
        self._in_work[request] = self._skipped
        self._waiting, self._skipped = None, 0
        return request

    def _end(self, release_frames: Callable[[], None], _: object) -> None:
        self._services.permits.release()
        release_frames()

    async def _find(self, request: PromptRequest) -> Found | Incomplete | PolywandError:
        request.timer.waited()
        return await or_error(self._find_in_time(request))

    async def _find_in_time(self, request: PromptRequest) -> Found | Incomplete:
        self._services.accounts.prompt()  # only now: one that a newer one replaces costs nothing
        seconds = self._services.prompt_seconds
        newer = Supersession(lambda: self._supersedes(request.prompt), self._new_prompt)
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await self._services.predictor.find(request.prompt, request.timer, newer)
        except TimeoutError:
            if not limit.expired():
                raise
            advice = (
                "; the clicks that were worked through by then are remembered for a while: send it again, or a simpler "
                "one"
            )
            raise prompt_timeout(seconds, advice) from None
        finally:
            del limit  # else its task, when cancelled, and this frame hold each other, and with them the image

    def _supersedes(self, prompt: Prompt) -> bool:
        """Whether a newer prompt waits that does not build on this one."""
        return self._waiting is not None and not self._waiting.prompt.builds_on(prompt)

    async def _reply(
        self, request: PromptRequest, found: Found | Incomplete | PolywandError, release_frames: Callable[[], None]
    ) -> None:
        """Draw the outline and answer the prompt; an unexpected error is answered, too."""
        prompt, timer = request.prompt, request.timer
        try:
            result: Segmentation | Incomplete | PolywandError
            if isinstance(found, Found):
                result = await or_error(self._services.predictor.draw(prompt, found, timer))
            else:
                result = found
            release_frames()  # whether or not this reply is read
            await self._put(request, result)
        except Exception:
            _log.exception("unexpected error while answering a prompt")
            await self._fail(request)

    async def _fail(self, request: PromptRequest) -> None:
        """Answer a prompt that failed with an unexpected error, unless it is answered already."""
        try:
            if request in self._in_work:
                await self._put(request, InternalError(FAILED))
        except Exception:
            _log.exception("a prompt that failed could not be answered")

    async def _put(self, request: PromptRequest, result: Segmentation | Incomplete | PolywandError) -> None:
        """Put the reply to a prompt into the outbox, and count it."""
        prompt, timer = request.prompt, request.timer
        seconds = timer.total()
        reply = Reply(request.sequence, prompt.object_id, self._in_work[request], timer, result)
        await self._services.outbox.put(reply)
        self._last_reply = time.monotonic()
        # Only now that the reply is queued: each prompt counts as answered or as skipped, never as both.
        del self._in_work[request]
        self._services.counts.answered(answering_model(prompt.model, result), outcome(result), timer, seconds)
