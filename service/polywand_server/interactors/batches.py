"""Batches: passes on one picture that wait for the same model share an inference, where the model takes batches."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from polywand_server.errors import PolywandError
from polywand_server.images.regions import Region
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.prompt import Prompt
from polywand_server.timing import Stopwatch
from polywand_server.tools.kinds import Interactor


@dataclass(slots=True, eq=False)
class Pass:
    """One pass: a prompt, a crop, and the estimate that is fed back.

    batch: None while it waits for one. taken: done when it has one. answer: of the network.
    """

    tool: Interactor
    prompt: Prompt
    region: Region
    previous: Estimate | None
    timer: Stopwatch
    batch: "Batch | None" = None
    taken: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    answer: "asyncio.Future[Estimate]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def kind(self) -> tuple[int, int, tuple[int, int]]:
        """Equal for passes of one model that may be rows of one inference. Tools of the model may differ."""
        return id(self.tool.config), self.tool.rows, self.region.size

    def take(self, batch: "Batch") -> None:
        """Put it into a batch."""
        self.batch = batch
        self.timer.share(batch.timer)
        if not self.taken.done():
            self.taken.set_result(None)

    def end(self, result: Estimate | Exception) -> None:
        """Answer it, unless its prompt was cancelled."""
        if self.answer.done():
            return
        if isinstance(result, Exception):
            # Each gets its own, since an error holds the frames that it was raised through.
            self.answer.set_exception(copy(result) if isinstance(result, PolywandError) else result)
        else:
            self.answer.set_result(result)


@dataclass(slots=True, eq=False)
class Batch:
    """Passes of the same kind. timer: of their inference."""

    passes: list[Pass]
    timer: Stopwatch = field(default_factory=Stopwatch)
    task: "asyncio.Task[None] | None" = None

    @property
    def is_wanted(self) -> bool:
        """Whether any of its prompts still waits for the answer."""
        return not all(item.answer.done() for item in self.passes)

    def parts(self, tensors: Mapping[str, NDArray[Any]]) -> Iterator[tuple[Pass, dict[str, NDArray[Any]]]]:
        """Yield each pass with its rows of all tensors; two rows where its crops are flipped."""
        copies = self.passes[0].tool.rows
        for number, item in enumerate(self.passes):
            rows = slice(number * copies, (number + 1) * copies)
            yield item, {name: tensor[rows] for name, tensor in tensors.items()}


# Runs a batch's inference inside the context that it gets, and returns the answer of each pass.
Infer = Callable[[Batch, AbstractAsyncContextManager[None]], Coroutine[Any, Any, list[Estimate | PolywandError]]]


class BatchQueue:
    """The passes at one model. None waits for others to join it, only for its turn: then it takes along what waits.

    at_once: inferences at Triton. While there are as many, one more batch is prepared, once it is as large as it can
    be. most_together: passes like this one that fit into an inference.
    """

    def __init__(self, infer: Infer, most_together: Callable[[Pass], int], at_once: int) -> None:
        self._infer = infer
        self._most_together = most_together
        self._at_once = at_once
        self._turns = asyncio.Semaphore(at_once)
        self._waiting: list[Pass] = []
        self._begun: set[Batch] = set()  # those that Triton has not answered yet
        self._is_woken = False

    async def run(self, item: Pass) -> Estimate:
        """Run a pass. Raises what `infer` raises or returns."""
        self._waiting.append(item)
        self._wake()
        try:
            with item.timer.stage("wait"):
                await item.taken
            return await item.answer
        except asyncio.CancelledError:
            await self._withdraw(item)
            raise
        finally:
            del item  # else its error and this frame hold each other, and with them the picture

    def _wake(self) -> None:
        """Begin what may begin, together with the passes that come at the same moment."""
        if not self._is_woken:
            self._is_woken = True
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        self._is_woken = False
        while self._waiting and len(self._begun) <= self._at_once:
            passes, is_full = self._largest_batch()
            if len(self._begun) == self._at_once and not is_full:
                return
            batch = Batch(passes)
            for item in passes:
                self._waiting.remove(item)
                item.take(batch)
            self._begun.add(batch)
            batch.task = asyncio.create_task(self._work_off(batch), name="run a batch")

    def _largest_batch(self) -> tuple[list[Pass], bool]:
        """Choose the passes of the next batch; whether it is as large as it can be."""
        alike: defaultdict[object, list[Pass]] = defaultdict(list)
        for item in self._waiting:
            alike[item.kind].append(item)
        largest = max(alike.values(), key=len)
        most = self._most_together(largest[0])
        return largest[:most], len(largest) >= most

    async def _work_off(self, batch: Batch) -> None:
        """Answer all passes of a batch; an error of the batch is the error of each."""
        try:
            results = await self._infer(batch, self._turn(batch))
        except Exception as error:
            for item in batch.passes:
                item.end(error)
        else:
            for item, result in zip(batch.passes, results, strict=True):
                item.end(result)
        finally:
            self._end(batch)
            for item in batch.passes:
                item.answer.cancel()  # if the batch itself was cancelled
            batch.passes = []  # they refer to it, and to the answers

    @asynccontextmanager
    async def _turn(self, batch: Batch) -> AsyncIterator[None]:
        """Wait until the batch may go to Triton; after the block, the next one may."""
        with batch.timer.stage("wait"):
            await self._turns.acquire()
        try:
            yield
        finally:
            self._turns.release()
            self._end(batch)

    def _end(self, batch: Batch) -> None:
        if batch in self._begun:
            self._begun.remove(batch)
            self._wake()

    async def _withdraw(self, item: Pass) -> None:
        """Remove a pass whose prompt was cancelled; its batch goes on for the others, or is cancelled too."""
        if item.batch is None:
            self._waiting.remove(item)
            return
        if item.answer.done() and not item.answer.cancelled():
            item.answer.exception()  # retrieved, or asyncio would log it
        item.answer.cancel()
        task = item.batch.task
        if task is not None and not item.batch.is_wanted:
            task.cancel()
            await asyncio.wait((task,))
