"""The interactors' way: crop, tensors, Triton, probability. Four named steps per pass, one or two passes per prompt."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from polywand_server.images import Picture
from polywand_server.inference import Inference
from polywand_server.interactors.crops import Crops
from polywand_server.interactors.prompt import Label, Prompt
from polywand_server.regions import ProbabilityMap, Region, crop
from polywand_server.registry import Interactor
from polywand_server.specs import PromptSpec
from polywand_server.timing import Stopwatch
from polywand_server.triton.client import ModelConfig


async def segment(
    inference: Inference,
    tool: Interactor,
    picture: Picture,
    prompt: Prompt,
    previous: ProbabilityMap | None,
    watch: Stopwatch,
) -> ProbabilityMap:
    """Run an interactor on a prompt.

    previous: the map that belonged to the prompt that this one extends, or None when the object starts here.

    Raises:
        UnavailableError, DeadlineError, ModelFailedError
    """
    threshold = tool.spec.threshold
    crops = Crops(tool.spec.crop, picture.width, picture.height, _fixed_size(tool))

    async def one_pass(choose: Callable[[], Region], before: ProbabilityMap | None) -> ProbabilityMap:
        with watch.stage("prepare"):
            region, tensors = await inference.compute(lambda: _prepare(tool, picture, prompt, choose(), before))
        logits = (await inference.infer(tool.name, tool.version, tensors, ["LOGITS"], watch))["LOGITS"]
        with watch.stage("geometry"):
            return ProbabilityMap(region, await inference.compute(lambda: sigmoid(logits[0, 0])))

    result = await one_pass(lambda: crops.first(prompt, previous, threshold), previous)
    if previous is None:
        region = crops.refining(prompt, result, threshold)
        if region is not None:
            result = await one_pass(lambda: region, result)
    return result


def max_points(prompt: PromptSpec, config: ModelConfig) -> int:
    """How many points the model takes: the rows of its `POINTS`, less two if it reads a box."""
    return config.inputs["POINTS"].dims[0] - (2 if prompt.box != "none" else 0)


def _fixed_size(tool: Interactor) -> tuple[int, int] | None:
    height, width = tool.config.inputs["IMAGE"].dims[:2]
    return None if height < 0 or width < 0 else (height, width)


def _prepare(
    tool: Interactor, picture: Picture, prompt: Prompt, region: Region, previous: ProbabilityMap | None
) -> tuple[Region, dict[str, NDArray[np.generic]]]:
    tensors: dict[str, NDArray[np.generic]] = {
        "IMAGE": crop(picture, region)[None],
        "POINTS": point_rows(prompt, region, tool.config.inputs["POINTS"].dims[0])[None],
    }
    if "PREV_MASK" in tool.config.inputs:
        mask = np.zeros(region.size, np.float32) if previous is None else previous.resampled(region)
        tensors["PREV_MASK"] = mask[None, None]
    return region, tensors


def point_rows(prompt: Prompt, region: Region, rows: int) -> NDArray[np.float32]:
    """Lay a prompt out as the `POINTS` tensor float32 [rows, 3]: x, y in input pixels (centres at integers), label."""
    marks = [(point.x, point.y, point.label) for point in prompt.points]
    if prompt.box is not None:
        marks.append((prompt.box.x0, prompt.box.y0, Label.BOX_TOP_LEFT))
        marks.append((prompt.box.x1, prompt.box.y1, Label.BOX_BOTTOM_RIGHT))
    tensor = np.zeros((rows, 3), np.float32)
    tensor[:, 2] = Label.PADDING
    if marks:
        values = np.array(marks, np.float64)
        tensor[: len(marks), :2] = region.to_input(values[:, :2])
        tensor[: len(marks), 2] = values[:, 2]
    return tensor


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logistic function, by OpenCV's vectorised exponential (five times NumPy's speed)."""
    values: NDArray[np.float32] = cv2.exp(np.negative(np.clip(logits, -60, 60)))
    values += 1
    return np.reciprocal(values, out=values)
