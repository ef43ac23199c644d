"""Passes: one inference on one crop, in four stages: crop, tensors, Triton, map."""

from polywand_server.images import Picture
from polywand_server.images.crop_cache import CropCache
from polywand_server.images.regions import Region
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.prompt import Prompt
from polywand_server.interactors.tensors import read, tensor_specs, write_prompt
from polywand_server.lanes import Lane
from polywand_server.timing import Stopwatch
from polywand_server.tools.kinds import Interactor


class Passes:
    """Runs networks on crops of one picture."""

    def __init__(self, lane: Lane, picture: Picture) -> None:
        self._lane = lane
        self._crops = CropCache(picture)

    async def run(
        self, tool: Interactor, prompt: Prompt, region: Region, previous: Estimate | None, timer: Stopwatch
    ) -> Estimate:
        """Run a network on one crop. previous: the estimate that is fed back, of the step or pass before.

        Raises:
            UnavailableError, DeadlineError, ModelFailedError
        """
        lane = self._lane
        inputs, outputs = tensor_specs(tool.config, region, tool.rows)
        async with lane.exchange(tool.model, tool.version, inputs, outputs) as exchange:

            def crop_and_write() -> None:
                self._crops.crop_into(exchange.inputs["IMAGE"][0], region)
                write_prompt(exchange.inputs, prompt, region, previous)

            with timer.stage("prepare"):
                await lane.compute(crop_and_write)
            answer = await lane.run(exchange, timer)
            with timer.stage("geometry"):
                return await lane.compute(lambda: read(answer, region, tool.name))
