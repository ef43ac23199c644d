"""Detection on one picture: letterbox, Triton, suppression, image coordinates, the task's labels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polywand_server.detectors.options import DetectOptions
from polywand_server.detectors.suppression import Candidates, above, suppress
from polywand_server.geometry.boxes import Box
from polywand_server.images import Picture
from polywand_server.images.regions import Region, crop_into, snap
from polywand_server.lanes import Lane
from polywand_server.timing import Stopwatch
from polywand_server.tools.kinds import Detector
from polywand_server.triton.client import TensorConfig
from polywand_server.triton.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Detection:
    """One found object; its box lies inside the image."""

    label: str
    model_label: str
    score: float
    box: Box


async def detect(
    lane: Lane, tool: Detector, picture: Picture, options: DetectOptions, timer: Stopwatch
) -> list[Detection]:
    """Find the boxes of objects on an image, by descending score.

    options: their labels must be the tool's (see `check_labels`).

    Raises:
        UnavailableError, DeadlineError, ModelFailedError
    """
    height, width = tool.config.inputs["IMAGE"].dims[:2]
    region = letterbox(picture.width, picture.height, (height, width))
    thresholds = _thresholds(tool, options)
    inputs = {"IMAGE": TensorSpec("UINT8", (1, height, width, 3))}
    outputs = {name: _spec_of(tool.config.outputs[name]) for name in ("BOXES", "SCORES")}
    async with lane.exchange(tool.model, tool.version, inputs, outputs) as exchange:
        await lane.turn(timer)
        with timer.stage("prepare"):
            await lane.compute(lambda: crop_into(exchange.inputs["IMAGE"][0], picture, region))
        await lane.turn(timer)
        raw = await lane.run(exchange, timer)
        with timer.stage("geometry"):
            found = await lane.compute(
                lambda: suppress(above(raw["BOXES"][0], raw["SCORES"][0], thresholds), tool.spec.suppression)
            )
            return _name(found, region, picture, tool.spec.labels, options)


def _thresholds(tool: Detector, options: DetectOptions) -> NDArray[np.float32]:
    """Return the lowest score of each class, float32 [C]: its own, or else the request's, or else the model's."""
    common = tool.spec.threshold if options.threshold is None else options.threshold
    own = {mapping.model_label: mapping.threshold for mapping in options.labels if mapping.threshold is not None}
    return np.array([own.get(label, common) for label in tool.spec.labels], np.float32)


def _spec_of(config: TensorConfig) -> TensorSpec | None:
    """Return the spec of an output; None if its size is not known in advance."""
    return None if min(config.dims) < 0 else TensorSpec(config.dtype, (1, *config.dims))


def letterbox(width: int, height: int, size: tuple[int, int]) -> Region:
    """Choose the smallest region of the network's aspect that holds the whole image, centred."""
    scale = max(width / size[1], height / size[0])
    left, top = (width - size[1] * scale) / 2, (height - size[0] * scale) / 2
    return snap(left, top, left + size[1] * scale, top + size[0] * scale, size)


def _name(
    found: Candidates, region: Region, picture: Picture, labels: tuple[str, ...], options: DetectOptions
) -> list[Detection]:
    # The network's boxes are measured from the input's corner; Region counts from the first pixel's centre.
    corners = region.from_input(found.boxes.reshape(-1, 2).astype(np.float64) - 0.5)
    boxes: NDArray[np.float64] = np.clip(corners, 0, (picture.width, picture.height)).reshape(-1, 4)
    names = {mapping.model_label: mapping.label for mapping in options.labels} or {label: label for label in labels}
    detections: list[Detection] = []
    for box, score, number in zip(boxes, found.scores, found.classes, strict=True):
        name = labels[number]
        label = names.get(name)
        is_inside = box[0] < box[2] and box[1] < box[3]
        if label is not None and is_inside:
            x0, y0, x1, y1 = (float(edge) for edge in box)
            detections.append(Detection(label, name, float(score), Box(x0, y0, x1, y1)))
    return detections[: options.max_detections]
