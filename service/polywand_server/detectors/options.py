"""Options of a request for a frame."""

from dataclasses import dataclass, field

from polywand_server.geometry.boxes import Box
from polywand_server.geometry.shapes import OutputOptions

DEFAULT_MAX_DETECTIONS = 100


@dataclass(frozen=True, slots=True)
class PolygonOptions:
    """How to outline detections; the fields mean what the contract's `PolygonOptions` says, None is its default."""

    model: str = ""
    version: int = 0
    output: OutputOptions = field(default_factory=OutputOptions)


@dataclass(frozen=True, slots=True)
class LabelMapping:
    """What becomes of one label of the model.

    label: the client's name for it. threshold: lowest score of a detection; None is that of all others.
    """

    model_label: str
    label: str
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class DetectOptions:
    """What to find; the fields mean what the contract's `DetectRequest` says, None is its default."""

    model: str
    version: int = 0
    threshold: float | None = None
    labels: tuple[LabelMapping, ...] = ()
    max_detections: int = DEFAULT_MAX_DETECTIONS
    polygons: PolygonOptions | None = None
    roi: Box | None = None
