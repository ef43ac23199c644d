"""The server's choice: the tools among which it chooses for requests that name none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from polywand_server.errors import NotFoundError, PolywandError, UnavailableError
from polywand_server.tools.catalogue import Tool, not_ready
from polywand_server.tools.kinds import Detector, Interactor
from polywand_server.tools.registry import Registry
from polywand_server.tools.specs import DetectorSpec, InteractorSpec

Kind = TypeVar("Kind", Interactor, Detector)

# The preferred tools, in this order; all others of their kind come after them, by name.
INTERACTORS = ("wand_click", "wand_box", "wand_extreme")
DETECTORS = ("nanodet",)
# Of outlines of detections; no others come after them.
OUTLINERS = ("wand_box", "wand_click")

_SPECS = {Interactor: InteractorSpec, Detector: DetectorSpec}


@dataclass(frozen=True, slots=True)
class Candidates(Generic[Kind]):
    """The tools among which the server chooses, in the order of preference.

    ready: each in its highest version. unready: those that cannot be used now; of some, the kind is not known yet.
    preferred: the name of the first one, which may not exist. triton_up: whether Triton answers; if not, there may be
    more.
    """

    ready: Sequence[Kind]
    unready: Sequence[Tool]
    preferred: str
    triton_up: bool

    def error(self, field: str, what: str) -> PolywandError:
        """Make the error of a request for which no tool is ready.

        field: of the request, where it may name a tool. what: what is missing: "interactor".
        """
        if self.unready:
            tool = min(self.unready, key=lambda other: other.state.retry_seconds)
            text = f"no {what} is ready; '{tool.name}' is not: {tool.reason}"
            return not_ready(text, tool.state, {"model": tool.name})
        if not self.triton_up:
            return UnavailableError("Triton is not ready yet, so no model is known")
        return NotFoundError(field, f"there is no {what} here", resource=self.preferred)


def interactors(registry: Registry) -> Candidates[Interactor]:
    """Find the interactors for a prompt."""
    return _candidates(registry, Interactor, registry.tools, INTERACTORS)


def detectors(registry: Registry) -> Candidates[Detector]:
    """Find the detectors for a frame."""
    return _candidates(registry, Detector, registry.tools, DETECTORS)


def outliners(registry: Registry) -> Candidates[Interactor]:
    """Find the interactors for outlines of detections."""
    tools = [tool for tool in registry.tools if tool.name in OUTLINERS]
    return _candidates(registry, Interactor, tools, OUTLINERS)


def _candidates(
    registry: Registry, kind: type[Kind], tools: Sequence[Tool], preferred: Sequence[str]
) -> Candidates[Kind]:
    ready: list[Kind] = []
    unready: list[Tool] = []
    for tool in sorted(tools, key=lambda tool: _rank(tool.name, preferred)):
        if not tool.ready:
            if tool.spec is None or isinstance(tool.spec, _SPECS[kind]):
                unready.append(tool)
            continue
        found = tool.of_version(tool.choose_version(0, ""))
        if isinstance(found, kind):
            ready.append(found)
    return Candidates(ready, unready, preferred[0], registry.triton_up)


def _rank(name: str, preferred: Sequence[str]) -> tuple[int, str]:
    return (preferred.index(name) if name in preferred else len(preferred)), name
