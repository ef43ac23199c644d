"""Whether a network's masks stay the same in bfloat16, in which processors that have it are two to ten times faster."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import openvino
from numpy.typing import NDArray

from polywand_zoo.processor import has_bfloat16
from polywand_zoo.published.catalogue import Published
from polywand_zoo.published.export import OUTPUT
from polywand_zoo.published.interactors import Interactor
from polywand_zoo.published.scenes import Scene, draw, points

# Of the masks in both precisions, on average: it means 0.99 on photos, where masks differ three times as much (measured
# with wand_click: 0.9978 on 20 drawn scenes, 0.9927 on 24 objects of photos).
SMALLEST_IOU = 0.997
SCENES = 6
SILENT = 2  # of them may say nothing, at most
SCENE_SIZE = (384, 448)  # for networks without a fixed input size
# A mask of less or more than these shares of the crop says nothing about precision.
TELLING = (0.01, 0.9)


class Bfloat(StrEnum):
    """The option `--bfloat16`."""

    AUTO = "auto"  # if the masks stay the same
    ON = "on"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Verdict:
    """use: whether to compute in bfloat16 where a processor has it. why: in words."""

    use: bool
    why: str


def judge(wanted: Bfloat, data: bytes, published: Published, wrapped: Interactor) -> Verdict:
    """Compare the masks of a graph (an ONNX file) in bfloat16 and in single precision, if the option is "auto"."""
    if wanted is not Bfloat.AUTO:
        return Verdict(wanted is Bfloat.ON, "as you said")
    if not has_bfloat16():
        return Verdict(False, "this processor does not have it, so it is unknown whether masks stay the same")
    exact, telling, silent = _Masks("f32", data, published, wrapped), [], 0
    for seed in range(SCENES):
        scene = draw(seed, wrapped.SIZE or SCENE_SIZE)
        mask = exact(scene)
        if TELLING[0] <= mask.mean() <= TELLING[1]:
            telling.append((scene, mask))
        else:
            silent += 1
        if silent > SILENT:
            return Verdict(False, "its masks of drawn scenes are empty or full, and say nothing about bfloat16")
    rounded = _Masks("bf16", data, published, wrapped)
    iou = float(np.mean([_iou(mask, rounded(scene)) for scene, mask in telling]))
    return Verdict(iou >= SMALLEST_IOU, f"masks of {len(telling)} drawn scenes agree to IoU {iou:.4f}")


class _Masks:
    """A graph, compiled for one precision."""

    def __init__(self, precision: str, data: bytes, published: Published, wrapped: Interactor) -> None:
        core = openvino.Core()
        self._compiled = core.compile_model(core.read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": precision})
        self._prompt, self._rows, self._inputs = published.prompt, wrapped.POINTS, wrapped.INPUTS
        self._logit = np.log(published.threshold / (1 - published.threshold))

    def __call__(self, scene: Scene) -> NDArray[np.bool_]:
        feeds = {
            "IMAGE": scene.image[None],
            "POINTS": points(scene, self._prompt, self._rows)[None],
            "PREV_MASK": np.zeros((1, 1, *scene.mask.shape), np.float32),
        }
        logits = self._compiled({name: feeds[name] for name in self._inputs})[OUTPUT]
        mask: NDArray[np.bool_] = logits[0, 0] > self._logit
        return mask


def _iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float((first & second).sum() / (first | second).sum())
