"""Tools, which annotators use, and models, which Triton runs. A model may be several tools."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from polywand_server.errors import RETRY_SECONDS, NotFoundError, UnavailableError
from polywand_server.tools.kinds import Detector, Interactor
from polywand_server.tools.specs import InteractorSpec, ToolSpec
from polywand_server.triton.client import ModelConfig

# A failed model stays so until its files change: a client need not ask again as soon as during a restart.
BROKEN_RETRY_SECONDS = 60.0
# Parameters of a model's config that name the models which it calls.
PART_KEYS = ("encoder", "head")
# Of names in an error's text: clients accept 8 kB of headers, and the text stands in them several times.
MAX_LISTED_BYTES = 600


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a model, and so of its tools.

    reason: why it is not ready. retry_seconds: after how long a client should ask again.
    """

    version: int
    ready: bool
    reason: str
    retry_seconds: float = RETRY_SECONDS


@dataclass(frozen=True, slots=True)
class Model:
    """One model in Triton.

    specs: of its tools, by name. config: its configuration. Empty and None until it has been loaded once.
    reason: why it is not ready; empty when it is.
    retry_seconds: after how long a client should ask again, if it is not ready.
    """

    name: str
    specs: Mapping[str, ToolSpec]
    config: ModelConfig | None
    versions: tuple[ModelVersion, ...]
    reason: str
    retry_seconds: float = RETRY_SECONDS

    def unavailable(self, reason: str, retry_seconds: float = RETRY_SECONDS) -> "Model":
        """Return a copy with no version ready, for one reason."""
        versions = tuple(replace(version, ready=False, reason=reason) for version in self.versions)
        return replace(self, versions=versions, reason=reason, retry_seconds=retry_seconds)


@dataclass(frozen=True, slots=True)
class Tool:
    """What clients know by one name: a model, or one of its uses. spec: None until the model has been loaded once."""

    name: str
    model: Model
    spec: ToolSpec | None

    @property
    def ready(self) -> bool:
        """Whether a request would be served now."""
        return not self.model.reason

    @property
    def reason(self) -> str:
        """Why it is not ready; empty when it is."""
        return self.model.reason

    @property
    def versions(self) -> tuple[ModelVersion, ...]:
        """All versions, ready or not."""
        return self.model.versions

    def choose_version(self, wanted: int, path: str) -> int:
        """Choose a ready version: the wanted one, or the highest for 0.

        path: of the message that holds the field `version`, for errors.

        Raises:
            NotFoundError, UnavailableError
        """
        if self.reason:
            raise UnavailableError(f"model '{self.name}' is not ready: {self.reason}", self.model.retry_seconds)
        if wanted == 0:
            return max(version.version for version in self.versions if version.ready)
        known = {version.version: version for version in self.versions}
        if wanted not in known:
            text = f"model '{self.name}' has no version {wanted}; it has {join_names(map(str, sorted(known)))}"
            raise NotFoundError(f"{path}version", text)
        if not known[wanted].ready:
            text = f"version {wanted} of model '{self.name}' is not ready: {known[wanted].reason}"
            raise UnavailableError(text, known[wanted].retry_seconds)
        return wanted

    def of_version(self, version: int) -> Interactor | Detector | None:
        """Return the tool as a request to one version uses it; None until the model has been loaded once."""
        spec, config = self.spec, self.model.config
        if spec is None or config is None:
            return None
        if isinstance(spec, InteractorSpec):
            return Interactor(self.name, self.model.name, version, spec, config)
        return Detector(self.name, self.model.name, version, spec, config)


def assign_tool_names(models: Mapping[str, Model], previous: Mapping[str, Tool]) -> dict[str, Tool]:
    """Return the tools of all models by name; previous: those of the last poll.

    A model whose tools are not known yet is listed under its own name. If two models claim one name, the model that had
    it first keeps it; the other model's tool is listed as MODEL/NAME, with the reason why it cannot be used.
    """

    def rank(claim: tuple[str, Model]) -> tuple[bool, bool, str]:
        name, model = claim
        is_held = name in previous and previous[name].model.name == model.name
        return not model.specs, not is_held, model.name

    claims = [(name, model) for model in models.values() for name in model.specs or (model.name,)]
    owners: dict[str, Model] = {}
    tools = {}
    for name, model in sorted(claims, key=rank):
        owner = owners.setdefault(name, model)
        if owner is model:
            tools[name] = Tool(name, model, model.specs.get(name))
            continue
        full_name = f"{model.name}/{name}"
        reason = f"the name '{name}' belongs to model '{owner.name}' already: rename one of the two tools"
        refused = model.unavailable(reason, BROKEN_RETRY_SECONDS) if model.specs else model
        tools[full_name] = Tool(full_name, refused, model.specs.get(name))
    return tools


def apply_parts(models: Mapping[str, Model], ready: Collection[tuple[str, int | None]]) -> dict[str, Model]:
    """Return the models that may be tools: a version is ready if the same version of each of its parts is ready.

    A model that is only a part of others is left out.
    ready: names and versions of all models in service, tools or not.
    """
    parts = {name: parts_of(model) for name, model in models.items()}
    only_parts = {part for names in parts.values() for part in names if part in models and not models[part].specs}
    reasons = {name: model.reason for name, model in models.items()}
    return {
        name: _mark_missing_parts(model, parts[name], ready, reasons)
        for name, model in models.items()
        if name not in only_parts
    }


def parts_of(model: Model) -> list[str]:
    """Return the names of the models that a model calls."""
    parameters = model.config.parameters if model.config else {}
    return [parameters[key] for key in PART_KEYS if key in parameters]


def _mark_missing_parts(
    model: Model, parts: Sequence[str], ready: Collection[tuple[str, int | None]], reasons: Mapping[str, str]
) -> Model:
    """Mark the versions of a model that lack a part as not ready; reasons: why parts are not ready, by name."""
    if not parts or model.reason:
        return model
    versions = []
    for version in model.versions:
        missing = next((part for part in parts if (part, version.version) not in ready), None)
        if version.ready and missing is not None:
            why = reasons.get(missing) or f"it has no version {version.version} in service"
            versions.append(replace(version, ready=False, reason=f"its part '{missing}' is not ready: {why}"))
        else:
            versions.append(version)
    reason = ""
    if not any(version.ready for version in versions):
        reason = "; ".join(dict.fromkeys(version.reason for version in versions))
    return replace(model, versions=tuple(versions), reason=reason)


def join_names(names: Iterable[str]) -> str:
    """Join names for an error's text: the first of them, and how many more there are."""
    rest = list(names)
    shown: list[str] = []
    while rest and (not shown or len(", ".join([*shown, rest[0]]).encode()) <= MAX_LISTED_BYTES):
        shown.append(rest.pop(0))
    return (", ".join(shown) or "none") + (f" and {len(rest)} more" if rest else "")
