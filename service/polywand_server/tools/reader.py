"""Reads what the models in Triton are from their configurations."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace

from polywand_server.errors import PolywandError
from polywand_server.tools.catalogue import Model, ModelVersion, State, apply_parts, combined_state, parts_of
from polywand_server.tools.index import Index
from polywand_server.tools.loader import ModelLoader
from polywand_server.tools.specs import PARAMETER_KEY, check_config, parse_specs
from polywand_server.triton.client import IndexEntry, ModelState, TritonClient

# Of the text about a wrong configuration: clients get it, and it is one line of the log.
MAX_REASON_CHARACTERS = 600

_STATE_TEXTS = {
    "": "it is not loaded yet",
    ModelState.LOADING: "it is being loaded",
    ModelState.UNLOADING: "it is being unloaded",
}
_LOADING = ("", ModelState.LOADING)


class ModelReader:
    """Reads models, and of their configurations only those that may have changed.

    The index does not show that a model was reloaded by others under the same version. So each reading also reads one
    known configuration again, a different one each time.
    """

    def __init__(self, triton: TritonClient, loader: ModelLoader) -> None:
        self._triton = triton
        self._loader = loader
        self._models: dict[str, Model] = {}
        self._unread: set[str] = set()
        self._readings = 0
        self._load_counts: dict[str, int] = {}  # of each model, when its configuration was read

    @property
    def unread(self) -> Collection[str]:
        """Models in service whose configuration could not be read yet."""
        return self._unread

    @property
    def parts(self) -> Mapping[str, list[str]]:
        """The models that each model calls, by its name; version N calls version N of them."""
        parts = {name: parts_of(model) for name, model in self._models.items()}
        return {name: names for name, names in parts.items() if names}

    async def read(self, index: Index) -> dict[str, Model]:
        """Read the models of an index."""
        entries: defaultdict[str, list[IndexEntry]] = defaultdict(list)
        for entry in index.entries:
            if self._is_present(entry):
                entries[entry.name].append(entry)
        self._readings += 1
        checked = sorted(entries)[self._readings % len(entries)] if entries else None
        models, self._unread = {}, set()
        for name, versions in entries.items():
            try:
                model = await self._read_model(name, versions, read_again=name == checked)
            except PolywandError as error:  # unloaded after the index was read; Triton itself answers
                self._unread.add(name)
                model = replace(self._last_known(name), versions=(), state=State.UNAVAILABLE, reason=str(error))
            if model is not None:
                models[name] = model
        all_versions = {(entry.name, entry.version): self._version(entry) for entry in index.entries if entry.version}
        self._models = apply_parts(models, all_versions)
        return self._models

    def mark_unavailable(self, reason: str) -> dict[str, Model]:
        """Return the known models, none of them ready."""
        self._models = {name: model.with_all(State.UNAVAILABLE, reason) for name, model in self._models.items()}
        return self._models

    def _is_present(self, entry: IndexEntry) -> bool:
        """Whether an entry counts. One that was never loaded does if the loader is about to load it."""
        if entry.was_unloaded and not self._loader.is_reloading(entry.name):
            return False
        if self._loader.is_active and self._loader.is_deleted(entry):
            return False
        return bool(entry.state) or self._loader.is_active

    def _last_known(self, name: str) -> Model:
        return self._models.get(name) or Model(name, {}, None, (), State.LOADING, "it is not known yet")

    async def _read_model(self, name: str, entries: list[IndexEntry], *, read_again: bool) -> Model | None:
        """Read one model; None if it has no tools: it is a part of another model, or not meant for Polywand."""
        found = {entry.version: self._version(entry) for entry in entries if entry.version}
        incomplete = {
            number: ModelVersion(number, State.FAILED, reason)
            for number, reason in self._loader.incomplete_versions(name).items()
        }
        versions = tuple(version for _, version in sorted((incomplete | found).items()))
        ready = [version.version for version in versions if version.ready]
        known = self._last_known(name)
        if not ready:
            reason = "; ".join(dict.fromkeys(self._reason(entry) for entry in entries))
            state = combined_state(self._version(entry) for entry in entries)
            return replace(known, versions=versions, state=state, reason=reason)
        load_count = self._loader.load_count(name)
        read_again |= load_count != self._load_counts.get(name)
        if known.specs and known.ready and not read_again and known.versions == versions:
            return known
        config = await self._triton.model_config(name, max(ready))
        self._load_counts[name] = load_count
        text = config.parameters.get(PARAMETER_KEY)
        if text is None:
            return None
        try:
            specs = parse_specs(text, name)
            for spec in specs.values():
                check_config(spec, config)
            return Model(name, specs, config, versions, State.READY)
        except ValueError as error:
            # Tools that are known stay in the list, with this reason.
            wrong = replace(known, config=known.config if known.specs else config, versions=versions)
            what = " ".join(str(error).split())[:MAX_REASON_CHARACTERS]
            return wrong.with_all(State.FAILED, f"its configuration is wrong: {what}")

    def _version(self, entry: IndexEntry) -> ModelVersion:
        """Return an entry as a version; one that was never loaded has no number."""
        number = entry.version or 0
        if entry.is_ready:
            return ModelVersion(number, State.READY)
        return ModelVersion(number, self._state(entry), self._reason(entry))

    def _state(self, entry: IndexEntry) -> State:
        """Return the state of an entry that is not ready."""
        if entry.has_failed or self._loader.failure_reason(entry.name):
            return State.FAILED
        is_coming = entry.state in _LOADING or self._loader.is_reloading(entry.name)
        return State.LOADING if is_coming else State.UNAVAILABLE

    def _reason(self, entry: IndexEntry) -> str:
        """Return why an entry is not ready."""
        failure = self._loader.failure_reason(entry.name)
        if self._loader.is_reloading(entry.name):
            return failure or "it is being loaded again"
        return entry.reason or failure or _STATE_TEXTS.get(entry.state, f"Triton says {entry.state}")
