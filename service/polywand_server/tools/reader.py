"""What the models of Triton are, read from their configurations."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace

from polywand_server.errors import RETRY_SECONDS, PolywandError
from polywand_server.tools.catalogue import BROKEN_RETRY_SECONDS, Model, ToolVersion, parts_of, with_parts
from polywand_server.tools.index import Index
from polywand_server.tools.loader import LOADING, READY, UNAVAILABLE, UNLOADING, ModelLoader
from polywand_server.tools.specs import PARAMETER_KEY, check_config, parse_specs
from polywand_server.triton.client import IndexEntry, TritonClient

# Of what a configuration has that is wrong: it goes to clients, and into one line of the log.
MAX_REASON_CHARACTERS = 600

_IN_WORDS = {"": "it is not loaded yet", LOADING: "it is being loaded", UNLOADING: "it is being unloaded"}


class ModelReader:
    """Reads models, asking only for configurations that are new or whose turn it is.

    A reload by others under the same version leaves no trace in the index, so each reading asks for one known
    configuration again.
    """

    def __init__(self, triton: TritonClient, loader: ModelLoader) -> None:
        self._triton = triton
        self._loader = loader
        self._models: dict[str, Model] = {}
        self._unread: set[str] = set()
        self._readings = 0
        self._loads: dict[str, int] = {}  # of each model, when it was read

    @property
    def unread(self) -> Collection[str]:
        """Models in service whose configuration could not be read yet, so that nobody knows what they are."""
        return self._unread

    @property
    def parts(self) -> Mapping[str, list[str]]:
        """Which models are called by which; a version calls the same version of them."""
        parts = {name: parts_of(model) for name, model in self._models.items()}
        return {name: names for name, names in parts.items() if names}

    async def read(self, index: Index) -> dict[str, Model]:
        """Read the models of an index."""
        entries: defaultdict[str, list[IndexEntry]] = defaultdict(list)
        for entry in index.entries:
            if self._is_there(entry):
                entries[entry.name].append(entry)
        self._readings += 1
        turn = sorted(entries)[self._readings % len(entries)] if entries else None
        models, self._unread = {}, set()
        for name, versions in entries.items():
            try:
                model = await self._read_model(name, versions, again=name == turn)
            except PolywandError as error:  # it went between index and config; Triton itself is there
                self._unread.add(name)
                model = replace(self._known(name), versions=(), reason=str(error))
            if model is not None:
                models[name] = model
        self._models = with_parts(models, index.ready)
        return self._models

    def call_off(self, reason: str) -> dict[str, Model]:
        """Return the models that are known, none of them ready."""
        self._models = {name: model.called_off(reason) for name, model in self._models.items()}
        return self._models

    def _is_there(self, entry: IndexEntry) -> bool:
        """With a loader, what was never loaded is about to be; without, it is not there for us."""
        was_unloaded = entry.state == UNAVAILABLE and entry.reason == "unloaded"
        if was_unloaded and not self._loader.is_coming_back(entry.name):
            return False
        if self._loader.is_active and self._loader.is_deleted(entry):
            return False
        return bool(entry.state) or self._loader.is_active

    def _known(self, name: str) -> Model:
        """What was known of a model at the last reading."""
        return self._models.get(name) or Model(name, {}, None, (), "it is not known yet")

    async def _read_model(self, name: str, entries: list[IndexEntry], *, again: bool) -> Model | None:
        found = {entry.version: self._version(entry.version, entry) for entry in entries if entry.version is not None}
        incomplete = {
            number: ToolVersion(number, False, why, BROKEN_RETRY_SECONDS)
            for number, why in self._loader.incomplete(name).items()
        }
        versions = tuple(version for _, version in sorted((incomplete | found).items()))
        ready = [version.version for version in versions if version.ready]
        known = self._known(name)
        if not ready:
            reason = "; ".join(dict.fromkeys(self._why_not(entry) for entry in entries))
            retry_seconds = BROKEN_RETRY_SECONDS if self._loader.why_failed(name) else RETRY_SECONDS
            return replace(known, versions=versions, reason=reason, retry_seconds=retry_seconds)
        loads = self._loader.loads(name)
        again |= loads != self._loads.get(name)
        if known.specs and not known.reason and not again and known.versions == versions:
            return known
        config = await self._triton.model_config(name, max(ready))
        self._loads[name] = loads
        text = config.parameters.get(PARAMETER_KEY)
        if text is None:
            return None  # a part of another model, or somebody else's
        try:
            specs = parse_specs(text, name)
            for spec in specs.values():
                check_config(spec, config)
            return Model(name, specs, config, versions, "")
        except ValueError as error:
            # Its tools, if they are known, stay in the list and say so.
            wrong = replace(known, config=known.config if known.specs else config, versions=versions)
            why = " ".join(str(error).split())[:MAX_REASON_CHARACTERS]
            return wrong.called_off(f"its configuration is wrong: {why}", BROKEN_RETRY_SECONDS)

    def _version(self, number: int, entry: IndexEntry) -> ToolVersion:
        if entry.state == READY:
            return ToolVersion(number, True, "")
        has_failed = entry.state == UNAVAILABLE and entry.reason != "unloaded"
        return ToolVersion(number, False, self._why_not(entry), BROKEN_RETRY_SECONDS if has_failed else RETRY_SECONDS)

    def _why_not(self, entry: IndexEntry) -> str:
        if self._loader.is_coming_back(entry.name):
            return self._loader.why_failed(entry.name) or "it is being loaded again"
        return (
            entry.reason
            or self._loader.why_failed(entry.name)
            or _IN_WORDS.get(entry.state, f"Triton says {entry.state}")
        )
