"""What both pipelines run on: threads for the processor's work, Triton for the networks', metrics for both."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from polywand_server import metrics
from polywand_server.errors import DeadlineError, ModelFailedError, PolywandError
from polywand_server.timing import Stopwatch
from polywand_server.triton.client import TritonClient

T = TypeVar("T")

_OUTCOMES = {DeadlineError: "deadline", ModelFailedError: "failed"}


class Inference:
    """Runs work off the event loop, here or at Triton."""

    def __init__(self, triton: TritonClient, threads: ThreadPoolExecutor, timeout_seconds: float) -> None:
        self._triton = triton
        self._threads = threads
        self._timeout_seconds = timeout_seconds

    async def compute(self, work: Callable[[], T]) -> T:
        """Run work of more than a millisecond in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def infer(
        self,
        model: str,
        version: int,
        inputs: Mapping[str, NDArray[np.generic]],
        outputs: Sequence[str],
        watch: Stopwatch,
    ) -> dict[str, NDArray[np.float32]]:
        """Run one inference at Triton; arrays have the leading batch axis.

        Raises:
            UnavailableError, DeadlineError, ModelFailedError
        """
        outcome = "cancelled"
        try:
            with watch.stage("triton"):
                result = await self._triton.infer(model, version, inputs, outputs, timeout_s=self._timeout_seconds)
            outcome = "ok"
        except PolywandError as error:
            outcome = _OUTCOMES.get(type(error), "unavailable")
            raise
        finally:
            metrics.INFERENCES.labels(model, str(version), outcome).inc()
        watch.inferences += 1
        return result
