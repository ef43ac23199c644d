"""The published networks compute what their authors' code computes, in PyTorch and as exported graphs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from polywand_zoo.published.catalogue import CATALOGUE
from polywand_zoo.published.checkpoint import read
from polywand_zoo.published.export import build, interactor
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


Run = Callable[[dict[str, NDArray[Any]]], NDArray[np.float32]]
Imported = Callable[[str], Path]


def in_pytorch(network: nn.Module) -> Run:
    def run(inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return interactor(network)(*(torch.from_numpy(array) for array in inputs.values())).numpy()

    return run


def in_onnx_runtime(graph: bytes | Path) -> Run:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["LOGITS"], inputs)[0]


@needs_golden
@pytest.mark.parametrize("name", PROMPTS)
def test_a_checkpoint_gives_the_authors_logits(name: str, tmp_path: Path, imported: Imported) -> None:
    network = read(golden.write_checkpoint(tmp_path, name), name).network
    expected = golden.logits(name)
    if name == "dextr_resnet101":  # kept at an eighth of the size; the graph enlarges it as the authors do
        enlarged = functional.interpolate(torch.from_numpy(expected), (512, 512), mode="bilinear", align_corners=True)
        expected = enlarged.numpy()
    image = golden.recipe().image(*expected.shape[2:])
    mask = golden.recipe().previous_mask(*expected.shape[2:])
    inputs = feeds(interactor(network), image, PROMPTS[name], mask)
    # What is served of f-BRS is in two parts, which are compared with the golden predictor.
    graph = build(network) if CATALOGUE[name].is_refined else imported(name) / "1" / "model.onnx"
    for runtime in (in_pytorch(network), in_onnx_runtime(graph)):
        computed = runtime(inputs)
        assert computed.shape == expected.shape
        assert np.abs(computed - expected).max() < TOLERANCE * expected.std()


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
