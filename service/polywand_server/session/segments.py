"""Segments: prompts on one image without a stream. Each gets an answer of its own, whatever becomes of the others."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from polywand_server.admission.permits import FramePermits
from polywand_server.admission.quotas import Accounts
from polywand_server.errors import PolywandError, or_error
from polywand_server.geometry.boxes import Box
from polywand_server.images import ImageSource, ImageStore
from polywand_server.interactors.prompt import Prompt
from polywand_server.interactors.windowed import Answering, Predictors
from polywand_server.lanes import RightOfWay
from polywand_server.ops import tracing
from polywand_server.session.answers import Answer, answering_model, outcome, prompt_timeout
from polywand_server.session.counts import PromptCounts, WaitingPrompts
from polywand_server.timing import Stopwatch

T = TypeVar("T")

# The shortest pause between two looks at how long a prompt has been worked on.
SHORTEST_PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class RefusedPrompt:
    """A prompt that could not be read. model: as the client named it."""

    model: str
    error: PolywandError


@dataclass(frozen=True, slots=True)
class Segmented(Generic[T]):
    """The result of one call.

    width, height: of the image, pixels. digest: of the image. results: of `finish`, in the order of the prompts.
    """

    width: int
    height: int
    digest: bytes
    results: Sequence[T]


@dataclass(frozen=True, slots=True)
class SegmentServices:
    """Services and limits of all calls.

    prompts, frames: make predictors, which remember nothing; their work goes first, or gives way to prompts.
    permits: of frames. prompt_seconds: the limit of the work on one prompt.
    """

    store: ImageStore
    prompts: Predictors
    frames: Predictors
    right_of_way: RightOfWay
    permits: FramePermits
    counts: PromptCounts
    accounts: Accounts
    prompt_seconds: float


class Segments:
    """Answers calls. A call of one prompt is a click; one of many is work like a frame, and gives way to clicks."""

    def __init__(self, services: SegmentServices) -> None:
        self._services = services

    def waiting(self) -> WaitingPrompts:
        """Count the prompts of a call that waits, from before they are read."""
        return self._services.counts.waiting()

    async def one(
        self,
        source: ImageSource,
        roi: Box | None,
        prompt: Prompt | RefusedPrompt,
        timer: Stopwatch,
        waiting: WaitingPrompts,
        finish: "Finish[T]",
    ) -> Segmented[T]:
        """Answer the only prompt of a call.

        roi: the part of the image that counts. waiting: the prompt, until it begins. finish: converts the answer.

        Raises:
            InvalidInputError, TooLargeError, QuotaError: of the image, or the part.
        """
        services = self._services
        async with services.store.hold(source, timer) as lease:
            picture = lease.picture
            predictor, release_frames = await services.prompts.of(picture, roi), services.right_of_way.prompt()
            waiting.begin()
            try:
                answer = await self._answer(predictor, prompt, timer)
            finally:
                release_frames()
                predictor.close()
            return Segmented(picture.width, picture.height, lease.digest, [await finish(0, answer)])

    async def many(
        self,
        source: ImageSource,
        roi: Box | None,
        prompts: Sequence[Prompt | RefusedPrompt],
        timer: Stopwatch,
        until_paused: AsyncExitStack,
        waiting: WaitingPrompts,
        finish: "Finish[T]",
    ) -> Segmented[T]:
        """Answer the prompts of a call, several side by side.

        roi: the part of the image that counts. until_paused: see `FramePermits.permit`. waiting: the prompts,
        until each begins. finish: converts an answer, so that few are held at once.

        Raises:
            InvalidInputError, TooLargeError, QuotaError: of the image, or the part.
        """
        services = self._services
        async with services.permits.permit(until_paused) as permit:
            timer.waited()
            await services.frames.lane.turn(timer)
            async with services.store.hold(source, timer) as lease:
                picture = lease.picture
                predictor = await services.frames.of(picture, roi)

                async def work_off(number: int) -> T:
                    waiting.begin()
                    with services.counts.in_work():
                        return await finish(number, await self._answer(predictor, prompts[number], timer))

                jobs = (partial(work_off, number) for number in range(len(prompts)))
                try:
                    results = await permit.side_by_side(jobs, picture.nbytes, timer)
                finally:
                    predictor.close()
                return Segmented(picture.width, picture.height, lease.digest, results)

    async def _answer(self, predictor: Answering, prompt: Prompt | RefusedPrompt, timer: Stopwatch) -> Answer:
        """Answer and count a prompt. timer: of the call."""
        counts, own = self._services.counts, tracing.timer()
        answer: Answer
        if isinstance(prompt, RefusedPrompt):
            answer = prompt.error
        else:
            with counts.skipped_if_cancelled(prompt.model):
                answer = await or_error(self._answer_in_time(predictor, prompt, own))
        counts.answered(answering_model(prompt.model, answer), outcome(answer), own, own.total())
        timer.add(own)
        return answer

    async def _answer_in_time(self, predictor: Answering, prompt: Prompt, timer: Stopwatch) -> Answer:
        self._services.accounts.prompt()
        return await _in_time(predictor.answer(prompt, timer), timer, self._services.prompt_seconds)


# Converts the answer to the prompt of this number.
Finish = Callable[[int, Answer], Awaitable[T]]


async def _in_time(work: Coroutine[Any, Any, T], timer: Stopwatch, seconds: float) -> T:
    """Await the work on a prompt. timer: of the prompt; waiting does not count.

    Raises:
        DeadlineError: it took longer.
    """
    task = asyncio.create_task(work, name="answer a prompt")
    try:
        while not task.done():
            left = seconds - timer.worked()
            if left <= 0:
                raise prompt_timeout(seconds, ": send a simpler one")
            await asyncio.wait((task,), timeout=max(left, SHORTEST_PAUSE_SECONDS))
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
        del task  # else its error and this frame hold each other, and with them the image
