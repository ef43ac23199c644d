"""Convert requests from protobuf messages to the domain's types, and check every field."""

import math
from collections.abc import Mapping
from itertools import chain

import numpy as np

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_pictures import PixelFormat, RawPixels, ValueRange
from polywand_server.detectors.options import DEFAULT_MAX_DETECTIONS, DetectOptions, LabelMapping, PolygonOptions
from polywand_server.errors import InvalidInputError
from polywand_server.geometry.boxes import Box
from polywand_server.geometry.seeds import PolygonSeed, RleSeed, Seed
from polywand_server.geometry.shapes import Form, OutputOptions
from polywand_server.images import EncodedImage, ImageDigest, ImageSource, RawImage
from polywand_server.interactors.prompt import Label, Point, Prompt

MAX_OBJECT_ID_BYTES = 128
MAX_SEGMENT_PROMPTS = 1000
# Errors repeat names, and gRPC sends errors in trailers, which clients limit to 8 to 16 kB.
MAX_NAME_BYTES = 256
MAX_TOLERANCE = 1000
MAX_MAX_POINTS = 100_000
MAX_MAX_DETECTIONS = 1000
MAX_SEGMENT_PROMPTS = 1000
# Bounds the cost of a message before the model's own limit is known.
MAX_POINTS = 10_000
MAX_SEED_VERTICES = 20_000
MAX_SEED_RINGS = 5_000
MAX_LABELS = 2_000
MAX_FORMS = 100
MAX_SEED_RLE_BYTES = 1024 * 1024
# Fixed-point coordinates of the rasteriser hold no more.
MAX_SEED_COORDINATE = 1e6

_NO_SCORE = "{:g} is not a score; it must be from 0 to 1"
# By their enums of the contract: what this server reads and writes.
OUTPUT_FORMS: Mapping[pb.OutputForm.ValueType, Form] = {
    pb.OUTPUT_FORM_POLYGONS: Form.POLYGONS,
    pb.OUTPUT_FORM_RLE: Form.RLE,
    pb.OUTPUT_FORM_PNG: Form.PNG,
    pb.OUTPUT_FORM_BOX: Form.BOX,
}
PIXEL_FORMATS: Mapping[pb.PixelFormat.ValueType, PixelFormat] = {
    pb.PIXEL_FORMAT_RGB8: PixelFormat.RGB8,
    pb.PIXEL_FORMAT_BGR8: PixelFormat.BGR8,
    pb.PIXEL_FORMAT_GRAY8: PixelFormat.GRAY8,
    pb.PIXEL_FORMAT_RGBA8: PixelFormat.RGBA8,
    pb.PIXEL_FORMAT_GRAY16: PixelFormat.GRAY16,
}
_LABELS = {
    pb.POINT_LABEL_POSITIVE: Label.POSITIVE,
    pb.POINT_LABEL_NEGATIVE: Label.NEGATIVE,
    pb.POINT_LABEL_EXTREME: Label.EXTREME,
}


def read_image(image: pb.Image, data: memoryview | None, field: str) -> ImageSource:
    """Convert an image's source; `ImageStore.lease` checks what is in it.

    data: the image's bytes; None where they are in the message.
    """
    source = image.WhichOneof("source")
    range_field = f"{field}.value_range"
    given = ValueRange(image.value_range.low, image.value_range.high) if image.HasField("value_range") else None
    if source == "encoded":
        return EncodedImage(image.encoded if data is None else data, f"{field}.encoded", given, range_field)
    if source == "raw":
        raw, layout = image.raw, PIXEL_FORMATS.get(image.raw.format)
        if layout is None:
            known = ", ".join(PIXEL_FORMATS.values())
            raise InvalidInputError(f"{field}.raw.format", f"{raw.format} is not a known pixel format; use {known}")
        pixels = RawPixels(raw.data if data is None else data, raw.width, raw.height, layout)
        return RawImage(pixels, f"{field}.raw", given, range_field)
    if source == "digest":
        return ImageDigest(image.digest, f"{field}.digest", given, range_field)
    raise InvalidInputError(field, "an image is needed: encoded, raw, or the digest of one that was sent before")


def read_prompt(prompt: pb.Prompt) -> Prompt:
    """Convert a prompt; the session checks that its points are inside the image."""
    if len(prompt.points) > MAX_POINTS:
        text = f"{len(prompt.points)} points; at most {MAX_POINTS} are read"
        raise InvalidInputError("prompt.points", text, metadata={"limit": "prompt_points"})
    seed = _seed(prompt.seed) if prompt.HasField("seed") else None
    if seed is not None:
        _ = seed.digest  # computed here, since a large prompt is read in a thread
    return Prompt(
        model=read_model(prompt, "prompt."),
        version=prompt.version,
        object_id=_object_id(prompt.object_id, "prompt.object_id"),
        points=tuple(_point(point, f"prompt.points[{number}]") for number, point in enumerate(prompt.points)),
        box=read_box(prompt.box, "prompt.box") if prompt.HasField("box") else None,
        seed=seed,
        output=read_output(prompt.output, "prompt.output"),
    )


