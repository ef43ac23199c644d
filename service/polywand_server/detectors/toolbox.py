"""The tools of a frame: the requested detector, and the interactor that outlines its detections."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from polywand_server.detectors.options import DetectOptions, PolygonOptions
from polywand_server.errors import InvalidInputError, NotFoundError, PolywandError, UnavailableError
from polywand_server.geometry.boxes import Box
from polywand_server.geometry.shapes import OutputOptions
from polywand_server.interactors.prompt import Prompt, incomplete
from polywand_server.tools.kinds import Detector, Interactor
from polywand_server.tools.registry import Registry
from polywand_server.tools.retry import use_tool
from polywand_server.tools.specs import DetectorSpec

Result = TypeVar("Result")

# The models that make outlines when the request names none: the first that is ready and starts from a box.
DEFAULT_MODELS = ("wand_box", "wand_click")

# The detector when the request names none; else the first by name that is ready.
DEFAULT_DETECTOR = "nanodet"

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
        detector = self._registry.detector(options.model, options.version)
        check_labels(options.labels, detector)
        outliner = find_outliner(self._registry, options.polygons) if options.polygons else None
        return FrameTools(detector, outliner)

    async def use(self, options: DetectOptions, work: Callable[[FrameTools], Awaitable[Result]]) -> Result:
        """Choose tools and run `work` with them; again if a version was unloaded meanwhile.

        Raises:
            Errors of `choose` and `work`.
        """
        return await use_tool(self._registry, lambda: self.choose(options), work)


def default_detector(registry: Registry) -> str:
    """Return the name of the detector for requests that name none; empty if none is ready."""
    ready = [tool.name for tool in registry.tools if tool.ready and isinstance(tool.spec, DetectorSpec)]
    return DEFAULT_DETECTOR if DEFAULT_DETECTOR in ready else next(iter(ready), "")


def check_labels(labels: Mapping[str, str], tool: Detector) -> None:
    """Refuse a mapping from a label that the model does not have. Raises InvalidInputError."""
    known = set(tool.spec.labels)
    for label in labels:
        if label not in known:
            raise InvalidInputError("labels", f"model '{tool.name}' has no label '{label}'")


def find_outliner(registry: Registry, options: PolygonOptions) -> Outliner:
    """Find the interactor that is to outline detections.

    Raises:
        NotFoundError, WrongStateError (it is a detector), InvalidInputError (a box is not enough for it),
        UnavailableError (not now)
    """
    if options.model is None:
        return Outliner(_default(registry), options.output)
    try:
        tool = registry.interactor(options.model, options.version, _FIELD)
    except UnavailableError as error:
        raise _naming_field(error) from error
    missing = _missing(tool)
    if missing:
        raise InvalidInputError(f"{_FIELD}model", f"model '{tool.name}' {missing}")
    return Outliner(tool, options.output)


def _default(registry: Registry) -> Interactor:
    unready: UnavailableError | None = None
    for name in DEFAULT_MODELS:
        try:
            tool = registry.interactor(name, 0, _FIELD)
        except UnavailableError as error:
            unready = unready or error
        except PolywandError:
            continue  # it does not exist, or is not an interactor
        else:
            if not _missing(tool):
                return tool
    if unready is not None:
        raise _naming_field(unready) from unready
    listed = " nor ".join(f"'{name}'" for name in DEFAULT_MODELS)
    raise NotFoundError(
        f"{_FIELD}model",
        f"neither {listed} is an interactor here that starts from a box: name another interactor",
        resource=DEFAULT_MODELS[0],
    )


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
