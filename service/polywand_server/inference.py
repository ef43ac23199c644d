"""What both pipelines run on: threads for the processor's work, Triton for the networks', metrics for both."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from polywand_server import metrics
from polywand_server.errors import DeadlineError, ModelFailedError, PolywandError
from polywand_server.precedence import Precedence
from polywand_server.timing import Stopwatch
from polywand_server.triton.client import TritonClient
from polywand_server.triton.exchange import Exchange, Forms, exchange
from polywand_server.triton.shared_memory import SharedMemory
from polywand_server.triton.tensors import Array, TensorForm

T = TypeVar("T")

# Where a model in Triton has priority levels, a prompt's inference overtakes a frame's, which has the model's default.
PROMPT_PRIORITY = 1
FRAME_PRIORITY = 0

_OUTCOMES = {DeadlineError: "deadline", ModelFailedError: "failed"}


class Inference:
    """Runs one kind of work off the event loop, here or at Triton.

    memory: shared with Triton; None when there is none. threads: for this kind of work alone, so that short work does
    not wait behind long. priority: at Triton. gives_way_to: more urgent work, for which `turn` waits.
    """

    def __init__(
        self,
        triton: TritonClient,
        memory: SharedMemory | None,
        threads: ThreadPoolExecutor,
        *,
        timeout_seconds: float,
        priority: int,
        gives_way_to: Precedence | None = None,
    ) -> None:
        self._triton = triton
        self._memory = memory
        self._threads = threads
        self._timeout_seconds = timeout_seconds
        self._priority = priority
        self._gives_way_to = gives_way_to

    async def turn(self, watch: Stopwatch) -> None:
        """Wait until no more urgent work is under way, or for as long as can be asked; call it before each stage."""
        if self._gives_way_to is not None:
            with watch.stage("wait"):
                await self._gives_way_to.frame()

    async def compute(self, work: Callable[[], T]) -> T:
        """Run work of more than a millisecond in a thread."""
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
