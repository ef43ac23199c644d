"""Segments many objects of one image, each prompted by a box alone, in as few inferences as possible."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from polywand_server.errors import ModelFailedError
from polywand_server.geometry.boxes import Box
from polywand_server.images import Picture
from polywand_server.images.crop_cache import CropCache
from polywand_server.interactors.batch_plan import BatchItem, batches, plan_items
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.tensors import read, tensor_specs, write_prompt
from polywand_server.lanes import Lane
from polywand_server.timing import Stopwatch
from polywand_server.tools.kinds import Interactor

T = TypeVar("T")


async def segment_boxes(
    lane: Lane,
    tool: Interactor,
    picture: Picture,
    boxes: Sequence[Box],
    timer: Stopwatch,
    finish: Callable[[Estimate], Awaitable[T]],
    pause: Callable[[], Awaitable[None]],
) -> list[T]:
    """Run an interactor on boxes of one image; return the results of `finish`, in the order of the boxes.

    boxes: inside the image; a box must be a complete prompt for this interactor. Each takes one pass.
    finish: converts an estimate to its result, so that no more than one batch of probability maps is held.
    pause: awaited between two batches.

    Raises:
        UnavailableError, DeadlineError, ModelFailedError
    """
    if not boxes:
        return []
    crops = CropCache(picture)
    finished: dict[int, T] = {}
    with timer.stage("prepare"):
        items = await lane.compute(lambda: plan_items(tool, picture, boxes))
    for batch in batches(items, tool, lambda: lane.prompts_expected):
        if finished:
            await pause()
        answers = await _segment_batch(lane, tool, crops, batch, timer, finish)
        finished.update(zip((item.number for item in batch), answers, strict=True))
    return [finished[number] for number in range(len(boxes))]


async def _segment_batch(
    lane: Lane,
    tool: Interactor,
    crops: CropCache,
    batch: Sequence[BatchItem],
    timer: Stopwatch,
    finish: Callable[[Estimate], Awaitable[T]],
) -> list[T]:
    copies = tool.rows
    total = copies * len(batch)
    row_slices = [slice(start, start + copies) for start in range(0, total, copies)]
    inputs, outputs = tensor_specs(tool.config, batch[0].region, total)
    async with lane.exchange(tool.model, tool.version, inputs, outputs) as exchange:

        def fill_all() -> None:
            for item, rows in zip(batch, row_slices, strict=True):
                tensors = {name: tensor[rows] for name, tensor in exchange.inputs.items()}
                crops.crop_into(tensors["IMAGE"][0], item.region)
                write_prompt(tensors, item.prompt, item.region, None)

        def read_all() -> list[Estimate]:
            parts = [{name: tensor[rows] for name, tensor in answer.items()} for rows in row_slices]
            return [read(part, item.region, tool.name) for item, part in zip(batch, parts, strict=True)]

        await lane.turn(timer)
        with timer.stage("prepare"):
            await lane.compute(fill_all)
        await lane.turn(timer)
        answer = await lane.run(exchange, timer)
        for name, tensor in answer.items():
            if len(tensor) != total:
                raise ModelFailedError(f"model '{tool.name}' answered {name} of {len(tensor)} objects for {total}")
        await lane.turn(timer)
        with timer.stage("geometry"):
            return [await finish(estimate) for estimate in await lane.compute(read_all)]
