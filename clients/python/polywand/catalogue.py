"""What a server is and which tools it has: dataclasses, and their reading from messages."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

from polywand_contract.v1 import annotation_pb2 as pb

ModelKind: TypeAlias = Literal["interactor", "detector", "unknown"]
ModelState: TypeAlias = Literal["loading", "ready", "unavailable", "failed", "unknown"]
BoxUse: TypeAlias = Literal["none", "optional", "required", "unknown"]
ServerState: TypeAlias = Literal["starting", "ready", "draining", "unknown"]


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
    max_points: most points of all labels. reads_seed: whether it reads a seed; a prompt with one is refused if not.
    """

    min_positive_points: int
    min_negative_points: int
    min_extreme_points: int
    box: BoxUse
    max_points: int
    reads_seed: bool = False


@dataclass(frozen=True, slots=True)
class Label:
    """A label of a detector; `str` gives its name.

    color: "#rrggbb", or "" for the client's choice. parent: a more general label that includes it, or "".
    """

    name: str
    color: str = ""
    parent: str = ""

    def __str__(self) -> str:
        return self.name


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
    labels: tuple[Label, ...]

    @property
    def ready(self) -> bool:
        """Whether a request would be served now."""
        return self.state == "ready"


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits of a server; a request beyond one is an error that names it. 0: the server does not say.

    message_bytes, image_bytes: of one message; of one image as it is sent.
    image_pixels, image_side: pixels of one image; of one of its sides.
    segment_prompts: prompts of one `Segment` call; `segment` makes several calls of more.
    stream_objects: objects on one image of one session that were not forgotten.
    prompt_points, seed_vertices, seed_rings: of one prompt; a tool may take fewer points.
    detections, labels: of one detection. prompt_ms: milliseconds for one prompt.
    """

    message_bytes: int
    image_bytes: int
    image_pixels: int
    image_side: int
    segment_prompts: int
    stream_objects: int
    prompt_points: int
    seed_vertices: int
    seed_rings: int
    detections: int
    labels: int
    prompt_ms: int


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server is.

    version: of Polywand. state: whether it serves requests; "draining": it is about to stop.
    state_message: why it is not ready, in a sentence; empty if it is.
    image_types: media types of the files that it reads ("image/jpeg"). pixel_formats: of arrays ("RGB8").
    output_forms: of outlines ("polygons", "rle", "png", "box").
    default_detector: of detections that name no model; "" if there is none now.
    """

    version: str
    state: ServerState
    state_message: str
    limits: ServerLimits
    image_types: tuple[str, ...]
    pixel_formats: tuple[str, ...]
    output_forms: tuple[str, ...]
    default_detector: str

    @property
    def ready(self) -> bool:
        """Whether it serves requests."""
        return self.state == "ready"


_KINDS: dict[int, ModelKind] = {pb.MODEL_KIND_INTERACTOR: "interactor", pb.MODEL_KIND_DETECTOR: "detector"}
_STATES: dict[int, ModelState] = {
    pb.MODEL_STATE_LOADING: "loading",
    pb.MODEL_STATE_READY: "ready",
    pb.MODEL_STATE_UNAVAILABLE: "unavailable",
    pb.MODEL_STATE_FAILED: "failed",
}
_BOX_USES: dict[int, BoxUse] = {
    pb.BOX_USE_NONE: "none",
    pb.BOX_USE_OPTIONAL: "optional",
    pb.BOX_USE_REQUIRED: "required",
}
_SERVER_STATES: dict[int, ServerState] = {
    pb.SERVER_STATE_STARTING: "starting",
    pb.SERVER_STATE_READY: "ready",
    pb.SERVER_STATE_DRAINING: "draining",
}


def read_model(message: pb.Model) -> Model:
    """Read one tool."""
    spec = message.interactor
    return Model(
        name=message.name,
        kind=_KINDS.get(message.kind, "unknown"),
        display_name=message.display_name,
        versions=tuple(
            ModelVersion(v.version, _STATES.get(v.state, "unknown"), v.state_message) for v in message.versions
        ),
        state=_STATES.get(message.state, "unknown"),
        state_message=message.state_message,
        help_message=message.help_message,
        animated_gif=message.animated_gif,
        license=message.license,
        weights_source=message.weights_source,
        default_threshold=message.default_threshold,
        interactor=InteractorSpec(
            spec.min_positive_points,
            spec.min_negative_points,
            spec.min_extreme_points,
            _BOX_USES.get(spec.box, "unknown"),
            spec.max_points,
            spec.reads_seed,
        )
        if message.HasField("interactor")
        else None,
        labels=tuple(Label(label.name, label.color, label.parent) for label in message.detector.labels),
    )


def read_server_info(message: pb.GetServerInfoResponse) -> ServerInfo:
    """Read what a server is."""
    can = message.capabilities
    return ServerInfo(
        version=message.version,
        state=_SERVER_STATES.get(message.state, "unknown"),
        state_message=message.state_message,
        limits=ServerLimits(**{limit.name: getattr(message.limits, limit.name) for limit in fields(ServerLimits)}),
        image_types=tuple(can.image_types),
        pixel_formats=_names(pb.PixelFormat, "PIXEL_FORMAT_", can.pixel_formats),
        output_forms=tuple(name.lower() for name in _names(pb.OutputForm, "OUTPUT_FORM_", can.output_forms)),
        default_detector=can.default_detector,
    )


def _names(enum: Any, prefix: str, values: Iterable[int]) -> tuple[str, ...]:
    """Return the names of an enum's values without their prefix; those that this version does not know are left out."""
    known = {value: name.removeprefix(prefix) for name, value in enum.items()}
    return tuple(known[value] for value in values if known.get(value, "UNSPECIFIED") != "UNSPECIFIED")
