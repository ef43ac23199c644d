"""The published predictors answer as their authors' code does, through the running service and Triton.

Replies hold masks, so masks are compared, at several thresholds. A pixel may be on the other side only where the
authors' probability is as close to the threshold as rounding explains, or where the service drops a speck.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polywand_contract.raster import decode_rle
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_zoo.onnx_export import trace
from polywand_zoo.points import Label
from polywand_zoo.published.catalogue import CATALOGUE
from polywand_zoo.published.config import model_config
from polywand_zoo.published.export import OUTPUT, VARIABLE_SIZE
from tests.running import Service, running_service
from tests.streams import EXTREME, NEGATIVE, POSITIVE, InteractStream, prompt, raw_image, stream_to
from tests.zoo import golden
from tests.zoo.golden import needs_golden

pytestmark = needs_golden

THRESHOLDS = (0.05, 0.2, 0.3, 0.49, 0.5, 0.6, 0.7, 0.8, 0.9)
# Of a probability, for a network in single precision. Its logits agree to 1e-3 of their deviation (the golden README),
# of which the sigmoid leaves a quarter at most; the golden map is stored in 16 bits.
ROUNDING = 3e-4
# The formula's image is in 8 bits, and in its golden map in 32: 0.5 / 255 of the light's weight 1.5 by the sigmoid's
# quarter, and as much again of a third of that through the previous mask.
ROUNDING_OF_LIGHT = 0.5 / 255 * 1.5 / 4 * (1 + 1 / 3)
# The contract drops parts and holes of 0.5 % of the largest part's area; counted in pixels that is not exact.
LARGEST_SPECK = 0.01


class Formula(nn.Module):
    """What stands for RITM's network in its golden predictor, under an interactor's contract (see docs/models.md)."""

    INPUTS = ("IMAGE", "POINTS", "PREV_MASK")
    POINTS = 16
    EXAMPLE = (torch.zeros(1, 96, 128, 3, dtype=torch.uint8), torch.zeros(1, POINTS, 3), torch.zeros(1, 1, 96, 128))

    def forward(self, image: Tensor, points: Tensor, previous: Tensor) -> Tensor:
        height, width = image.shape[1:3]
        columns = torch.arange(width).view(1, 1, 1, -1)
        rows = torch.arange(height).view(1, 1, -1, 1)
        x, y, labels = (points[..., index].unsqueeze(2).unsqueeze(3) for index in range(3))
        apart = (columns - x) ** 2 + (rows - y) ** 2

        def bump(label: Label, spread: float) -> Tensor:
            nearest = torch.where(labels == label, apart, 1e12).amin(1, keepdim=True)
            return torch.exp(-nearest / (2 * (spread * width) ** 2))

        light = image.float().mean(3).unsqueeze(1) / 255
        return 4 * bump(Label.POSITIVE, 0.12) - 5 * bump(Label.NEGATIVE, 0.05) + 1.5 * (light - 0.5) + previous - 2


def write_formula(folder: Path) -> None:
    """Write the formula as a model that is configured as RITM's networks are, with flip averaging."""
    config = model_config(
        replace(CATALOGUE["hrnet18"], name=folder.name), points=Formula.POINTS, size=None, has_previous_mask=True
    )
    (folder / "1").mkdir(parents=True)
    config = config.replace('"flip": false', '"flip": true').replace('"auto"', '"f32"')
    (folder / "config.pbtxt").write_text(config)
    graph = trace(Formula(), Formula.EXAMPLE, Formula.INPUTS, OUTPUT, variable=VARIABLE_SIZE)
    (folder / "1" / "model.onnx").write_bytes(graph.SerializeToString())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, imported: Callable[[str], Path]) -> Iterator[Service]:
    """Return a service with the predictors as the command imported them: it finds that they do not bear bfloat16."""
    folder = tmp_path_factory.mktemp("predictors")
    names = ("dextr_resnet101", "iog_resnet101")
    for name in names:
        copytree(imported(name), folder / "models" / name)
    write_formula(folder / "models" / "formula")
    with running_service(folder / "log", f"--model-repository={folder / 'models'}") as running:
        running.wait_ready(*names, "formula")
        yield running


