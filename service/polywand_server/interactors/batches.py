"""Many objects of one image, each prompted by a box alone, in as few inferences as they fit into."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from polywand_server.errors import ModelFailedError
from polywand_server.geometry.boxes import Box
from polywand_server.images import Picture
from polywand_server.images.crop_cache import CropCache
from polywand_server.images.regions import Region
from polywand_server.interactors.crops import Frame, crop_policy
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.prompt import Prompt
from polywand_server.interactors.tensors import read, tensor_specs, write_prompt
from polywand_server.lanes import Lane
from polywand_server.timing import Stopwatch
from polywand_server.tools.kinds import Interactor
from polywand_server.tools.specs import FLIPPED

T = TypeVar("T")

# No inference is given more pixels than this, whatever batches the model takes: some 20 MB of tensors.
MAX_BATCH_PIXELS = 2**21


@dataclass(frozen=True, slots=True)
class _Item:
    """One box: its place among all, its prompt, and the crop that the network is to see."""

    number: int
    prompt: Prompt
    region: Region


async def segment_boxes(
    lane: Lane,
    tool: Interactor,
    picture: Picture,
    boxes: Sequence[Box],
    timer: Stopwatch,
    finish: Callable[[Estimate], Awaitable[T]],
    pause: Callable[[], Awaitable[None]],
) -> list[T]:
    """Run an interactor on boxes of one image; returns what each estimate was made into, in their order.

    boxes: inside the image; enough of a prompt for this interactor, so that one pass does for each.
    finish: makes of an estimate what is kept of it, so that an image of a thousand boxes never holds more than a batch
        of probability maps.
    pause: awaited between two batches.

    Raises:
        UnavailableError, DeadlineError, ModelFailedError
    """
    if not boxes:
        return []
    crops = CropCache(picture)
    finished: dict[int, T] = {}
    with timer.stage("prepare"):
        items = await lane.compute(lambda: _look(tool, picture, boxes))
    for batch in _batches(items, tool, lane):
        if finished:
            await pause()
        answers = await _segment_batch(lane, tool, crops, batch, timer, finish)
        finished.update(zip((item.number for item in batch), answers, strict=True))
    return [finished[number] for number in range(len(boxes))]


async def _segment_batch(
    lane: Lane,
    tool: Interactor,
    crops: CropCache,
    batch: Sequence[_Item],
    timer: Stopwatch,
    finish: Callable[[Estimate], Awaitable[T]],
) -> list[T]:
    copies = _copies(tool)
    total = copies * len(batch)
    places = [slice(start, start + copies) for start in range(0, total, copies)]
    inputs, outputs = tensor_specs(tool.config, batch[0].region, total)
    async with lane.exchange(tool.model, tool.version, inputs, outputs) as exchange:

        def fill_all() -> None:
            for item, rows in zip(batch, places, strict=True):
                tensors = {name: tensor[rows] for name, tensor in exchange.inputs.items()}
                crops.crop_into(tensors["IMAGE"][0], item.region)
                write_prompt(tensors, item.prompt, item.region, None)

        def read_all() -> list[Estimate]:
            parts = [{name: tensor[rows] for name, tensor in answer.items()} for rows in places]
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


def _look(tool: Interactor, picture: Picture, boxes: Sequence[Box]) -> list[_Item]:
    policy = crop_policy(tool.spec.crop)
    frame = Frame(picture.width, picture.height, tool.fixed_size, tool.spec.threshold)
    prompts = [Prompt(tool.name, tool.version, "", box=box) for box in boxes]
    return [_Item(number, prompt, policy.candidates(frame, prompt, None)[0]) for number, prompt in enumerate(prompts)]


def _batches(items: Sequence[_Item], tool: Interactor, lane: Lane) -> Iterator[list[_Item]]:
    """Put together what the network takes together: inputs of the same size, as many as fit into its batch; one by one
    while a prompt may come that has to wait for it.
    """
    by_size: defaultdict[tuple[int, int], list[_Item]] = defaultdict(list)
    for item in items:
        by_size[item.region.size].append(item)
    for (height, width), alike in by_size.items():
        rows = min(tool.config.max_batch_size, MAX_BATCH_PIXELS // (height * width))
        start = 0
        while start < len(alike):
            length = 1 if lane.prompts_expected else max(1, rows // _copies(tool))
            yield alike[start : start + length]
            start += length


def _copies(tool: Interactor) -> int:
    """Rows of a batch that one prompt takes."""
    return FLIPPED if tool.spec.flip else 1
