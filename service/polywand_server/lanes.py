"""Lanes: the threads and Triton priority of one kind of work, and which kind has the right of way."""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from contextvars import copy_context
from typing import TypeVar

from polywand_server.admission.turns import Turns
from polywand_server.errors import DeadlineError, ModelFailedError, PolywandError, Reason
from polywand_server.ops import metrics, tracing
from polywand_server.timing import Stopwatch
from polywand_server.triton.client import TritonClient
from polywand_server.triton.exchange import Exchange, exchange
from polywand_server.triton.shared_memory import SharedMemory
from polywand_server.triton.tensors import Array, TensorSpec, TensorSpecs

T = TypeVar("T")

# Where a model in Triton has priority levels, a prompt's inference overtakes a frame's, which has the model's default.
PROMPT_PRIORITY = 1
FRAME_PRIORITY = 0

# While prompts are in work, all frames together run one stage per this time: they finish under any load, and a click
# never waits for more than one stage.
PATIENCE_SECONDS = 0.25
# After a prompt, another one is expected for this long.
EXPECTED_SECONDS = 2.0

_OUTCOMES = {DeadlineError: "deadline", ModelFailedError: "failed"}


class RightOfWay:
    """Knows whether a prompt is in work; frames ask before each of their stages."""

    def __init__(self) -> None:
        self._prompts = 0
        self._pause = asyncio.Event()
        self._pause.set()
        self._last_prompt = -EXPECTED_SECONDS
        self._next_stage = 0.0

    @property
    def prompts_expected(self) -> bool:
        """Whether a prompt is in work, or was within EXPECTED_SECONDS: then frames' stages have to be short."""
        return self._prompts > 0 or time.monotonic() - self._last_prompt < EXPECTED_SECONDS

    def prompt(self) -> Callable[[], None]:
        """Make frames wait until the returned function is called; further calls of it do nothing."""
        self._prompts += 1
        metrics.PROMPTS_IN_WORK.inc()
        self._pause.clear()
        is_held = True

        def release() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                self._release()

        return release

    async def frame(self) -> None:
        """Wait until no prompt is in work, or until this frame may run one stage in spite of it."""
        patient_until = time.monotonic() + PATIENCE_SECONDS
        while self._prompts:
            now = time.monotonic()
            due = max(patient_until, self._next_stage)
            if now >= due:
                self._next_stage = now + PATIENCE_SECONDS
                return
            try:
                async with asyncio.timeout(due - now):
                    await self._pause.wait()
            except TimeoutError:
                pass  # it may be due now

    def _release(self) -> None:
        self._prompts -= 1
        metrics.PROMPTS_IN_WORK.dec()
        self._last_prompt = time.monotonic()
        if self._prompts == 0:
            self._pause.set()


class ModelTurns:
    """Turns at each model in Triton, for all kinds of work. most: inferences that run at one model at once.

    Triton's own queue is in order of arrival; requests wait here instead, where turns are fair.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._turns: dict[str, Turns] = {}

    def at(self, model: str) -> Turns:
        """Return the turns at one model."""
        return self._turns.setdefault(model, Turns(self._most))


class Lane:
    """Runs one kind of work off the event loop, here or at Triton.

    memory: shared with Triton; None when there is none. threads: for this kind of work alone, so that short work does
    not wait behind long; clients take turns in them. model_turns: at Triton. priority: there. gives_way_to: more urgent
    work, for which `turn` waits.
    """

    def __init__(
        self,
        triton: TritonClient,
        memory: SharedMemory | None,
        threads: ThreadPoolExecutor,
        model_turns: ModelTurns,
        *,
        thread_count: int,
        timeout_seconds: float,
        priority: int,
        gives_way_to: RightOfWay | None = None,
    ) -> None:
        self._triton = triton
        self._memory = memory
        self._threads = threads
        self._thread_turns = Turns(thread_count, others_part=2)
        self._model_turns = model_turns
        self._timeout_seconds = timeout_seconds
        self._priority = priority
        self._gives_way_to = gives_way_to

    @property
    def prompts_expected(self) -> bool:
        """Whether more urgent work is under way or about to come, so that each stage has to be short."""
        return self._gives_way_to is not None and self._gives_way_to.prompts_expected

    async def turn(self, timer: Stopwatch) -> None:
        """Wait until no more urgent work is under way, or as `RightOfWay.frame` limits it; call before each stage."""
        if self._gives_way_to is not None:
            with timer.stage("wait"):
                await self._gives_way_to.frame()

    async def compute(self, work: Callable[[], T]) -> T:
        """Run work of more than a millisecond in a thread."""
        async with self._thread_turns.turn():
            return await asyncio.get_running_loop().run_in_executor(self._threads, copy_context().run, work)

    async def compute_if(self, is_long: bool, work: Callable[[], T]) -> T:
        """Run work in a thread if it is long, else at once."""
        return await self.compute(work) if is_long else work()

    def exchange(
        self, model: str, version: int, inputs: Mapping[str, TensorSpec], outputs: TensorSpecs
    ) -> AbstractAsyncContextManager[Exchange]:
        """Allocate one inference's tensors until the block ends; fill them, then `run`.

        Raises:
            UnavailableError, DeadlineError
        """
        return exchange(self._triton, self._memory, model, version, inputs, outputs)

    async def run(self, exchange: Exchange, timer: Stopwatch) -> dict[str, Array]:
        """Run one inference at Triton; the outputs are valid until the exchange's block ends.

        Raises:
            UnavailableError, DeadlineError, ModelFailedError
        """
        outcome = "cancelled"
        try:
            async with AsyncExitStack() as stack:
                await self._wait_for_turn(stack, exchange.model, timer)
                with timer.stage("triton"):
                    result = await exchange.run(
                        timeout_s=self._timeout_seconds, priority=self._priority, traceparent=tracing.traceparent(timer)
                    )
            outcome = "ok"
        except PolywandError as error:
            outcome = _OUTCOMES.get(type(error), "unavailable")
            raise
        finally:
            metrics.INFERENCES.labels(exchange.model, str(exchange.version), outcome).inc()
        timer.count_inference()
        return result

    async def _wait_for_turn(self, stack: AsyncExitStack, model: str, timer: Stopwatch) -> None:
        with timer.stage("wait"):
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    await stack.enter_async_context(self._model_turns.at(model).turn())
            except TimeoutError:
                text = f"no turn at model '{model}' came within {self._timeout_seconds:g} s"
                raise DeadlineError(text, reason=Reason.SERVER_TIMEOUT) from None
