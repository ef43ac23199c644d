"""Which interactor outlines detections."""

from dataclasses import dataclass

from polywand_server.detectors.options import PolygonOptions
from polywand_server.errors import InvalidInputError, NotFoundError, PolywandError, UnavailableError
from polywand_server.geometry.boxes import Box
from polywand_server.geometry.shapes import OutputOptions
from polywand_server.interactors.prompt import Prompt, incomplete
from polywand_server.tools.kinds import Interactor
from polywand_server.tools.registry import Registry

# The models that make outlines when the request names none: the first that is ready and starts from a box.
DEFAULT_MODELS = ("wand_box", "wand_click")

_FIELD = "polygons."


@dataclass(frozen=True, slots=True)
class Outliner:
    """An interactor that starts from a box, and how its outlines are wanted."""

    tool: Interactor
    output: OutputOptions

    # Of the request, for errors.
    threshold_field = f"{_FIELD}output.threshold"

    @property
    def threshold(self) -> float:
        """Probability from which a pixel belongs to an object."""
        return self.output.threshold or self.tool.spec.threshold


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
        raise _not_now(error) from error
    lacking = _lacking(tool)
    if lacking:
        raise InvalidInputError(f"{_FIELD}model", f"model '{tool.name}' {lacking}")
    return Outliner(tool, options.output)


def _default(registry: Registry) -> Interactor:
    away: UnavailableError | None = None
    for name in DEFAULT_MODELS:
        try:
            tool = registry.interactor(name, 0, _FIELD)
        except UnavailableError as error:
            away = away or error
        except PolywandError:
            continue  # it is not there, or it is something else of that name
        else:
            if not _lacking(tool):
                return tool
    if away is not None:
        raise _not_now(away) from away
    listed = " and ".join(f"'{name}'" for name in DEFAULT_MODELS)
    raise NotFoundError(f"{_FIELD}model", f"of {listed} none is here that starts from a box: name another interactor")


def _not_now(error: UnavailableError) -> UnavailableError:
    """Say which of a request's two models it is that is not ready."""
    return UnavailableError(f"{_FIELD}model: {error}", error.retry_seconds)


def _lacking(tool: Interactor) -> str:
    """Why a box is not enough for an interactor; "" when it is."""
    if tool.spec.prompt.box == "none":
        return "reads no box"
    lacking = incomplete(Prompt(tool.name, tool.version, "", box=Box(0, 0, 1, 1)), tool.spec.prompt)
    return f"needs more than a box: {lacking}" if lacking else ""
