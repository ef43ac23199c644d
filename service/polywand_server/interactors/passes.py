"""Passes: an inference on crops of one picture, in four stages: crops, tensors, Triton, maps."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from numpy.typing import NDArray

from polywand_server.errors import ModelFailedError, PolywandError
from polywand_server.images.crop_cache import CropCache
from polywand_server.images.regions import Region
from polywand_server.interactors.batches import Batch, BatchQueue, Pass
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.prompt import Prompt
from polywand_server.interactors.tensors import read, tensor_specs, write_prompt
from polywand_server.lanes import Lane
from polywand_server.timing import Stopwatch
from polywand_server.tools.kinds import Interactor

# Most pixels of one inference, whatever batches the model takes: about 20 MB of tensors.
MAX_BATCH_PIXELS = 2**21


class Passes:
    """Runs networks on crops of one picture.

    crops: of the picture. at_once: inferences of one model at Triton at the same time.
    """

    def __init__(self, lane: Lane, crops: CropCache, at_once: int) -> None:
        # Not methods: a queue that refers to this object would hold the picture until the garbage collector runs.
        self._new_queue = partial(BatchQueue, partial(_infer, lane, crops), partial(_most_together, lane), at_once)
        self._queues: dict[tuple[str, int], BatchQueue] = {}

    async def run(
        self, tool: Interactor, prompt: Prompt, region: Region, previous: Estimate | None, timer: Stopwatch
    ) -> Estimate:
        """Run a network on one crop. previous: the estimate that is fed back, of the step or pass before.

        Raises:
            UnavailableError, DeadlineError, ModelFailedError
        """
        model = tool.model, tool.version
        if model not in self._queues:
            self._queues[model] = self._new_queue()
        return await self._queues[model].run(Pass(tool, prompt, region, previous, timer))


def _most_together(lane: Lane, item: Pass) -> int:
    """How many passes fit into one inference; one where a prompt may come that would have to wait for it."""
    if lane.prompts_expected:
        return 1
    height, width = item.region.size
    rows = min(item.tool.config.max_batch_size, MAX_BATCH_PIXELS // (height * width))
    return max(1, rows // item.tool.rows)


async def _infer(
    lane: Lane, crops: CropCache, batch: Batch, turn: AbstractAsyncContextManager[None]
) -> list[Estimate | PolywandError]:
    """Run a batch's inference. turn: see `Infer`."""
    timer, tool = batch.timer, batch.passes[0].tool
    total = tool.rows * len(batch.passes)
    inputs, outputs = tensor_specs(tool.config, batch.passes[0].region, total)
    async with lane.exchange(tool.model, tool.version, inputs, outputs) as exchange:

        def write_all() -> None:
            for item, tensors in batch.parts(exchange.inputs):
                crops.crop_into(tensors["IMAGE"][0], item.region)
                write_prompt(tensors, item.prompt, item.region, item.previous)

        await lane.turn(timer)
        with timer.stage("prepare"):
            await lane.compute(write_all)
        async with turn:
            await lane.turn(timer)
            answer = await lane.run(exchange, timer)
        for name, tensor in answer.items():
            if len(tensor) != total:
                raise ModelFailedError(f"model '{tool.name}' answered {name} of {len(tensor)} objects for {total}")
        await lane.turn(timer)
        with timer.stage("geometry"):
            return await lane.compute(lambda: [_read(item, tensors) for item, tensors in batch.parts(answer)])


def _read(item: Pass, tensors: Mapping[str, NDArray[Any]]) -> Estimate | PolywandError:
    """Read the answer to one pass; if it is none, that is no error of the others."""
    try:
        return read(tensors, item.region, item.tool.name)
    except ModelFailedError as error:
        return error
