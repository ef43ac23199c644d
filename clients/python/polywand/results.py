"""Polywand's answers: frozen dataclasses with NumPy arrays.

Coordinates are those of the contract: image pixels, x to the right, y down, pixel *corners* at integers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

ModelKind: TypeAlias = Literal["interactor", "detector", "unknown"]
ModelState: TypeAlias = Literal["loading", "ready", "unavailable", "failed", "unknown"]
BoxUse: TypeAlias = Literal["none", "optional", "required", "unknown"]


class Box(NamedTuple):
    """An axis-aligned rectangle in image pixels: x0 < x1, y0 < y1."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True, slots=True)
class Timing:
    """How long each stage of one answer took, in microseconds; 0 for stages that did not happen.

    received_unix_us: when the server received the message, by its own clock.
    wait_us: waiting for an earlier answer of the same object, or for a turn.
    decode_us: image bytes to pixels. prepare_us: pixels and prompt to tensors.
    triton_us: transport, Triton's queue and the model. geometry_us: logits to polygons, or raw to suppressed boxes.
    total_us: from receipt until the reply is sent, without the network between client and server.
    inferences: number of inferences; 0 when the answer was made from a remembered probability map.
    """

    received_unix_us: int
    wait_us: int
    decode_us: int
    prepare_us: int
    triton_us: int
    geometry_us: int
    total_us: int
    inferences: int


@dataclass(frozen=True, slots=True, eq=False)
class Polygon:
    """One connected part of an object.

    exterior: float32 [N, 2], N >= 3, (x, y); clockwise on a screen; the last vertex joins the first, unrepeated.
    holes: float32 [M, 2] each, counter-clockwise.
    """

    exterior: NDArray[np.float32]
    holes: tuple[NDArray[np.float32], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """The outline of one object.

    polygons: the object's parts, largest first; empty when the model found nothing above the threshold.
    box: the bounding box of all polygons; None when there are none.
    area: in square pixels, without holes, before simplification.
    mask: bool [H, W] before simplification; None unless the request had `mask=True`.
    model, version: the tool that answered.
    threshold: the probability that was used. tolerance: the simplification that was applied, in pixels.
    iou: intersection over union of the polygons and the outline before simplification; 1 without polygons.
    """

    polygons: tuple[Polygon, ...]
    box: Box | None
    area: float
    mask: NDArray[np.bool_] | None
    model: str
    version: int
    threshold: float
    tolerance: float
    iou: float

    def to_coco(self) -> list[list[float]]:
        """Exteriors as COCO's `segmentation` lists [x0, y0, x1, y1, ...], one per part.

        COCO polygons have no holes; where those matter, request the mask.
        """
        return [polygon.exterior.ravel().tolist() for polygon in self.polygons]


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation(Outline):
    """The answer to one prompt: the outline of one object.

    skipped: how many earlier prompts of this object this answer replaces, because it overtook them.
    provisional: whether the same prompt, sent again, may get another answer: passes were left out for a newer prompt,
        or a detector whose proposals the tool uses did not answer.
    """

    skipped: int
    timing: Timing
    provisional: bool = False


@dataclass(frozen=True, slots=True)
class Detection:
    """One object that a detector found.

    label: the task's label, after mapping. model_label: the model's own. score: 0 to 1.
    box: the detector's. outline: an interactor's, from that box; None unless the request had `polygons`.
    """

    label: str
    model_label: str
    score: float
    box: Box
    outline: Outline | None = None

    @property
    def polygons(self) -> tuple[Polygon, ...]:
        """The outline's polygons; empty without an outline, or if it is empty."""
        return () if self.outline is None else self.outline.polygons


@dataclass(frozen=True, slots=True)
class Detections(Sequence[Detection]):
    """The detections on one image: a sequence of `Detection`, best first.

    width, height: of the image in pixels, after EXIF orientation.
    model, version: the tool that answered.
    """

    items: tuple[Detection, ...]
    width: int
    height: int
    model: str
    version: int
    timing: Timing

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Detection, ...]: ...
    def __getitem__(self, index: int | slice) -> Detection | tuple[Detection, ...]:
        return self.items[index]

    def __iter__(self) -> Iterator[Detection]:
        return iter(self.items)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a model; `state_message` says why it is not ready, and is empty when it is."""

    version: int
    state: ModelState
    state_message: str

    @property
    def ready(self) -> bool:
        """Whether Triton serves it."""
        return self.state == "ready"


@dataclass(frozen=True, slots=True)
class InteractorSpec:
    """What a prompt must have; with less, it raises `IncompletePrompt`.

    min_positive_points (0 if there is an optional box), min_negative_points: least number of clicks.
    min_extreme_points: left-, top-, right- and bottom-most points that start the object; 0 if the tool reads none.
    max_points: most points of all labels.
    """

    min_positive_points: int
    min_negative_points: int
    min_extreme_points: int
    box: BoxUse
    max_points: int


@dataclass(frozen=True, slots=True)
class Model:
    """One tool of the server.

    state: whether a request would be served now ("ready"), and if not, whether it will be by itself: "loading" and
    "unavailable" end, "failed" stays until it is repaired. state_message: why, in a sentence; empty if it is ready.
    default_threshold: probability or score of requests that give none.
    license: SPDX identifier of the weights' licence.
    interactor: what a prompt must have; None for detectors. labels: of a detector, by class index; () for interactors.
    """

    name: str
    kind: ModelKind
    display_name: str
    versions: tuple[ModelVersion, ...]
    state: ModelState
    state_message: str
    help_message: str
    animated_gif: str
    license: str
    weights_source: str
    default_threshold: float
    interactor: InteractorSpec | None
    labels: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether a request would be served now."""
        return self.state == "ready"