@pytest.fixture
def stream(service: Service) -> Iterator[InteractStream]:
    with stream_to(service.target) as opened:
        yield opened


def centre(x: int, y: int, label: int) -> tuple[float, float, int]:
    """Point at a pixel by its indices."""
    return x + 0.5, y + 0.5, label


def check_masks(
    stream: InteractStream, message: pb.Prompt, probability: NDArray[np.float32], rounding: float
) -> pb.Segmentation:
    """Compare the masks of a prompt's replies at all thresholds; returns the reply at the model's own."""
    for threshold in THRESHOLDS:
        message_at_threshold = pb.Prompt()
        message_at_threshold.CopyFrom(message)
        message_at_threshold.output.CopyFrom(
            pb.OutputOptions(threshold=threshold, forms=[pb.OUTPUT_FORM_POLYGONS, pb.OUTPUT_FORM_RLE])
        )
        mask = stream.ask(message_at_threshold).segmentation.shape.rle
        check_mask(decode_rle(mask.counts, mask.width, mask.height), probability, threshold, rounding)
    return stream.ask(message).segmentation


def check_mask(mask: NDArray[np.bool_], probability: NDArray[np.float32], threshold: float, rounding: float) -> None:
    expected, is_near = probability > threshold, np.abs(probability - threshold) <= rounding
    different = ((mask != expected) & ~is_near).astype(np.uint8)
    largest = cv2.connectedComponentsWithStats(expected.astype(np.uint8), connectivity=8)[2][1:, cv2.CC_STAT_AREA].max()
    count, labels, stats, _ = cv2.connectedComponentsWithStats(different, connectivity=4)
    for label in range(1, count):
        # A part or a hole that is gone as a whole: all around it is what it has become.
        area = stats[label, cv2.CC_STAT_AREA]
        speck = (labels == label).astype(np.uint8)
        around = cv2.dilate(speck, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))) != speck
        value = expected[speck == 1][0]
        is_whole = ((expected[around] != value) | is_near[around]).all()
        assert is_whole, f"{area} pixels are {not value} at {threshold}"
        assert area <= LARGEST_SPECK * largest, f"a part or hole of {area} pixels is gone at {threshold}"


def test_dextr_through_the_service_is_the_authors_predictor(stream: InteractStream) -> None:
    stream.ask(raw_image(golden.recipe().image(360, 480)))
    points = [centre(x, y, EXTREME) for x, y in ((120, 90), (330, 160), (200, 260), (90, 170))]
    reply = check_masks(stream, prompt("dextr_resnet101", *points), golden.predicted("dextr"), ROUNDING)
    assert reply.threshold == pytest.approx(0.8)


def test_iog_through_the_service_is_the_authors_predictor(stream: InteractStream) -> None:
    stream.ask(raw_image(golden.recipe().image(360, 480)))
    message = prompt("iog_resnet101", centre(210, 170, POSITIVE), box=(90, 90, 330, 260))
    reply = check_masks(stream, message, golden.predicted("iog"), ROUNDING)
    assert reply.threshold == pytest.approx(0.8)


def test_ritms_predictor_through_the_service_is_the_authors(stream: InteractStream) -> None:
    stream.ask(raw_image(golden.recipe().image(480, 640)))
    clicks = [centre(x, y, POSITIVE if positive else NEGATIVE) for x, y, positive in golden.clicks("hrnet")]
    for count in range(1, len(clicks) + 1):
        message = prompt("formula", *clicks[:count])
        expected = golden.predicted("hrnet", f"flip_{count - 1}")
        reply = check_masks(stream, message, expected, ROUNDING_OF_LIGHT)
        assert reply.threshold == pytest.approx(0.49)
