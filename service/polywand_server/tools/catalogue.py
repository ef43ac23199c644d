"""Tools, which annotators use, and models, which Triton runs. A model may be several tools."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from polywand_server.errors import RETRY_SECONDS, NotFoundError, Reason, UnavailableError
from polywand_server.tools.kinds import Detector, Interactor
from polywand_server.tools.specs import InteractorSpec, ToolSpec
from polywand_server.triton.client import ModelConfig

# A failed model stays so until its files change: a client need not ask again as soon as during a restart.
BROKEN_RETRY_SECONDS = 60.0
# Parameters of a model's config that name the models which it calls.
PART_KEYS = ("encoder", "head")
# Of names in an error's text: clients accept 8 kB of headers, and the text stands in them several times.
MAX_LISTED_BYTES = 600


class State(Enum):
    """Whether a model or one of its versions serves requests; the contract's `ModelState`."""

    READY = "ready"
    LOADING = "loading"
    UNAVAILABLE = "unavailable"  # not now, but by itself later
    FAILED = "failed"  # until it is repaired

    @property
    def retry_seconds(self) -> float:
        """After how long a client should ask again."""
        return BROKEN_RETRY_SECONDS if self is State.FAILED else RETRY_SECONDS


# Of a model whose versions differ: the first of these that one of them has.
_FIRST_STATES = (State.READY, State.LOADING, State.UNAVAILABLE, State.FAILED)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a model, and so of its tools. reason: why it is not ready; empty when it is."""

    version: int
    state: State
    reason: str = ""

    @property
    def ready(self) -> bool:
        """Whether Triton serves it."""
        return self.state is State.READY


@dataclass(frozen=True, slots=True)
class Model:
    """One model in Triton.

    specs: of its tools, by name. config: its configuration. Empty and None until it has been loaded once.
    state: READY if a version is. reason: why it is not ready; empty when it is.
    """

    name: str
    specs: Mapping[str, ToolSpec]
    config: ModelConfig | None
    versions: tuple[ModelVersion, ...]
    state: State
    reason: str = ""

    @property
    def ready(self) -> bool:
        """Whether a version is in service."""
        return self.state is State.READY

    def with_all(self, state: State, reason: str) -> "Model":
        """Return a copy with no version ready, for one reason."""
        versions = tuple(replace(version, state=state, reason=reason) for version in self.versions)
        return replace(self, versions=versions, state=state, reason=reason)


@dataclass(frozen=True, slots=True)
class Tool:
    """What clients know by one name: a model, or one of its uses. spec: None until the model has been loaded once."""

    name: str
    model: Model
    spec: ToolSpec | None

    @property
    def state(self) -> State:
        """Whether a request would be served now."""
        return self.model.state

    @property
    def ready(self) -> bool:
        """Whether a request would be served now."""
        return self.model.ready

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
        if not self.ready:
            raise not_ready(f"model '{self.name}' is not ready: {self.reason}", self.state, {"model": self.name})
        if wanted == 0:
            return max(version.version for version in self.versions if version.ready)
        known = {version.version: version for version in self.versions}
        this = {"model": self.name, "version": str(wanted)}
        if wanted not in known:
            text = f"model '{self.name}' has no version {wanted}; it has {join_names(map(str, sorted(known)))}"
            raise NotFoundError(
                f"{path}version", text, resource=f"{self.name}/{wanted}", reason=Reason.VERSION_NOT_FOUND, metadata=this
            )
        if not known[wanted].ready:
            text = f"version {wanted} of model '{self.name}' is not ready: {known[wanted].reason}"
            raise not_ready(text, known[wanted].state, this)
        return wanted

    def of_version(self, version: int) -> Interactor | Detector | None:
        """Return the tool as a request to one version uses it; None until the model has been loaded once."""
        spec, config = self.spec, self.model.config
        if spec is None or config is None:
            return None
        if isinstance(spec, InteractorSpec):
            return Interactor(self.name, self.model.name, version, spec, config)
        return Detector(self.name, self.model.name, version, spec, config)


def not_ready(text: str, state: State, metadata: Mapping[str, str]) -> UnavailableError:
    """Make the error of a request for a model that is not ready; state: the model's."""
    reason = Reason.MODEL_BROKEN if state is State.FAILED else Reason.MODEL_NOT_READY
    return UnavailableError(text, state.retry_seconds, reason=reason, metadata=metadata)


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
        refused = model.with_all(State.FAILED, reason) if model.specs else model
        tools[full_name] = Tool(full_name, refused, model.specs.get(name))
    return tools


def apply_parts(models: Mapping[str, Model], versions: Mapping[tuple[str, int], ModelVersion]) -> dict[str, Model]:
    """Return the models that may be tools: a version is ready if the same version of each of its parts is ready.

    A model that is only a part of others is left out.
    versions: of all models, tools or not, by name and number.
    """
    parts = {name: parts_of(model) for name, model in models.items()}
    only_parts = {part for names in parts.values() for part in names if part in models and not models[part].specs}
    return {
        name: _mark_missing_parts(model, [_Part(part, models.get(part), versions) for part in parts[name]])
        for name, model in models.items()
        if name not in only_parts
    }


def parts_of(model: Model) -> list[str]:
    """Return the names of the models that a model calls."""
    parameters = model.config.parameters if model.config else {}
    return [parameters[key] for key in PART_KEYS if key in parameters]


def combined_state(versions: Iterable[ModelVersion]) -> State:
    """Return the state of a model with these versions, at least one."""
    states = {version.state for version in versions}
    return next(state for state in _FIRST_STATES if state in states)


@dataclass(frozen=True, slots=True)
class _Part:
    """A model that another one calls.

    model: None if it does not exist, or is ready and no tool itself. versions: of all models, by name and number.
    """

    name: str
    model: Model | None
    versions: Mapping[tuple[str, int], ModelVersion]

    def problem(self, version: int) -> ModelVersion | None:
        """Return a version as it is where it lacks this part; None if it does not."""
        found = self.versions.get((self.name, version))
        if found is None and self.model is not None and not self.model.ready:
            found = ModelVersion(version, self.model.state, self.model.reason)
        if found is None:
            found = ModelVersion(version, State.FAILED, f"it has no version {version} in service")
        if found.ready:
            return None
        return ModelVersion(version, found.state, f"its part '{self.name}' is not ready: {found.reason}")


def _mark_missing_parts(model: Model, parts: Sequence[_Part]) -> Model:
    """Mark the versions of a model that lack a part as not ready."""
    if not parts or not model.ready:
        return model
    versions = tuple(_with_parts(version, parts) for version in model.versions)
    state = combined_state(versions)
    reason = "" if state is State.READY else "; ".join(dict.fromkeys(version.reason for version in versions))
    return replace(model, versions=versions, state=state, reason=reason)


def _with_parts(version: ModelVersion, parts: Sequence[_Part]) -> ModelVersion:
    if not version.ready:
        return version
    problems = (part.problem(version.version) for part in parts)
    return next((problem for problem in problems if problem is not None), version)


def join_names(names: Iterable[str]) -> str:
    """Join names for an error's text: the first of them, and how many more there are."""
    rest = list(names)
    shown: list[str] = []
    while rest and (not shown or len(", ".join([*shown, rest[0]]).encode()) <= MAX_LISTED_BYTES):
        shown.append(rest.pop(0))
    return (", ".join(shown) or "none") + (f" and {len(rest)} more" if rest else "")
