"""Options of a request for a frame."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from polywand_server.geometry.shapes import OutputOptions

DEFAULT_MAX_DETECTIONS = 100


@dataclass(frozen=True, slots=True)
class PolygonOptions:
    """How to outline detections; the fields mean what the contract's `PolygonOptions` says, None is its default."""

    model: str | None = None
    version: int = 0
    output: OutputOptions = field(default_factory=OutputOptions)


@dataclass(frozen=True, slots=True)
class DetectOptions:
    """What to find; the fields mean what the contract's `DetectRequest` says, None is its default."""

    model: str
    version: int = 0
    threshold: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    max_detections: int = DEFAULT_MAX_DETECTIONS
    polygons: PolygonOptions | None = None
