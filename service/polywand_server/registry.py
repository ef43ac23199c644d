"""The registry: which tools exist, read from Triton's own repository index and model configs, and kept current."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from polywand_server import metrics
from polywand_server.errors import RETRY_SECONDS, NotFoundError, PolywandError, UnavailableError, WrongStateError
from polywand_server.folders import ModelFolders
from polywand_server.loader import ModelLoader
from polywand_server.specs import PARAMETER_KEY, DetectorSpec, InteractorSpec, check_config, parse_specs
from polywand_server.tools import BROKEN_RETRY_SECONDS, Model, Tool, ToolVersion, share_out
from polywand_server.triton.client import IndexEntry, ModelConfig, TritonClient

log = logging.getLogger(__name__)

Chosen = TypeVar("Chosen")
Result = TypeVar("Result")

READY = "READY"
# Parameters of a model's config that name models which it calls.
PART_KEYS = ("encoder", "head")
# While Triton is away it is asked this often, so that recovery shows at once.
AWAY_POLL_SECONDS = 0.25
# How long a look at the index may take before Triton counts as away.
POLL_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Interactor:
    """A ready version of an interactor, as one request uses it. model: its name in Triton."""

    name: str
    model: str
    version: int
    spec: InteractorSpec
    config: ModelConfig


@dataclass(frozen=True, slots=True)
class Detector:
    """A ready version of a detector, as one request uses it. model: its name in Triton."""

    name: str
    model: str
    version: int
    spec: DetectorSpec
    config: ModelConfig


class Registry:
    """Follows Triton's repository: what is loaded appears, what is unloaded goes.

    load_models: load what the repository holds; else that is left to whoever runs Triton.
    repository: its folder, if it is on this machine: then changes in it are loaded too.
    on_change: called after every look that changed anything.
    """

    def __init__(
        self,
        triton: TritonClient,
        *,
        load_models: bool,
        repository: Path | None,
        poll_seconds: float,
        on_change: Callable[[], None],
    ) -> None:
        self._triton = triton
        self._look_again = asyncio.Event()
        self._loader = ModelLoader(triton, ModelFolders(repository), self._after_load) if load_models else None
        self._just_loaded: set[str] = set()
        self._poll_seconds = poll_seconds
        self._on_change = on_change
        self._models: dict[str, Model] = {}
        self._tools: dict[str, Tool] = {}
        self._ready_in_triton: set[str] = set()  # whether tools or not
        self._reread = 0
        self._looks_begun = 0
        self._last_look = 0
        self._looking = asyncio.Lock()
        self.triton_up = False

    @property
    def tools(self) -> list[Tool]:
        """All known tools, by name."""
        return [self._tools[name] for name in sorted(self._tools)]

    @property
    def ready(self) -> bool:
        """Whether Triton and at least one tool are ready."""
        return self.triton_up and any(tool.ready for tool in self._tools.values())

    def knows(self, name: str) -> bool:
        """Whether a name may stand in a metric's label."""
        return name in self._tools

    def interactor(self, name: str, version: int, path: str = "prompt.") -> Interactor:
        """Find a ready interactor; version 0 is the highest ready one.

        path: of the message that holds the fields model and version, for errors.

        Raises:
            NotFoundError, WrongStateError (it is a detector), UnavailableError (not now)
        """
        tool, chosen = self._find(name, version, path)
        if not isinstance(tool.spec, InteractorSpec) or tool.config is None:
            raise WrongStateError(f"{path}model", f"model '{name}' is a detector (see Detect); an interactor is needed")
        return Interactor(name, tool.model, chosen, tool.spec, tool.config)

    def detector(self, name: str, version: int) -> Detector:
        """Find a ready detector; version 0 is the highest ready one.

        Raises:
            NotFoundError, WrongStateError (it is an interactor), UnavailableError (not now)
        """
        tool, chosen = self._find(name, version, "")
        if not isinstance(tool.spec, DetectorSpec) or tool.config is None:
            raise WrongStateError("model", f"model '{name}' is an interactor: use it with Interact, not with Detect")
        return Detector(name, tool.model, chosen, tool.spec, tool.config)

    def _find(self, name: str, version: int, path: str) -> tuple[Tool, int]:
        """path: of the message that holds the fields model and version, for errors."""
        tool = self._tools.get(name)
        if tool is None:
            if not self.triton_up:
                raise UnavailableError("Triton is not ready yet, so no model is known")
            known = ", ".join(sorted(self._tools)) or "none"
            raise NotFoundError(f"{path}model", f"there is no model '{name}'; there are: {known}")
        return tool, tool.version(version, path)

    async def with_tool(self, choose: Callable[[], Chosen], use: Callable[[Chosen], Awaitable[Result]]) -> Result:
        """Choose what to work with, and work with it.

        Perhaps a version was taken out of service since the registry looked, and another one will do: then that one.
        """
        chosen = choose()
        try:
            return await use(chosen)
        except UnavailableError:
            await self.refresh()
            other = choose()
            if other == chosen:
                raise
        return await use(other)

    async def run(self) -> None:
        """Look at Triton until cancelled."""
        try:
            while True:
                self._look_again.clear()
                await self.refresh()
                await self._pause(self._poll_seconds if self.triton_up else AWAY_POLL_SECONDS)
        finally:
            if self._loader:
                await self._loader.close()

    async def refresh(self) -> None:
        """Look at Triton now; those who ask meanwhile share the next look."""
        begun_before = self._looks_begun
        async with self._looking:
            if self._last_look > begun_before:
                return
            self._looks_begun += 1
            number = self._looks_begun
            await self._look()
            self._last_look = number

    def _after_load(self, name: str) -> None:
        self._just_loaded.add(name)
        self._look_again.set()

    def _parts(self) -> dict[str, list[str]]:
        """Tell which models are called by which; a version calls the same version of them."""
        parts = {name: _parts_of(model) for name, model in self._models.items()}
        return {name: names for name, names in parts.items() if names}

    async def _pause(self, seconds: float) -> None:
        """Wait before the next look: a model that has just been loaded is to serve at once."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._look_again.wait()

    async def _look(self) -> None:
        before = (self.triton_up, self._tools)
        try:
            async with asyncio.timeout(POLL_TIMEOUT_SECONDS):
                # Triton takes a hidden folder for a model; somebody is preparing something there.
                index = [entry for entry in await self._triton.repository_index() if not entry.name.startswith(".")]
                self._ready_in_triton = {entry.name for entry in index if entry.state == READY}
                self._take(await self._read(index))
            self._set_up(True)
        except (PolywandError, TimeoutError) as error:
            self._set_up(False, str(error) or "it did not answer in time")
            self._take({name: model.called_off("Triton is away") for name, model in self._models.items()})
            if self._loader:
                self._loader.forget()
        else:
            if self._loader:
                await self._loader.consider(index, self._parts())
        if before != (self.triton_up, self._tools):
            self._report_changes(before[1])
            self._on_change()

    def _take(self, models: dict[str, Model]) -> None:
        self._models, self._tools = models, share_out(models, self._tools)

    def _set_up(self, up: bool, why_not: str = "") -> None:
        if up != self.triton_up:
            log.info("Triton answers") if up else log.warning("Triton is away: %s", why_not)
        self.triton_up = up
        metrics.TRITON_UP.set(up)

    async def _read(self, index: list[IndexEntry]) -> dict[str, Model]:
        """Read the models of an index, asking only for configs that are new or whose turn it is.

        A reload under the same version leaves no trace in the index, so each look reads one known config again.
        """
        entries: defaultdict[str, list[IndexEntry]] = defaultdict(list)
        for entry in index:
            # With a loader, what was never loaded is about to be; without, it is not there for us.
            is_gone = _was_unloaded(entry) and not self._triton.is_reviving(entry.name)
            is_gone |= self._loader is not None and self._loader.is_deleted(entry)
            if (entry.state or self._loader) and not is_gone:
                entries[entry.name].append(entry)
        just_loaded, self._just_loaded = self._just_loaded, set()
        self._reread += 1
        turn = sorted(entries)[self._reread % len(entries)] if entries else None
        models = {}
        for name, versions in entries.items():
            try:
                model = await self._read_model(name, versions, again=name == turn or name in just_loaded)
            except PolywandError as error:  # it went between index and config; Triton itself is there
                model = replace(self._known(name), versions=(), reason=str(error))
            if model is not None:
                models[name] = model
        return _with_parts(models, index)

    def _known(self, name: str) -> Model:
        """What was known of a model at the last look."""
        return self._models.get(name) or Model(name, {}, None, (), "it is not known yet")

    async def _read_model(self, name: str, entries: list[IndexEntry], *, again: bool) -> Model | None:
        versions = tuple(
            ToolVersion(entry.version, entry.state == READY, "" if entry.state == READY else self._why_not(entry))
            for entry in sorted(entries, key=lambda entry: entry.version or 0)
            if entry.version is not None
        )
        ready = [version.version for version in versions if version.ready]
        known = self._known(name)
        if not ready:
            reason = "; ".join(dict.fromkeys(self._why_not(entry) for entry in entries))
            retry_seconds = BROKEN_RETRY_SECONDS if self._why_failed(name) else RETRY_SECONDS
            return replace(known, versions=versions, reason=reason, retry_seconds=retry_seconds)
        if known.specs and not known.reason and not again and known.versions == versions:
            return known
        config = await self._triton.model_config(name, max(ready))
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
            return wrong.called_off(f"its configuration is wrong: {error}", BROKEN_RETRY_SECONDS)

    def _why_failed(self, name: str) -> str:
        return self._loader.why_failed(name) if self._loader else ""

    def _why_not(self, entry: IndexEntry) -> str:
        in_words = {"": "it is not loaded yet", "LOADING": "it is being loaded", "UNLOADING": "it is being unloaded"}
        return entry.reason or self._why_failed(entry.name) or in_words.get(entry.state, f"Triton says {entry.state}")

    def _report_changes(self, before: dict[str, Tool]) -> None:
        for name in sorted(before.keys() | self._tools.keys()):
            old, new = before.get(name), self._tools.get(name)
            if new is None:
                # Else its tools have come instead, or it is no tool: a part of another model, for example.
                if old is not None and (old.spec or old.model not in self._models.keys() | self._ready_in_triton):
                    log.info("model %s was unloaded", name)
            elif new.ready and (old is None or not old.ready or old.versions != new.versions):
                versions = ", ".join(str(version.version) for version in new.versions if version.ready)
                log.info("model %s is ready (version %s)", name, versions)
            elif not new.ready and (old is None or old.reason != new.reason):
                log.warning("model %s is not ready: %s", name, new.reason)
        ready = [tool.spec.kind for tool in self._tools.values() if tool.ready and tool.spec]
        for kind in ("interactor", "detector"):
            metrics.MODELS_READY.labels(kind).set(ready.count(kind))


def _with_parts(models: Mapping[str, Model], index: Sequence[IndexEntry]) -> dict[str, Model]:
    """Return models, ready as far as their parts are, and without what is a part only; version N calls version N."""
    ready = {(entry.name, entry.version) for entry in index if entry.state == READY}
    parts = {name: _parts_of(model) for name, model in models.items()}
    only_parts = {part for names in parts.values() for part in names if part in models and not models[part].specs}
    reasons = {name: model.reason for name, model in models.items()}
    return {
        name: _without_parts(model, parts[name], ready, reasons)
        for name, model in models.items()
        if name not in only_parts
    }


def _parts_of(model: Model) -> list[str]:
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
    reason = "" if any(version.ready for version in versions) else "; ".join(version.reason for version in versions)
    return replace(model, versions=tuple(versions), reason=reason)


def _was_unloaded(entry: IndexEntry) -> bool:
    return entry.state == "UNAVAILABLE" and entry.reason == "unloaded"
