"""What both pipelines run on: threads for the processor's work, Triton for the networks', metrics for both."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TypeVar

from polywand_server import metrics
from polywand_server.errors import DeadlineError, ModelFailedError, PolywandError
from polywand_server.precedence import Precedence
from polywand_server.timing import Stopwatch
from polywand_server.triton.client import TritonClient
from polywand_server.triton.exchange import Exchange, Forms, exchange
from polywand_server.triton.shared_memory import SharedMemory
from polywand_server.triton.tensors import Array, TensorForm
from polywand_server.turns import Turns

T = TypeVar("T")

# Where a model in Triton has priority levels, a prompt's inference overtakes a frame's, which has the model's default.
PROMPT_PRIORITY = 1
FRAME_PRIORITY = 0

_OUTCOMES = {DeadlineError: "deadline", ModelFailedError: "failed"}


class ModelTurns:
    """Turns at each model in Triton, of all kinds of work together. most: inferences that one model is given at once.

    What Triton has been given it works on in order, so what waits for its turn waits here, where turns are fair.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._turns: dict[str, Turns] = {}

    def at(self, model: str) -> Turns:
        """Those at one model."""
        return self._turns.setdefault(model, Turns(self._most))


class Inference:
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
        gives_way_to: Precedence | None = None,
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

    async def turn(self, watch: Stopwatch) -> None:
        """Wait until no more urgent work is under way, or for as long as can be asked; call it before each stage."""
        if self._gives_way_to is not None:
            with watch.stage("wait"):
                await self._gives_way_to.frame()

    async def compute(self, work: Callable[[], T]) -> T:
        """Run work of more than a millisecond in a thread."""
        async with self._thread_turns.turn():
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def exchange(
        self, model: str, version: int, inputs: Mapping[str, TensorForm], outputs: Forms
    ) -> AbstractAsyncContextManager[Exchange]:
        """Make room for one inference's tensors until the block ends; fill them, then `run`.

        Raises:
            UnavailableError, DeadlineError
        """
        return exchange(self._triton, self._memory, model, version, inputs, outputs)

    async def run(self, exchange: Exchange, watch: Stopwatch) -> dict[str, Array]:
        """Run one inference at Triton; the outputs are valid until the exchange's block ends.

        Raises:
            UnavailableError, DeadlineError, ModelFailedError
        """
        outcome = "cancelled"
        try:
            async with AsyncExitStack() as stack:
                await self._wait_for_turn(stack, exchange.model, watch)
                with watch.stage("triton"):
                    result = await exchange.run(timeout_s=self._timeout_seconds, priority=self._priority)
            outcome = "ok"
        except PolywandError as error:
            outcome = _OUTCOMES.get(type(error), "unavailable")
            raise
        finally:
            metrics.INFERENCES.labels(exchange.model, str(exchange.version), outcome).inc()
        watch.inferences += 1
        return result

    async def _wait_for_turn(self, stack: AsyncExitStack, model: str, watch: Stopwatch) -> None:
        with watch.stage("wait"):
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    await stack.enter_async_context(self._model_turns.at(model).turn())
            except TimeoutError:
                raise DeadlineError(f"no turn at model '{model}' came within {self._timeout_seconds:g} s") from None
