"""The tensors of a pass: a crop and a prompt as the network's inputs, and its outputs as an estimate."""

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from polywand_server.errors import ModelFailedError
from polywand_server.images.regions import Region, from_network
from polywand_server.interactors.estimate import Alternative, Estimate
from polywand_server.interactors.prompt import Label, Prompt
from polywand_server.tools.specs import FLIPPED
from polywand_server.triton.client import ModelConfig
from polywand_server.triton.tensors import Array, TensorSpec, TensorSpecs


def tensor_specs(config: ModelConfig, region: Region, batch: int) -> tuple[dict[str, TensorSpec], TensorSpecs]:
    """Return the specs of the inputs and outputs of one pass.

    region: of one of its prompts. batch: rows of all prompts together.
    """
    height, width = region.size
    inputs = {
        "IMAGE": TensorSpec("UINT8", (batch, height, width, 3)),
        "POINTS": TensorSpec("FP32", (batch, config.inputs["POINTS"].dims[0], 3)),
    }
    answers = config.outputs["LOGITS"].dims[0]
    outputs = {"LOGITS": TensorSpec("FP32", (batch, answers, height, width))}
    if "SCORES" in config.outputs:
        outputs["SCORES"] = TensorSpec("FP32", (batch, answers))
    if "PREV_MASK" in config.inputs:
        inputs["PREV_MASK"] = TensorSpec("FP32", (batch, 1, height, width))
    if "STATE" in config.inputs:
        inputs["STATE"] = TensorSpec("FP32", (batch, *config.inputs["STATE"].dims))
        outputs["STATE_OUT"] = TensorSpec("FP32", (batch, *config.outputs["STATE_OUT"].dims))
    return inputs, outputs


def write_prompt(tensors: Mapping[str, Array], prompt: Prompt, region: Region, previous: Estimate | None) -> None:
    """Write one prompt's rows of the inputs beside `IMAGE[0]`, which holds the crop.

    tensors: one row each, or two where the tool's crops are flipped: then the second row is written too.
    """
    tensors["POINTS"][0] = point_rows(prompt, region, tensors["POINTS"].shape[1])
    if "PREV_MASK" in tensors:
        tensors["PREV_MASK"][0, 0] = 0 if previous is None else previous.probabilities.resampled(region)
    if "STATE" in tensors:
        state = previous.state if previous is not None else None
        # A state of another shape is of the model before a reload.
        tensors["STATE"][:] = state if state is not None and state.shape == tensors["STATE"].shape else 0
    if len(tensors["IMAGE"]) == FLIPPED:
        _flip(tensors, region)


def _flip(tensors: Mapping[str, Array], region: Region) -> None:
    """Make the second row of a batch the first one's mirror image; each keeps its own state."""
    cv2.flip(tensors["IMAGE"][0], 1, dst=tensors["IMAGE"][1])
    tensors["POINTS"][1] = tensors["POINTS"][0]
    tensors["POINTS"][1, :, 0] = region.size[1] - 1 - tensors["POINTS"][0, :, 0]
    if "PREV_MASK" in tensors:
        cv2.flip(tensors["PREV_MASK"][0, 0], 1, dst=tensors["PREV_MASK"][1, 0])


def read(answer: Mapping[str, Array], region: Region, model: str) -> Estimate:
    """Make an estimate of one prompt's rows of the outputs, copied, as the next inference overwrites them.

    Of several answers, the one with the highest score is the estimate; the first one of equal scores.

    Raises:
        ModelFailedError: LOGITS of a wrong size, or LOGITS or SCORES that are not numbers.
    """
    logits, scores = answer["LOGITS"], answer.get("SCORES")
    if 0 in logits.shape or logits.shape[2:] != region.size or np.isnan(logits).any():
        raise ModelFailedError(
            f"model '{model}' answered LOGITS that are no {region.size[0]} x {region.size[1]} numbers"
        )
    if scores is not None and (scores.shape != logits.shape[:2] or np.isnan(scores).any()):
        raise ModelFailedError(f"model '{model}' answered SCORES that are not one number for each of its LOGITS")
    mean = (logits[0] + logits[1][..., ::-1]) / 2 if len(logits) == FLIPPED else logits[0]
    maps = [from_network(sigmoid(values), region) for values in mean]
    state = answer["STATE_OUT"].copy() if "STATE_OUT" in answer else None
    if scores is None:
        return Estimate(maps[0], state)
    certainties = np.clip(scores.mean(axis=0), 0, 1).tolist()
    order = sorted(range(len(maps)), key=lambda number: -certainties[number])  # stable
    best, *others = (Alternative(maps[number], certainties[number]) for number in order)
    return Estimate(best.probabilities, state, best.score, tuple(others))


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
