"""Passes: one look of a network at one crop, in four stages: crop, tensors, Triton, map."""

from polywand_server.images import Picture
from polywand_server.images.crop_cache import CropCache
from polywand_server.images.regions import Region
from polywand_server.interactors.crops import crop_policy
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.prompt import Prompt
from polywand_server.interactors.tensors import forms, read, write_prompt
from polywand_server.lanes import Lane
from polywand_server.timing import Stopwatch
from polywand_server.tools.registry import Interactor
from polywand_server.tools.specs import FLIPPED, PromptSpec
from polywand_server.triton.client import ModelConfig


def max_points(prompt: PromptSpec, config: ModelConfig) -> int:
    """How many points the model takes: the rows of its `POINTS`, less two if it reads a box."""
    return config.inputs["POINTS"].dims[0] - (2 if prompt.box != "none" else 0)


def reads_seed(config: ModelConfig) -> bool:
    """Whether an object may start from a mask."""
    return "PREV_MASK" in config.inputs


def goes_on(tool: Interactor) -> bool:
    """Whether what an interactor found before a click changes what it finds after it: a mask or a state that is fed
    back, or a crop around the mask.
    """
    inputs = tool.config.inputs
    return "PREV_MASK" in inputs or "STATE" in inputs or crop_policy(tool.spec.crop).follows_mask


def fixed_size(config: ModelConfig) -> tuple[int, int] | None:
    """Height and width of the network's input; None when it takes any."""
    height, width = config.inputs["IMAGE"].dims[:2]
    return None if height < 0 or width < 0 else (height, width)


class Passes:
    """Shows networks crops of one picture."""

    def __init__(self, lane: Lane, picture: Picture) -> None:
        self._lane = lane
        self._crops = CropCache(picture)

    async def run(
        self, tool: Interactor, prompt: Prompt, region: Region, previous: Estimate | None, timer: Stopwatch
    ) -> Estimate:
        """Run a network on one crop. previous: what is fed back, of the step or the pass before.

        Raises:
            UnavailableError, DeadlineError, ModelFailedError
        """
        lane = self._lane
        inputs, outputs = forms(tool.config, region, FLIPPED if tool.spec.flip else 1)
        async with lane.exchange(tool.model, tool.version, inputs, outputs) as exchange:

            def crop_and_write() -> None:
                self._crops.crop_into(exchange.inputs["IMAGE"][0], region)
                write_prompt(exchange.inputs, prompt, region, previous)

            with timer.stage("prepare"):
                await lane.compute(crop_and_write)
            answer = await lane.run(exchange, timer)
            with timer.stage("geometry"):
                return await lane.compute(lambda: read(answer, region, tool.name))
