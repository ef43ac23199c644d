"""Answers for programs: one JSON object a line; docs/client.md lists the keys."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polywand.catalogue import Model, ServerInfo
from polywand.cli.boxes import NamedBox
from polywand.errors import PolywandError
from polywand.results import Box, Detections, Outline, Segmentation, SegmentResult, Timing
from polywand_common.texts import printable


def line(answer: dict[str, Any]) -> str:
    """Format an answer as one line. NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_finite(answer), allow_nan=False)


def failure(image: str | None, error: PolywandError) -> dict[str, Any]:
    """Return an error: image (unless None), text, gRPC's code, invalid fields, request id, missing points."""
    violations = [violation._asdict() for violation in error.violations]
    return {
        **({} if image is None else {"image": image}),
        "error": printable(str(error)),
        "code": error.code.name,
        **({"violations": violations} if violations else {}),
        **({"request_id": error.request_id} if error.request_id else {}),
        **{name: value for name, value in vars(error).items() if name.startswith("missing_") and value},
    }


def info(server: ServerInfo) -> dict[str, Any]:
    """Return what a server is."""
    return asdict(server)


def models(tools: Iterable[Model]) -> dict[str, Any]:
    """Return tools."""
    return {"models": [asdict(tool) | {"default_threshold": _short(tool.default_threshold)} for tool in tools]}


def segmentation(image: str, found: Segmentation, width: int, height: int) -> dict[str, Any]:
    """Return one object. width, height: of the image in pixels, after EXIF orientation."""
    return {"image": image, "width": width, "height": height, **_object(found), "timing": asdict(found.timing)}


def segments(image: str, boxes: Sequence[NamedBox], results: Sequence[SegmentResult]) -> dict[str, Any]:
    """Return the object of each box, in their order. The image's size is null if no box was outlined."""
    outlines = [result.outline for result in results if result.outline is not None]
    return {
        "image": image,
        "width": outlines[0].width if outlines else None,
        "height": outlines[0].height if outlines else None,
        "objects": [
            {"id": given.id, "prompt": _box(given.box), **_result(result)}
            for given, result in zip(boxes, results, strict=True)
        ],
        "timing": asdict(total(outline.timing for outline in outlines)),
    }


def detections(image: str, found: Detections) -> dict[str, Any]:
    """Return the detections on one image."""
    return {
        "image": image,
        "width": found.width,
        "height": found.height,
        "model": found.model,
        "version": found.version,
        "detections": [
            {
                "label": detection.label,
                "model_label": detection.model_label,
                "score": _short(detection.score),
                "box": _box(detection.box),
                **({} if detection.outline is None else {"outline": _outline(detection.outline)}),
            }
            for detection in found
        ],
        "timing": asdict(found.timing),
    }


def total(timings: Iterable[Timing]) -> Timing:
    """Add up the timings of calls; answers of the same call have the same one."""
    calls = [asdict(timing) for timing in set(timings)] or [asdict(Timing(0, 0, 0, 0, 0, 0, 0, 0))]
    added = {name: sum(call[name] for call in calls) for name in calls[0]}
    return Timing(**added | {"received_unix_us": min(call["received_unix_us"] for call in calls)})


def _result(result: SegmentResult) -> dict[str, Any]:
    if result.error is not None:
        return failure(None, result.error)
    return _object(result.unwrap())


def _object(found: Segmentation) -> dict[str, Any]:
    return {
        **_outline(found),
        **_score(found),
        "alternatives": [_outline(other) | _score(other) for other in found.alternatives],
        "provisional": found.provisional,
    }


def _score(outline: Outline) -> dict[str, Any]:
    return {"score": None if outline.score is None else _short(outline.score), "score_kind": outline.score_kind}


def _outline(outline: Outline) -> dict[str, Any]:
    """Return polygons as lists of [x, y]; numbers as short as possible without loss."""
    return {
        "model": outline.model,
        "version": outline.version,
        "threshold": _short(outline.threshold),
        "tolerance": outline.tolerance,
        "iou": outline.iou,
        "area": outline.area,
        "box": None if outline.box is None else _box(outline.box),
        "polygons": [
            {"exterior": _ring(polygon.exterior), "holes": [_ring(hole) for hole in polygon.holes]}
            for polygon in outline.polygons
        ],
    }


def _box(box: Box) -> list[float]:
    return [_short(edge) for edge in box]


def _ring(ring: NDArray[np.float32]) -> list[list[float]]:
    return [[_short(x), _short(y)] for x, y in ring]


def _short(value: float) -> float:
    """Return the shortest decimal of the same 32-bit float: 0.1 instead of 0.10000000149011612."""
    return float(str(np.float32(value)))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
