"""Answers for people, in 80 columns where names and boxes leave room."""

from collections.abc import Sequence

import click

from polywand.catalogue import InteractorSpec, Model, ServerInfo
from polywand.cli.as_json import total
from polywand.cli.boxes import NamedBox
from polywand.results import Box, Detections, Outline, Segmentation, SegmentResult, Timing
from polywand_common.texts import shown

STATE_COLOURS = {
    "ready": "green",
    "loading": "yellow",
    "starting": "yellow",
    "unavailable": "yellow",
    "draining": "yellow",
    "failed": "red",
}
SCORES = {"mean_probability": "mean probability", "predicted_iou": "predicted IoU", "seed": "the seed itself"}
MEBIBYTE = 1 << 20


def info(target: str, server: ServerInfo) -> str:
    """Format what a server is."""
    limits = server.limits
    lines = [
        f"{target}: Polywand {server.version}, {_state(server.state, server.state_message)}",
        f"  detector    {server.default_detector or 'none now'}, for requests that name none",
        f"  files       {', '.join(kind.removeprefix('image/') for kind in server.image_types)}",
        f"  arrays      {', '.join(server.pixel_formats)}",
        f"  outlines    {', '.join(server.output_forms)}",
        f"  images      at most {limits.image_bytes / MEBIBYTE:.0f} MiB, {limits.image_pixels:,} pixels, "
        f"{limits.image_side:,} on a side",
        f"  prompts     at most {limits.prompt_points:,} points and {limits.prompt_ms / 1000:g} s each, "
        f"{limits.segment_prompts:,} a call",
        f"  seeds       at most {limits.seed_rings:,} rings, {limits.seed_vertices:,} vertices",
        f"  objects     at most {limits.stream_objects:,} on an image of a session",
        f"  detections  at most {limits.detections:,} on an image, {limits.labels:,} labels",
        f"  messages    at most {limits.message_bytes / MEBIBYTE:.0f} MiB",
    ]
    return "\n".join(lines)


def models(tools: Sequence[Model]) -> str:
    """Format tools, one per line: name, kind, versions, what it needs, licence, its state and why it is not ready."""
    if not tools:
        return "The server has no models."
    rows = [("NAME", "KIND", "VERSIONS", "NEEDS", "LICENCE", "STATE")]
    for tool in tools:
        versions = ", ".join(str(version.version) for version in tool.versions) or "-"
        state = _state(tool.state, tool.state_message)
        rows.append((tool.name, tool.kind, versions, _needs(tool), tool.license or "-", state))
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def segmentation(image: str, found: Segmentation) -> str:
    """Format one outline: parts, vertices, area, box, score and time."""
    lines = [f"{image}: {_shape(found)}"]
    if found.box is not None:
        lines.append(f"  box        {_box(found.box)}")
    if found.alternatives:
        scores = ", ".join("unknown" if other.score is None else f"{other.score:.2f}" for other in found.alternatives)
        lines.append(f"  others     {_count(len(found.alternatives), 'other answer')} with --json, scores {scores}")
    lines += [
        f"  model      {found.model} version {found.version}, threshold {found.threshold:.6g}{_score(found)}",
        f"  polygons   tolerance {found.tolerance:.3g} pixels, IoU {found.iou:.3f} with the mask",
        f"  time       {_time(found.timing)}",
    ]
    return "\n".join(lines)


def segments(image: str, boxes: Sequence[NamedBox], results: Sequence[SegmentResult]) -> str:
    """Format the objects of boxes, one per line: number, id, outline and score."""
    outlines = [result.outline for result in results if result.outline is not None]
    tools = sorted({f"{outline.model} version {outline.version}" for outline in outlines})
    header = f"{image}: {len(outlines)} of {_count(len(results), 'object')} outlined"
    lines = [header + (f" by {' and '.join(tools)}, {_time(total(o.timing for o in outlines))}" if outlines else "")]
    for number, (given, result) in enumerate(zip(boxes, results, strict=True)):
        name = f"{number} {shown(given.id)}".rstrip()
        if result.outline is None:
            lines.append(f"  {name}  failed")
        else:
            lines.append(f"  {name}  {_shape(result.outline)}{_score(result.outline)}")
    return "\n".join(lines)


def detections(image: str, found: Detections) -> str:
    """Format detections, one per line: score, label, box, and the parts of its outline, if any."""
    outline = next((detection.outline for detection in found if detection.outline is not None), None)
    tools = f"{found.model} version {found.version}"
    if outline is not None:
        tools += f" and {outline.model} version {outline.version}"
    lines = [f"{image}: {_count(len(found), 'object')} by {tools}, {_time(found.timing)}"]
    for detection in found:
        alias = f" ({detection.model_label})" if detection.model_label != detection.label else ""
        shape = "" if detection.outline is None else f"  {_shape(detection.outline)}"
        lines.append(f"  {detection.score:.2f}  {detection.label}{alias}  {_box(detection.box)}{shape}")
    return "\n".join(lines)


def _box(box: Box) -> str:
    return ", ".join(f"{edge:.1f}" for edge in box)


def _shape(outline: Outline) -> str:
    if outline.box is None:
        return f"nothing above the threshold {outline.threshold:.6g}"
    rings = [ring for polygon in outline.polygons for ring in (polygon.exterior, *polygon.holes)]
    parts = len(outline.polygons)
    counts = (_count(parts, "part"), _count(len(rings) - parts, "hole"), _count(sum(map(len, rings)), "vertex"))
    return f"{', '.join(counts)}, {outline.area:.1f} square pixels"


def _score(outline: Outline) -> str:
    if outline.score is None or outline.score_kind == "unknown":
        return ""
    return f", score {outline.score:.2f} ({SCORES[outline.score_kind]})"


def _state(state: str, why: str) -> str:
    painted = click.style(state, fg=STATE_COLOURS.get(state))
    return painted if state == "ready" else f"{painted}: {why or 'the server does not say why'}"


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
    return f"{needs} or a box" if spec.box == "optional" else needs


def _time(timing: Timing) -> str:
    inferences = _count(timing.inferences, "inference")
    return f"{timing.total_us / 1000:.1f} ms ({inferences}, {timing.triton_us / 1000:.1f} ms at Triton)"


def _count(number: int, noun: str) -> str:
    plural = {"vertex": "vertices"}.get(noun, f"{noun}s")
    return f"{number} {noun if number == 1 else plural}"
