"""When the service is ready, and what it still waits for."""

from collections.abc import Collection, Mapping, Sequence

from polywand_server.tools.catalogue import Tool, listed


class Readiness:
    """Ready is a service that has tried every model once, and has a tool that would serve; or whose named ones would.

    names: tools, or models with all their tools, of --ready-models. Without any, what counts are the models that were
    there when Triton was found; what comes later takes no readiness away.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._awaited: frozenset[str] | None = None
        self._total = 0
        self._why_not_begun = "Triton does not answer"

    @property
    def has_begun(self) -> bool:
        """Whether it is known what has to be tried."""
        return self._awaited is not None

    def begin_again(self, why_not: str = "Triton does not answer") -> None:
        """Triton is away, or does not tell what it has: all its models will have to be tried again."""
        self._awaited, self._why_not_begun = None, why_not

    def note(self, untried: Collection[str]) -> None:
        """Take note of a look at Triton. untried: models that were neither loaded nor found broken yet."""
        if self._awaited is None:
            self._awaited, self._total = frozenset(untried), len(untried)
        self._awaited &= frozenset(untried)

    def why_not(self, tools: Mapping[str, Tool], loaded: Collection[str]) -> str:
        """Say why requests may not come yet; empty when they may. loaded: models in service, tools or not."""
        if self._awaited is None:
            return self._why_not_begun
        if self._names:
            reasons = (self._why_not_named(name, tools, loaded) for name in self._names)
            return "; ".join(filter(None, reasons))
        if self._awaited:
            names = listed(sorted(self._awaited))
            return f"waiting until every model was tried once: {len(self._awaited)} of {self._total} are left, {names}"
        return "" if any(tool.ready for tool in tools.values()) else "no tool is ready"

    def unknown(self, tools: Mapping[str, Tool], loaded: Collection[str]) -> list[str]:
        """Return the names that are of nothing that is there, once all that is there has been tried."""
        if self._awaited is None or self._awaited:
            return []
        known = {*tools, *(tool.model for tool in tools.values()), *loaded}
        return [name for name in self._names if name not in known]

    def _why_not_named(self, name: str, tools: Mapping[str, Tool], loaded: Collection[str]) -> str:
        of_model = [tool for tool in tools.values() if tool.model == name]
        of_name = [tools[name]] if name in tools else of_model
        if of_name:
            reasons = dict.fromkeys(tool.reason for tool in of_name if not tool.ready)
            return f"waiting for '{name}': {'; '.join(reasons)}" if reasons else ""
        if name in loaded:
            return ""
        if self._awaited:
            return f"waiting for '{name}', which is not known yet"
        return f"waiting for '{name}', but there is no such tool or model; there are: {listed(sorted(tools))}"
