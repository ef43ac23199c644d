"""The tools of a frame: the requested detector, and the interactor that outlines its detections."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from polywand_server.caller import current
from polywand_server.detectors.options import DetectOptions, LabelMapping, PolygonOptions
from polywand_server.errors import InvalidInputError, UnavailableError
from polywand_server.geometry.boxes import Box
from polywand_server.geometry.shapes import OutputOptions
from polywand_server.interactors.prompt import Prompt, incomplete
from polywand_server.tools.choice import OUTLINERS, detectors, outliners
from polywand_server.tools.kinds import Detector, Interactor
from polywand_server.tools.registry import Registry
from polywand_server.tools.retry import use_tool

Result = TypeVar("Result")

_FIELD = "polygons."


@dataclass(frozen=True, slots=True)
class Outliner:
    """An interactor that starts from a box, and the options of its outlines."""

    tool: Interactor
    output: OutputOptions

    # Field of the request, for errors.
    threshold_field = f"{_FIELD}output.threshold"

    @property
    def threshold(self) -> float:
        """Probability from which a pixel belongs to an object."""
        return self.output.threshold or self.tool.spec.threshold


@dataclass(frozen=True, slots=True)
class FrameTools:
    """The tools of one frame. outliner: None where no outlines are requested."""

    detector: Detector
    outliner: Outliner | None


class FrameToolbox:
    """Chooses tools for frames."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def choose(self, options: DetectOptions) -> FrameTools:
        """Find ready tools.

        Raises:
            NotFoundError, WrongStateError (a tool of the other kind), InvalidInputError (labels that the detector does
            not have; an interactor that needs more than a box), UnavailableError (not now)
        """
        detector = find_detector(self._registry, options)
        check_labels(options.labels, detector)
        current().usage.add_model(detector.name)
        outliner = find_outliner(self._registry, options.polygons) if options.polygons else None
        if outliner is not None:
            current().usage.add_model(outliner.tool.name)
        return FrameTools(detector, outliner)

    async def use(self, options: DetectOptions, work: Callable[[FrameTools], Awaitable[Result]]) -> Result:
        """Choose tools and run `work` with them; again if a version was unloaded meanwhile.

        Raises:
            Errors of `choose` and `work`.
        """
        return await use_tool(self._registry, lambda: self.choose(options), work)


def default_detector(registry: Registry) -> str:
    """Return the name of the detector of requests that name none; "" if there is none now."""
    ready = detectors(registry).ready
    return ready[0].name if ready else ""


def find_detector(registry: Registry, options: DetectOptions) -> Detector:
    """Find the ready detector that a request names or, if it names none, choose one.

    Raises:
        NotFoundError, WrongStateError (it is an interactor), UnavailableError (not now)
    """
    if options.model:
        return registry.detector(options.model, options.version)
    candidates = detectors(registry)
    if not candidates.ready:
        raise candidates.error("model", "detector")
    return candidates.ready[0]


def check_labels(labels: Sequence[LabelMapping], tool: Detector) -> None:
    """Refuse a mapping from a label that the model does not have. Raises InvalidInputError."""
    known = set(tool.spec.labels)
    for number, mapping in enumerate(labels):
        if mapping.model_label not in known:
            text = f"model '{tool.name}' has no label '{mapping.model_label}'"
            raise InvalidInputError(f"labels[{number}].model_label", text)


def find_outliner(registry: Registry, options: PolygonOptions) -> Outliner:
    """Find the interactor that is to outline detections.

    Raises:
        NotFoundError, WrongStateError (it is a detector), InvalidInputError (a box is not enough for it),
        UnavailableError (not now)
    """
    try:
        if options.model:
            tool = registry.interactor(options.model, options.version, _FIELD)
        else:
            tool = _default_outliner(registry)
    except UnavailableError as error:
        raise _naming_field(error) from error
    missing = _missing(tool)
    if missing:
        raise InvalidInputError(f"{_FIELD}model", f"model '{tool.name}' {missing}")
    return Outliner(tool, options.output)


def _default_outliner(registry: Registry) -> Interactor:
    candidates = outliners(registry)
    for tool in candidates.ready:
        if not _missing(tool):
            return tool
    listed = " or ".join(f"'{name}'" for name in OUTLINERS)
    raise candidates.error(f"{_FIELD}model", f"interactor that starts from a box ({listed})")


def _naming_field(error: UnavailableError) -> UnavailableError:
    """Add the field of the model, as the request names two."""
    text = f"{_FIELD}model: {error}"
    return UnavailableError(text, error.retry_seconds, reason=error.reason, metadata=error.metadata)


def _missing(tool: Interactor) -> str:
    """Return why a box is not enough for an interactor; "" if it is."""
    if tool.spec.prompt.box == "none":
        return "reads no box"
    missing = incomplete(Prompt(tool.name, tool.version, "", box=Box(0, 0, 1, 1)), tool.spec.prompt)
    return f"needs more than a box: {missing}" if missing else ""
