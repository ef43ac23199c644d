"""The published networks compute what their authors' code computes, in PyTorch and as exported graphs."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from polywand_zoo.networks.psp import averaging_matrix
from polywand_zoo.points import Label
from polywand_zoo.published.architectures import ARCHITECTURES
from polywand_zoo.published.checkpoint import read
from polywand_zoo.published.export import Precision, build, interactor
from polywand_zoo.published.interactors import Interactor
from tests.zoo import golden
from tests.zoo.golden import needs_golden

TOLERANCE = 1e-3  # of the output's standard deviation

CLICKS = ((220, 190, Label.POSITIVE), (300, 120, Label.POSITIVE), (40, 30, Label.NEGATIVE))
PROMPTS: dict[str, tuple[tuple[float, float, int], ...]] = {
    "dextr_resnet101": ((256, 250, Label.EXTREME),),
    # The golden input has one point outside; a box inside out, whose corners all move to that point, gives it.
    "iog_resnet101": (
        (256, 250, Label.POSITIVE),
        (70, 80, Label.BOX_TOP_LEFT),
        (50, 60, Label.BOX_BOTTOM_RIGHT),
    ),
    "hrnet18": CLICKS,
    "fbrs_resnet101": CLICKS,
}

# The networks of RITM and f-BRS without a golden output: logits of their authors' code (commits 4269191 and 003924c,
# on the CPU, `cpu_dist_maps` off) with weights by the golden rule, at rows 0, 65, 130 and columns 0, 52, 105, 157.
AUTHORS: dict[str, Any] = json.loads((Path(__file__).parent / "authors_logits.json").read_text())
AUTHORS_SIZE = (131, 158)
AUTHORS_ROWS, AUTHORS_COLUMNS = [0, 65, 130], [0, 52, 105, 157]
AUTHORS_CLICKS = (
    (30.5, 20.25, Label.POSITIVE),
    (77, 100, Label.POSITIVE),
    (150.125, 5.75, Label.NEGATIVE),
)


def feeds(
    wrapped: Interactor, image: NDArray[np.uint8], rows: tuple[tuple[float, float, int], ...], mask: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    """Lay out one request; mask: [1, H, W]."""
    points = np.zeros((1, wrapped.POINTS, 3), np.float32)
    points[..., 2] = Label.PADDING
    points[0, : len(rows)] = rows
    tensors = {"IMAGE": image[None], "POINTS": points, "PREV_MASK": mask[None]}
    return {name: tensors[name] for name in wrapped.INPUTS}


def in_pytorch(network: nn.Module) -> Callable[[dict[str, NDArray[Any]]], NDArray[np.float32]]:
    def run(inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return interactor(network)(*(torch.from_numpy(array) for array in inputs.values())).numpy()

    return run


def in_onnx_runtime(network: nn.Module) -> Callable[[dict[str, NDArray[Any]]], NDArray[np.float32]]:
    session = ort.InferenceSession(build(network, Precision.FP32), providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["LOGITS"], inputs)[0]


@needs_golden
@pytest.mark.parametrize("runtime", [in_pytorch, in_onnx_runtime])
@pytest.mark.parametrize("name", PROMPTS)
def test_a_checkpoint_gives_the_authors_logits(
    name: str, runtime: Callable[[nn.Module], Callable[[Any], NDArray[np.float32]]], tmp_path: Path
) -> None:
    checkpoint = read(golden.write_checkpoint(tmp_path, name), name)
    expected = golden.logits(name)
    if name == "dextr_resnet101":  # kept at an eighth of the size; the graph enlarges it as the authors do
        enlarged = functional.interpolate(torch.from_numpy(expected), (512, 512), mode="bilinear", align_corners=True)
        expected = enlarged.numpy()
    image = golden.recipe().image(*expected.shape[2:])
    mask = golden.recipe().previous_mask(*expected.shape[2:])
    computed = runtime(checkpoint.network)(feeds(interactor(checkpoint.network), image, PROMPTS[name], mask))
    assert computed.shape == expected.shape
    assert np.abs(computed - expected).max() < TOLERANCE * expected.std()


# What DEXTR's and IOG's authors do around their networks; the service does it in its own way, which is tested there.


@dataclass(frozen=True)
class Predictor:
    """One golden predictor: rows of x, y (pixel indices) and label, and the margin around their box.

    enlarged_by: how crops are resized. relaxed: whether the result keeps away from the margin.
    """

    rows: tuple[tuple[int, int, Label], ...]
    margin: int
    enlarged_by: int
    relaxed: bool


PREDICTORS = {
    "dextr_resnet101": Predictor(
        tuple((x, y, Label.EXTREME) for x, y in ((120, 90), (330, 160), (200, 260), (90, 170))),
        margin=50,
        enlarged_by=cv2.INTER_CUBIC,
        relaxed=True,
    ),
    "iog_resnet101": Predictor(
        ((90, 90, Label.BOX_TOP_LEFT), (330, 260, Label.BOX_BOTTOM_RIGHT), (210, 170, Label.POSITIVE)),
        margin=30,
        enlarged_by=cv2.INTER_LINEAR,
        relaxed=False,
    ),
}


@needs_golden
@pytest.mark.parametrize("name", PREDICTORS)
def test_clicks_between_pixels_of_a_crop_count_as_in_the_authors_predictors(name: str, tmp_path: Path) -> None:
    predictor = PREDICTORS[name]
    wrapped = interactor(read(golden.write_checkpoint(tmp_path, name), name).network)
    clicks = np.array([row[:2] for row in predictor.rows])
    left, top = clicks.min(axis=0) - predictor.margin
    width, height = clicks.max(axis=0) - clicks.min(axis=0) + 1 + 2 * predictor.margin
    # The crops reach outside of the image, and are black there.
    border = 100
    window = slice(top + border, top + border + height), slice(left + border, left + border + width)
    image = np.pad(golden.recipe().image(360, 480), ((border, border), (border, border), (0, 0)))
    crop = cv2.resize(image[window], (512, 512), interpolation=predictor.enlarged_by)

    placed = (clicks - (left, top)) * (512 / width, 512 / height)
    rows = tuple((x, y, label) for (x, y), (_, _, label) in zip(placed, predictor.rows, strict=True))
    inputs = feeds(wrapped, crop, rows, np.zeros((1, 512, 512), np.float32))
    with torch.inference_mode():
        logits = wrapped(*(torch.from_numpy(array) for array in inputs.values()))
    probability = cv2.resize(logits[0, 0].sigmoid().numpy(), (width, height), interpolation=cv2.INTER_CUBIC)

    whole = np.zeros(image.shape[:2], np.float32)
    kept = predictor.margin if predictor.relaxed else 0
    inner = slice(kept, height - kept), slice(kept, width - kept)
    whole[window][inner] = probability[inner]
    expected = golden.predicted(name)
    np.testing.assert_allclose(whole[border:-border, border:-border], expected, atol=TOLERANCE * expected.std())


@needs_golden
@pytest.mark.parametrize("name", AUTHORS)
def test_every_variant_gives_the_authors_logits(name: str) -> None:
    network = ARCHITECTURES[name]().eval()
    network.load_state_dict(golden.weights((entry, tensor.shape) for entry, tensor in network.state_dict().items()))
    image, mask = golden.recipe().image(*AUTHORS_SIZE), golden.recipe().previous_mask(*AUTHORS_SIZE)
    (logits,) = in_pytorch(network)(feeds(interactor(network), image, AUTHORS_CLICKS, mask))[0]
    deviation = AUTHORS[name]["deviation"]
    assert logits.std() == pytest.approx(deviation, rel=TOLERANCE)
    sampled = logits[np.ix_(AUTHORS_ROWS, AUTHORS_COLUMNS)]
    np.testing.assert_allclose(sampled, AUTHORS[name]["logits"], atol=TOLERANCE * deviation)


@needs_golden
@pytest.mark.parametrize("name", golden.GOLDEN)
def test_a_network_has_the_entries_of_its_authors_in_their_order(name: str) -> None:
    with torch.device("meta"):
        network = ARCHITECTURES[name]()
    ours = [(entry, list(tensor.shape)) for entry, tensor in network.state_dict().items()]
    assert ours == golden.entries(name)


@pytest.mark.parametrize("cells", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [32, 64])
def test_averaging_by_matrices_is_adaptive_average_pooling(size: int, cells: int) -> None:
    x = torch.randn(1, 5, size, size, generator=torch.Generator().manual_seed(0))
    matrix = averaging_matrix(size, cells)
    expected = functional.adaptive_avg_pool2d(x, cells)
    torch.testing.assert_close(matrix @ x @ matrix.T, expected)
