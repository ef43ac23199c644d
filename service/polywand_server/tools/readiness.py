"""Readiness: whether requests may come, and what the service still waits for."""

from collections.abc import Collection, Mapping, Sequence

from polywand_server.tools.catalogue import Tool, join_names


class Readiness:
    """Decides whether the service is ready.

    With names (of --ready-models; tools, or models with all their tools): when all of them are ready.
    Without: when every model that Triton had when it was found has been loaded or has failed, and a tool is ready.
    Models that are added later do not make the service unready.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._pending: frozenset[str] | None = None  # None until Triton has listed its models
        self._total = 0
        self._not_started_reason = "Triton does not answer"

    @property
    def has_started(self) -> bool:
        """Whether it is known which models have to be loaded."""
        return self._pending is not None

    def reset(self, reason: str = "Triton does not answer") -> None:
        """Wait for all models anew: Triton is away, was restarted, or does not list its models."""
        self._pending, self._not_started_reason = None, reason

    def update(self, pending: Collection[str]) -> None:
        """Take the result of a poll. pending: models that have neither been loaded nor failed yet."""
        if self._pending is None:
            self._pending, self._total = frozenset(pending), len(pending)
        self._pending &= frozenset(pending)

    def not_ready_reason(self, tools: Mapping[str, Tool], in_service: Collection[str]) -> str:
        """Return why requests may not come yet; empty when they may. in_service: names of models, tools or not."""
        if self._pending is None:
            return self._not_started_reason
        if self._names:
            reasons = (self._reason_of(name, tools, in_service) for name in self._names)
            return "; ".join(filter(None, reasons))
        if self._pending:
            return f"still loading {len(self._pending)} of {self._total} models: {join_names(sorted(self._pending))}"
        return "" if any(tool.ready for tool in tools.values()) else "no tool is ready"

    def unknown(self, tools: Mapping[str, Tool], in_service: Collection[str]) -> list[str]:
        """Return the names of no tool and no model, once all models have been loaded or have failed."""
        if self._pending is None or self._pending:
            return []
        known = {*tools, *(tool.model.name for tool in tools.values()), *in_service}
        return [name for name in self._names if name not in known]

    def _reason_of(self, name: str, tools: Mapping[str, Tool], in_service: Collection[str]) -> str:
        of_model = [tool for tool in tools.values() if tool.model.name == name]
        named = [tools[name]] if name in tools else of_model
        if named:
            reasons = dict.fromkeys(tool.reason for tool in named if not tool.ready)
            return f"waiting for '{name}': {'; '.join(reasons)}" if reasons else ""
        if name in in_service:
            return ""
        if self._pending:
            return f"waiting for '{name}', which is not known yet"
        return f"waiting for '{name}', but there is no such tool or model; there are: {join_names(sorted(tools))}"