def read_roi(request: pb.SegmentRequest | pb.DetectRequest) -> Box | None:
    """Convert the part of the image that counts; None for all of it. That it is inside is checked later."""
    if not request.HasField("roi"):
        return None
    roi = read_box(request.roi, "roi")
    if roi.x0 < 0 or roi.y0 < 0:
        raise InvalidInputError("roi", f"it begins at ({roi.x0:g}, {roi.y0:g}), outside: the image begins at (0, 0)")
    return roi


def read_forget(forget: pb.Forget) -> str | None:
    """Return the id of the object to forget; None for all."""
    objects = forget.WhichOneof("objects")
    if objects is None:
        raise InvalidInputError("forget", "an object id is needed, or all")
    if objects == "all":
        if not forget.all:
            raise InvalidInputError("forget.all", "it must be true; to forget one object, send its id")
        return None
    return _object_id(forget.object_id, "forget.object_id")


def short_names(prompt: pb.Prompt) -> tuple[str, str]:
    """Return object id and model name of a refused prompt, for its reply; empty where they are too long."""
    return short_id(prompt.object_id), prompt.model if len(prompt.model.encode()) <= MAX_NAME_BYTES else ""


def short_id(object_id: str) -> str:
    """Return an object's id for a reply; empty where it is too long."""
    return object_id if len(object_id.encode()) <= MAX_OBJECT_ID_BYTES else ""


def read_detect(request: pb.DetectRequest) -> DetectOptions:
    """Convert all options of a detection, without its image."""
    threshold = request.threshold if request.HasField("threshold") else None
    if threshold is not None and not 0 <= threshold <= 1:
        raise InvalidInputError("threshold", _NO_SCORE.format(threshold))
    limit = request.max_detections if request.HasField("max_detections") else DEFAULT_MAX_DETECTIONS
    if not 1 <= limit <= MAX_MAX_DETECTIONS:
        text = f"{limit} is not from 1 to {MAX_MAX_DETECTIONS}"
        raise InvalidInputError("max_detections", text, metadata={"limit": "detections"})
    return DetectOptions(
        model=read_model(request, ""),
        version=request.version,
        threshold=threshold,
        labels=_labels(request),
        max_detections=limit,
        polygons=_polygons(request.polygons) if request.HasField("polygons") else None,
        roi=read_roi(request),
    )


def _labels(request: pb.DetectRequest) -> tuple[LabelMapping, ...]:
    if len(request.labels) > MAX_LABELS:
        text = f"{len(request.labels)} labels; at most {MAX_LABELS} are read"
        raise InvalidInputError("labels", text, metadata={"limit": "labels"})
    mappings: dict[str, LabelMapping] = {}
    for number, label in enumerate(request.labels):
        mapping = _label(label, number)
        if mapping.model_label in mappings:
            text = f"'{mapping.model_label}' is mapped by labels[{list(mappings).index(mapping.model_label)}] already"
            raise InvalidInputError(f"labels[{number}].model_label", text)
        mappings[mapping.model_label] = mapping
    return tuple(mappings.values())


def _label(label: pb.LabelMapping, number: int) -> LabelMapping:
    name, own = label.model_label, label.label
    if not name:
        field = f"labels[{number}].model_label"
        raise InvalidInputError(field, "a label of the model is needed; ListModels lists them")
    if len(name.encode()) > MAX_NAME_BYTES or len(own.encode()) > MAX_NAME_BYTES:
        field = "model_label" if len(name.encode()) > MAX_NAME_BYTES else "label"
        raise InvalidInputError(f"labels[{number}].{field}", f"a label has at most {MAX_NAME_BYTES} bytes")
    threshold = label.threshold if label.HasField("threshold") else None
    if threshold is not None and not 0 <= threshold <= 1:
        raise InvalidInputError(f"labels[{number}].threshold", _NO_SCORE.format(threshold))
    return LabelMapping(name, own or name, threshold)


def _polygons(polygons: pb.PolygonOptions) -> PolygonOptions:
    return PolygonOptions(
        model=read_model(polygons, "polygons."),
        version=polygons.version,
        output=read_output(polygons.output, "polygons.output"),
    )


def _object_id(object_id: str, field: str) -> str:
    if len(object_id.encode()) > MAX_OBJECT_ID_BYTES:
        raise InvalidInputError(field, f"it must have at most {MAX_OBJECT_ID_BYTES} bytes")
    return object_id


def read_model(message: pb.Prompt | pb.SegmentRequest | pb.DetectRequest | pb.PolygonOptions, path: str) -> str:
    """Read the name of a tool, empty for the server's choice, and check the version beside it. path: of the message."""
    name = message.model
    if len(name.encode()) > MAX_NAME_BYTES:
        raise InvalidInputError(f"{path}model", f"a name has at most {MAX_NAME_BYTES} bytes")
    if message.version and not name:
        text = f"version {message.version} needs the name of a model; without one, the server chooses both"
        raise InvalidInputError(f"{path}version", text)
    return name


