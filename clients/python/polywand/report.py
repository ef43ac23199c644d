"""Answers as text for people and as JSON for programs."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polywand.catalogue import InteractorSpec, Model
from polywand.errors import PolywandError
from polywand.results import Detections, Outline, Segmentation, Timing
from polywand_common.texts import printable


def line(answer: dict[str, Any]) -> str:
    """Format an answer as one line of JSON. NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_finite(answer), allow_nan=False)


def models_text(models: Sequence[Model]) -> str:
    """Format tools, one per line: name, kind, versions, what it needs, licence, whether it is ready or why not."""
    if not models:
        return "The server has no models."
    rows = [("NAME", "KIND", "VERSIONS", "NEEDS", "LICENCE", "READY")]
    for model in models:
        versions = ", ".join(str(version.version) for version in model.versions) or "-"
        ready = "yes" if model.ready else f"no: {model.state_message or 'the server does not say why'}"
        rows.append((model.name, model.kind, versions, _needs(model), model.license or "-", ready))
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def segmentation_text(image: str, found: Segmentation) -> str:
    """Format one outline: parts, vertices, area, box and time."""
    lines = [f"{image}: {_shape(found)}"]
    if found.box is not None:
        lines.append(f"  box        {', '.join(f'{edge:.1f}' for edge in found.box)}")
    lines += [
        f"  model      {found.model} version {found.version}, threshold {_short(found.threshold)}, "
        f"tolerance {found.tolerance:.3g} pixels, IoU {found.iou:.3f} with the mask",
        f"  time       {_time(found.timing)}",
    ]
    return "\n".join(lines)


def detections_text(image: str, found: Detections) -> str:
    """Format detections, one per line: score, label, box, and the parts of its outline, if any."""
    outline = next((detection.outline for detection in found if detection.outline is not None), None)
    tools = f"{found.model} version {found.version}"
    if outline is not None:
        tools += f" and {outline.model} version {outline.version}"
    lines = [f"{image}: {_count(len(found), 'object')} by {tools}, {_time(found.timing)}"]
    for detection in found:
        alias = f" ({detection.model_label})" if detection.model_label != detection.label else ""
        box = ", ".join(f"{edge:.1f}" for edge in detection.box)
        shape = "" if detection.outline is None else f"  {_shape(detection.outline)}"
        lines.append(f"  {detection.score:.2f}  {detection.label}{alias}  {box}{shape}")
    return "\n".join(lines)


def models_json(models: Iterable[Model]) -> dict[str, Any]:
    """Return tools as JSON."""
    return {"models": [asdict(model) | {"default_threshold": _short(model.default_threshold)} for model in models]}


def failure_json(image: str | None, error: PolywandError) -> dict[str, Any]:
    """Return an error as JSON: image (unless None), text, gRPC's code, invalid fields, request id, missing points."""
    violations = [violation._asdict() for violation in error.violations]
    return {
        **({} if image is None else {"image": image}),
        "error": printable(str(error)),
        "code": error.code.name,
        **({"violations": violations} if violations else {}),
        **({"request_id": error.request_id} if error.request_id else {}),
        **{name: value for name, value in vars(error).items() if name.startswith("missing_") and value},
    }


def segmentation_json(image: str, found: Segmentation, width: int, height: int) -> dict[str, Any]:
    """Return one outline as JSON; polygons as lists of [x, y], numbers as short as possible without loss.

    width, height: of the image in pixels, after EXIF orientation.
    """
    return {
        "image": image,
        "width": width,
        "height": height,
        "model": found.model,
        "version": found.version,
        "threshold": _short(found.threshold),
        "provisional": found.provisional,
        **_outline_json(found),
        "timing": asdict(found.timing),
    }


def detections_json(image: str, found: Detections) -> dict[str, Any]:
    """Return the detections on one image as JSON."""
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
                "box": [_short(edge) for edge in detection.box],
                **({} if detection.outline is None else {"outline": _detected_json(detection.outline)}),
            }
            for detection in found
        ],
        "timing": asdict(found.timing),
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _detected_json(outline: Outline) -> dict[str, Any]:
    made_by = {"model": outline.model, "version": outline.version, "threshold": _short(outline.threshold)}
    return made_by | _outline_json(outline)


def _outline_json(outline: Outline) -> dict[str, Any]:
    return {
        "tolerance": outline.tolerance,
        "iou": outline.iou,
        "area": outline.area,
        "box": None if outline.box is None else [_short(edge) for edge in outline.box],
        "polygons": [
            {"exterior": _ring(polygon.exterior), "holes": [_ring(hole) for hole in polygon.holes]}
            for polygon in outline.polygons
        ],
    }


def _shape(outline: Outline) -> str:
    if outline.box is None:
        return f"nothing above the threshold {_short(outline.threshold)}"
    rings = [ring for polygon in outline.polygons for ring in (polygon.exterior, *polygon.holes)]
    parts = len(outline.polygons)
    counts = (_count(parts, "part"), _count(len(rings) - parts, "hole"), _count(sum(map(len, rings)), "vertex"))
    return f"{', '.join(counts)}, {outline.area:.1f} square pixels"


def _needs(model: Model) -> str:
    if model.kind == "detector":
        return f"an image ({_count(len(model.labels), 'label')})"
    return _prompt_needs(model.interactor) if model.interactor is not None else "-"


def _prompt_needs(spec: InteractorSpec) -> str:
    parts = [
        _count(count, f"{label} point")
        for label, count in (
            ("extreme", spec.min_extreme_points),
            ("positive", spec.min_positive_points),
            ("negative", spec.min_negative_points),
        )
        if count
    ]
    if spec.box == "required":
        parts.insert(0, "a box")
    needs = " and ".join(parts) or "a prompt"
    return f"{needs}, or a box" if spec.box == "optional" else needs


def _time(timing: Timing) -> str:
    inferences = _count(timing.inferences, "inference")
    return f"{timing.total_us / 1000:.1f} ms ({inferences}, {timing.triton_us / 1000:.1f} ms at Triton)"


def _count(number: int, noun: str) -> str:
    plural = {"vertex": "vertices"}.get(noun, f"{noun}s")
    return f"{number} {noun if number == 1 else plural}"


def _ring(ring: NDArray[np.float32]) -> list[list[float]]:
    return [[_short(x), _short(y)] for x, y in ring]


def _short(value: float) -> float:
    """Return the shortest decimal of the same 32-bit float: 0.1 instead of 0.10000000149011612."""
    return float(str(np.float32(value)))
