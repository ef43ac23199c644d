"""Tools: what annotators use, and the models in Triton that they are; a model may be several tools."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from polywand_server.errors import RETRY_SECONDS, NotFoundError, UnavailableError
from polywand_server.tools.specs import ToolSpec
from polywand_server.triton.client import ModelConfig

# What failed stays as it is until somebody mends it; nobody is to wait for that as for a restart.
BROKEN_RETRY_SECONDS = 60.0
# Parameters of a model's config that name models which it calls.
PART_KEYS = ("encoder", "head")
# Of names that an error lists: clients take 8 kB of headers, in which an error's text stands several times.
MAX_LISTED_BYTES = 600


@dataclass(frozen=True, slots=True)
class ToolVersion:
    """One version of a model, and so of its tools.

    reason: why it is not ready. retry_seconds: when it makes sense to ask again then.
    """

    version: int
    ready: bool
    reason: str
    retry_seconds: float = RETRY_SECONDS


@dataclass(frozen=True, slots=True)
class Model:
    """One model in Triton.

    specs, config: of its tools, by name; empty and None while it has never been loaded, so nobody knows what it is.
    reason: why it is not ready; empty when it is.
    retry_seconds: when it makes sense to ask again, if it is not ready.
    """

    name: str
    specs: Mapping[str, ToolSpec]
    config: ModelConfig | None
    versions: tuple[ToolVersion, ...]
    reason: str
    retry_seconds: float = RETRY_SECONDS

    def called_off(self, reason: str, retry_seconds: float = RETRY_SECONDS) -> "Model":
        """Return it with no version ready, for one reason."""
        versions = tuple(replace(version, ready=False, reason=reason) for version in self.versions)
        return replace(self, versions=versions, reason=reason, retry_seconds=retry_seconds)


@dataclass(frozen=True, slots=True)
class Tool:
    """What clients know by one name: a model of Triton, or one of the uses that it has.

    model: its name in Triton. The other fields are as in `Model`; spec is None while nobody knows what it is.
    """

    name: str
    model: str
    spec: ToolSpec | None
    config: ModelConfig | None
    versions: tuple[ToolVersion, ...]
    reason: str
    retry_seconds: float = RETRY_SECONDS

    @property
    def ready(self) -> bool:
        """Whether a request would be served now."""
        return not self.reason

    def version(self, wanted: int, path: str) -> int:
        """Choose a ready version: the wanted one, or the highest for 0; path: of the field's message, for errors.

        Raises:
            NotFoundError, UnavailableError
        """
        if self.reason:
            raise UnavailableError(f"model '{self.name}' is not ready: {self.reason}", self.retry_seconds)
        ready = [version.version for version in self.versions if version.ready]
        if wanted == 0:
            return max(ready)
        known = {version.version: version for version in self.versions}
        if wanted not in known:
            has = listed(map(str, sorted(known)))
            raise NotFoundError(f"{path}version", f"model '{self.name}' has no version {wanted}; it has {has}")
        if not known[wanted].ready:
            text = f"version {wanted} of model '{self.name}' is not ready: {known[wanted].reason}"
            raise UnavailableError(text, known[wanted].retry_seconds)
        return wanted


def share_out(models: Mapping[str, Model], before: Mapping[str, Tool]) -> dict[str, Tool]:
    """Return the tools of all models by name; before: as they were at the last look.

    A model that nobody knows yet stands for itself, under its own name. A name that two models claim stays with the one
    that had it first; the other's tool is listed as MODEL/NAME, and says why it cannot be used.
    """

    def rank(claim: tuple[str, Model]) -> tuple[bool, bool, str]:
        name, model = claim
        is_held = name in before and before[name].model == model.name
        return not model.specs, not is_held, model.name

    claims = [(name, model) for model in models.values() for name in model.specs or (model.name,)]
    owners: dict[str, Model] = {}
    tools = {}
    for name, model in sorted(claims, key=rank):
        owner = owners.setdefault(name, model)
        if owner is model:
            tools[name] = _tool(name, model, model.specs.get(name))
            continue
        listed = f"{model.name}/{name}"
        why = f"the name '{name}' belongs to model '{owner.name}' already: rename one of the two tools"
        loser = model.called_off(why, BROKEN_RETRY_SECONDS) if model.specs else model
        tools[listed] = _tool(listed, loser, model.specs.get(name))
    return tools


def _tool(name: str, model: Model, spec: ToolSpec | None) -> Tool:
    return Tool(name, model.name, spec, model.config, model.versions, model.reason, model.retry_seconds)


def with_parts(models: Mapping[str, Model], ready: Collection[tuple[str, int | None]]) -> dict[str, Model]:
    """Return models, ready as far as their parts are, and without what is a part only; version N calls version N.

    ready: names and versions of all models in service, whether tools or not.
    """
    parts = {name: parts_of(model) for name, model in models.items()}
    only_parts = {part for names in parts.values() for part in names if part in models and not models[part].specs}
    reasons = {name: model.reason for name, model in models.items()}
    return {
        name: _without_parts(model, parts[name], ready, reasons)
        for name, model in models.items()
        if name not in only_parts
    }


def parts_of(model: Model) -> list[str]:
    """Return the names of the models that a model calls."""
    parameters = model.config.parameters if model.config else {}
    return [parameters[key] for key in PART_KEYS if key in parameters]


def _without_parts(
    model: Model, parts: Sequence[str], ready: Collection[tuple[str, int | None]], reasons: Mapping[str, str]
) -> Model:
    """Return a model whose versions are not ready that lack a part; reasons: why parts are not."""
    if not parts or model.reason:
        return model
    versions = []
    for version in model.versions:
        lacking = next((part for part in parts if (part, version.version) not in ready), None)
        if version.ready and lacking is not None:
            why = reasons.get(lacking) or f"it has no version {version.version} in service"
            versions.append(replace(version, ready=False, reason=f"its part '{lacking}' is not ready: {why}"))
        else:
            versions.append(version)
    reason = (
        ""
        if any(version.ready for version in versions)
        else "; ".join(dict.fromkeys(version.reason for version in versions))
    )
    return replace(model, versions=tuple(versions), reason=reason)


def listed(names: Iterable[str]) -> str:
    """Return names for an error's text: the first of them, and how many more there are."""
    rest = list(names)
    shown: list[str] = []
    while rest and (not shown or len(", ".join([*shown, rest[0]]).encode()) <= MAX_LISTED_BYTES):
        shown.append(rest.pop(0))
    return (", ".join(shown) or "none") + (f" and {len(rest)} more" if rest else "")