def _point(point: pb.Point, field: str) -> Point:
    if not (math.isfinite(point.x) and math.isfinite(point.y)):
        raise InvalidInputError(field, f"({point.x}, {point.y}) is not a position; coordinates must be finite")
    label = _LABELS.get(point.label)
    if label is None:
        raise InvalidInputError(f"{field}.label", "a label is needed: POSITIVE, NEGATIVE or EXTREME")
    return Point(point.x, point.y, label)


def read_box(box: pb.Box, field: str) -> Box:
    """Convert a box; that it is inside the image is checked later."""
    edges = (box.x0, box.y0, box.x1, box.y1)
    text = ", ".join(f"{edge:g}" for edge in edges)
    if not all(math.isfinite(edge) for edge in edges):
        raise InvalidInputError(field, f"({text}) is not a box; coordinates must be finite")
    if box.x0 >= box.x1 or box.y0 >= box.y1:
        raise InvalidInputError(field, f"({text}) is empty or inverted; it must have x0 < x1 and y0 < y1")
    return Box(*edges)


def _seed(seed: pb.SeedMask) -> Seed:
    source = seed.WhichOneof("source")
    if source == "rle":
        if len(seed.rle.counts) > MAX_SEED_RLE_BYTES:
            raise InvalidInputError("prompt.seed.rle.counts", f"they have at most {MAX_SEED_RLE_BYTES} bytes")
        if not seed.rle.counts.isascii():
            raise InvalidInputError("prompt.seed.rle.counts", "they are not COCO's compressed counts, which are ASCII")
        return RleSeed(seed.rle.counts, seed.rle.width, seed.rle.height)
    if source == "polygons":
        return _polygon_seed(seed.polygons)
    raise InvalidInputError("prompt.seed", "a seed needs run lengths or polygons")


def _polygon_seed(polygons: pb.PolygonSet) -> PolygonSeed:
    field = "prompt.seed.polygons"
    count = len(polygons.polygons)
    if count <= MAX_SEED_RINGS:
        count += sum(len(polygon.holes) for polygon in polygons.polygons)
    if count > MAX_SEED_RINGS:
        text = f"it has more than {MAX_SEED_RINGS} rings, the most that are read"
        raise InvalidInputError(field, text, metadata={"limit": "seed_rings"})
    rings = list(chain.from_iterable((polygon.exterior, *polygon.holes) for polygon in polygons.polygons))
    if not rings:
        raise InvalidInputError(field, "at least one polygon is needed")
    vertices = sum(len(ring.coordinates) for ring in rings) // 2
    if vertices > MAX_SEED_VERTICES:
        text = f"{vertices} vertices; at most {MAX_SEED_VERTICES} are read"
        raise InvalidInputError(field, text, metadata={"limit": "seed_vertices"})
    if any(len(ring.coordinates) < 6 or len(ring.coordinates) % 2 for ring in rings):
        raise InvalidInputError(field, "every ring needs at least three vertices, x and y of each")
    arrays = tuple(np.array(ring.coordinates, np.float32).reshape(-1, 2) for ring in rings)
    # Comparisons with NaN are false, so this rejects NaN too.
    if not all((np.abs(array) <= MAX_SEED_COORDINATE).all() for array in arrays):
        raise InvalidInputError(field, f"coordinates must be finite and within {MAX_SEED_COORDINATE:g} pixels")
    return PolygonSeed(arrays, tuple(1 + len(polygon.holes) for polygon in polygons.polygons))


def read_output(output: pb.OutputOptions, field: str) -> OutputOptions:
    """Convert the options of an answer."""
    threshold = output.threshold if output.HasField("threshold") else None
    if threshold is not None and not 0 < threshold < 1:
        raise InvalidInputError(f"{field}.threshold", f"{threshold:g} is not above 0 and below 1")
    tolerance = output.tolerance if output.HasField("tolerance") else None
    if tolerance is not None and not 0 <= tolerance <= MAX_TOLERANCE:
        raise InvalidInputError(f"{field}.tolerance", f"{tolerance:g} is not from 0 to {MAX_TOLERANCE} pixels")
    points = output.max_points if output.HasField("max_points") else None
    if points is not None and not 3 <= points <= MAX_MAX_POINTS:
        raise InvalidInputError(f"{field}.max_points", f"{points} is not from 3 to {MAX_MAX_POINTS}")
    if len(output.forms) > MAX_FORMS:
        raise InvalidInputError(f"{field}.forms", f"{len(output.forms)} forms; at most {MAX_FORMS} are read")
    forms = (_form(form, f"{field}.forms[{number}]") for number, form in enumerate(output.forms))
    return OutputOptions(threshold, tolerance, points, tuple(dict.fromkeys(forms)) or (Form.POLYGONS,))


def _form(form: pb.OutputForm.ValueType, field: str) -> Form:
    known = OUTPUT_FORMS.get(form)
    if known is None:
        raise InvalidInputError(field, f"{form} is not a form of outlines; use POLYGONS, RLE, PNG or BOX")
    return known
