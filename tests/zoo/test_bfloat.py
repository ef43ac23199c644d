"""Whether bfloat16 is used: a network keeps it only if its masks stay the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import nn

from polywand_zoo.processor import has_bfloat16
from polywand_zoo.published.bfloat import Bfloat, judge
from polywand_zoo.published.catalogue import CATALOGUE
from polywand_zoo.published.interactors import Interactor

WAND = Path(__file__).parents[2] / "model_repository" / "wand" / "1" / "model.onnx"
CLICKED = replace(CATALOGUE["hrnet18"], threshold=0.5)

has_bfloat = has_bfloat16()


class WandTensors(Interactor):
    """The tensors of a trained click network that is at hand."""

    INPUTS = ("IMAGE", "POINTS", "PREV_MASK")
    POINTS = 64
    SIZE = (384, 384)


@pytest.fixture(scope="module")
def tensors() -> WandTensors:
    return WandTensors(nn.Identity())


def test_a_trained_network_keeps_bfloat16(tensors: WandTensors) -> None:
    verdict = judge(Bfloat.AUTO, WAND.read_bytes(), CLICKED, tensors)
    assert verdict.use is has_bfloat
    assert verdict.why.startswith(
        "masks of 6 drawn scenes agree to IoU 0.99" if has_bfloat else "this processor does not"
    )


def test_a_network_whose_masks_suffer_does_not(tensors: WandTensors) -> None:
    graph = onnx.load(WAND)
    random = np.random.default_rng(0)
    for tensor in graph.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.ndim == 4:  # convolutions of noise: what they sum up cancels, and roundings remain
            noise = random.normal(0, weights.std(), weights.shape).astype(weights.dtype)
            tensor.CopyFrom(numpy_helper.from_array(noise, tensor.name))
    verdict = judge(Bfloat.AUTO, graph.SerializeToString(), CLICKED, tensors)
    assert not verdict.use


@pytest.mark.parametrize(("wanted", "used"), [(Bfloat.ON, True), (Bfloat.OFF, False)])
def test_the_user_can_decide(tensors: WandTensors, wanted: Bfloat, used: bool) -> None:
    assert judge(wanted, WAND.read_bytes(), CLICKED, tensors).use is used
