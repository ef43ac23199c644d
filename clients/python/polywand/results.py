"""Polywand's answers: frozen dataclasses with NumPy arrays.

Coordinates are those of the contract: image pixels, x to the right, y down, pixel *corners* at integers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from polywand.errors import PolywandError
from polywand_contract.raster import encode_rle, fill_rings

ScoreKind: TypeAlias = Literal["mean_probability", "predicted_iou", "seed", "unknown"]


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


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Polygon:
    """One connected part of an object.

    exterior: float32 [N, 2], N >= 3, (x, y); clockwise on a screen; the last vertex joins the first, unrepeated.
    holes: float32 [M, 2] each, counter-clockwise.
    """

    exterior: NDArray[np.float32]
    holes: tuple[NDArray[np.float32], ...] = ()

    def __repr__(self) -> str:
        return f"Polygon({len(self.exterior)} vertices, {len(self.holes)} holes)"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class Outline:
    """The outline of one object. `shapely.geometry.shape(outline)` makes a shape of it.

    polygons: the object's parts, largest first; empty when the model found nothing above the threshold, or the request
        had `polygons=False`.
    box: the bounding box of the outline; None when nothing was found.
    area: in square pixels, without holes, before simplification.
    mask: bool [H, W] before simplification; None unless the request had `mask=True`.
    png: the same mask as a PNG file, one bit a pixel, white inside; b"" unless the request had `png=True`.
    width, height: of the image in pixels, after EXIF orientation.
    model, version: the tool that answered. threshold: the probability that was used.
    tolerance: the simplification that was applied, in pixels.
    iou: intersection over union of the polygons and the outline before simplification; 1 without polygons.
    score: how sure the tool is of this outline, 0 to 1; None for the outline of a detection.
    score_kind: what the score is: the mean probability of the mask's pixels, the model's own estimate of the IoU, or 1
        for a seed's own outline. Scores of different kinds, and of different tools, cannot be compared.
    """

    polygons: tuple[Polygon, ...]
    box: Box | None
    area: float
    mask: NDArray[np.bool_] | None = None
    png: bytes = b""
    width: int
    height: int
    model: str
    version: int
    threshold: float
    tolerance: float
    iou: float
    score: float | None = None
    score_kind: ScoreKind = "unknown"

    def __repr__(self) -> str:
        """Return one line, without the arrays: size, tool, what was found."""
        box = "nothing found" if self.box is None else f"box=({', '.join(f'{edge:g}' for edge in self.box)})"
        score = "" if self.score is None else f", score={self.score:.3f}"
        tool = f"{self.model} version {self.version} on {self.width} x {self.height} pixels"
        return f"{type(self).__name__}({tool}: {len(self.polygons)} polygons, area={self.area:g}, {box}{score})"

    def to_mask(self) -> NDArray[np.bool_]:
        """Return the outline as a mask, bool [height, width]: the server's, if it was sent, else of the polygons.

        Raises ValueError when neither was sent.
        """
        if self.mask is not None:
            return self.mask
        if self.box is not None and not self.polygons:
            raise ValueError("this outline has neither polygons nor a mask: request one of them")
        rings = [ring for polygon in self.polygons for ring in (polygon.exterior, *polygon.holes)]
        return fill_rings(rings, self.width, self.height).view(np.bool_)

    def to_rle(self) -> dict[str, Any]:
        """Return COCO's run-length encoding of `to_mask`: {"size": [height, width], "counts": str}.

        It is as in COCO's JSON files, with all holes, and pycocotools reads it. Raises ValueError as `to_mask` does.
        """
        return {"size": [self.height, self.width], "counts": encode_rle(self.to_mask())}

    def to_coco(self, holes: Literal["rle", "error", "drop"] = "rle") -> list[list[float]] | dict[str, Any]:
        """Return COCO's `segmentation`: lists [x0, y0, x1, y1, ...], one per part.

        COCO's polygons have no holes. holes: what to do with an outline that has some: "rle" returns `to_rle()`
        instead, "error" raises ValueError, "drop" returns the exteriors alone. Raises ValueError as `to_mask` does.
        """
        if self.box is not None and not self.polygons:
            return self.to_rle()
        if holes != "drop" and any(polygon.holes for polygon in self.polygons):
            if holes == "error":
                raise ValueError("this outline has holes, which COCO's polygons cannot have")
            return self.to_rle()
        return [polygon.exterior.ravel().tolist() for polygon in self.polygons]

    @property
    def __geo_interface__(self) -> dict[str, Any]:
        """The polygons as a GeoJSON geometry with closed rings, in image pixels: a Polygon, or a MultiPolygon."""
        parts = [tuple(_closed(ring) for ring in (polygon.exterior, *polygon.holes)) for polygon in self.polygons]
        if len(parts) == 1:
            return {"type": "Polygon", "coordinates": parts[0]}
        return {"type": "MultiPolygon", "coordinates": parts}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class Segmentation(Outline):
    """The answer to one prompt: the outline of one object.

    alternatives: the tool's other answers to the same prompt, the surest first; empty where it has one answer only.
    skipped: how many earlier prompts of this object this answer replaces, because it overtook them.
    timing: of this answer; from `segment`, of all prompts of the call together.
    provisional: whether the same prompt, sent again, may get another answer: passes were left out for a newer prompt,
        or a detector whose proposals the tool uses did not answer.
    """

    alternatives: tuple[Outline, ...] = ()
    skipped: int = 0
    timing: Timing
    provisional: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class SegmentResult:
    """The answer to one prompt of `segment`: its outline or its error.

    object_id: the prompt's. outline: None if it failed. error: None if it did not; `IncompletePrompt` if the tool
    needs more points or a box.
    """

    object_id: str
    outline: Segmentation | None
    error: PolywandError | None = None

    def unwrap(self) -> Segmentation:
        """Return the outline, or raise the error."""
        if self.outline is None:
            assert self.error is not None
            raise self.error
        return self.outline


@dataclass(frozen=True, slots=True)
class Detection:
    """One object that a detector found.

    label: the task's label, after mapping. model_label: the model's own. score: 0 to 1.
    box: the detector's. outline: an interactor's, from that box; None unless the request had `polygons`, `mask` or
    `png`.
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


def _closed(ring: NDArray[np.float32]) -> tuple[tuple[float, float], ...]:
    vertices = tuple((float(x), float(y)) for x, y in ring)
    return (*vertices, vertices[0])
