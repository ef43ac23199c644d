"""Plans batches: which boxes of one image an interactor segments together."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from polywand_server.geometry.boxes import Box
from polywand_server.images import Picture
from polywand_server.images.regions import Region
from polywand_server.interactors.crops import CropSpace, crop_policy
from polywand_server.interactors.prompt import Prompt
from polywand_server.tools.kinds import Interactor

# Most pixels of one inference, whatever batches the model takes: about 20 MB of tensors.
MAX_BATCH_PIXELS = 2**21


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One box. number: its index. prompt: holds the box alone. region: its crop."""

    number: int
    prompt: Prompt
    region: Region


def plan_items(tool: Interactor, picture: Picture, boxes: Sequence[Box]) -> list[BatchItem]:
    """Choose the crop of each box."""
    policy = crop_policy(tool.spec.crop)
    space = CropSpace(picture.width, picture.height, tool.fixed_size, tool.spec.threshold)
    prompts = [Prompt(tool.name, tool.version, "", box=box) for box in boxes]
    return [
        BatchItem(number, prompt, policy.candidates(space, prompt, None)[0]) for number, prompt in enumerate(prompts)
    ]


def batches(items: Sequence[BatchItem], tool: Interactor, is_short: Callable[[], bool]) -> Iterator[list[BatchItem]]:
    """Group items of the same input size, as many as fit into the network's batch.

    is_short: whether the next batch must be a single item, because a prompt may come and would have to wait for it.
    """
    by_size: defaultdict[tuple[int, int], list[BatchItem]] = defaultdict(list)
    for item in items:
        by_size[item.region.size].append(item)
    for (height, width), alike in by_size.items():
        rows = min(tool.config.max_batch_size, MAX_BATCH_PIXELS // (height * width))
        start = 0
        while start < len(alike):
            length = 1 if is_short() else max(1, rows // tool.rows)
            yield alike[start : start + length]
            start += length
