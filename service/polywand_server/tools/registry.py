"""The registry: which tools exist, read from Triton's own repository index and model configs, and kept current."""

import asyncio
import difflib
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from polywand_server.errors import NotFoundError, PolywandError, UnavailableError, WrongStateError
from polywand_server.ops import metrics
from polywand_server.tools.catalogue import BROKEN_RETRY_SECONDS, Model, Tool, listed, share_out
from polywand_server.tools.index import Index, IndexReader
from polywand_server.tools.loader import LOADING, READY, ModelLoader
from polywand_server.tools.reader import ModelReader
from polywand_server.tools.readiness import Readiness
from polywand_server.tools.specs import DetectorSpec, InteractorSpec
from polywand_server.triton.client import IndexEntry, ModelConfig, TritonClient

log = logging.getLogger(__name__)

Chosen = TypeVar("Chosen")
Result = TypeVar("Result")

AWAY = "Triton is away"
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

    loader: loads what the repository holds, if anybody is to do that. ready_models: what has to be ready for the
    service to be (see `Readiness`). news: set when something has happened that is worth a look, such as a load.
    on_change: called after every look that changed anything.
    """

    def __init__(
        self,
        triton: TritonClient,
        loader: ModelLoader,
        *,
        ready_models: Sequence[str],
        poll_seconds: float,
        news: asyncio.Event,
        on_change: Callable[[], None],
    ) -> None:
        self._loader = loader
        self._index = IndexReader(triton, loader)
        self._reader = ModelReader(triton, loader)
        self._readiness = Readiness(ready_models)
        self._poll_seconds = poll_seconds
        self._on_change = on_change
        self._tools: dict[str, Tool] = {}
        self._loaded: frozenset[str] = frozenset()  # models in service, whether tools or not
        self._unknown: list[str] = []
        self._news = news
        self._waiting: list[asyncio.Future[None]] = []
        self._has_ended = False
        self.triton_up = False

    @property
    def tools(self) -> list[Tool]:
        """All known tools, by name."""
        return [self._tools[name] for name in sorted(self._tools)]

    @property
    def ready(self) -> bool:
        """Whether requests may come."""
        return not self.why_not_ready

    @property
    def why_not_ready(self) -> str:
        """Why requests may not come yet; empty when they may."""
        return self._readiness.why_not(self._tools, self._loaded)

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
            known = listed(_closest_first(name, self._tools))
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

    async def refresh(self) -> None:
        """Return when a look at Triton has ended that began after this call.

        `run` looks, in its own task: that the one who asked goes meanwhile changes nothing about what is seen.
        """
        if self._has_ended:
            return
        seen = asyncio.get_running_loop().create_future()
        self._waiting.append(seen)
        self._news.set()
        await seen

    async def run(self) -> None:
        """Look at Triton until cancelled."""
        waiting: list[asyncio.Future[None]] = []
        try:
            while True:
                self._news.clear()
                waiting, self._waiting = self._waiting, []
                await self._look()
                _release(waiting)
                await self._pause(self._poll_seconds if self.triton_up else AWAY_POLL_SECONDS)
        finally:
            self._has_ended = True
            _release([*waiting, *self._waiting])
            await self._loader.close()

    async def _pause(self, seconds: float) -> None:
        """Wait before the next look: a model that has just been loaded is to serve at once."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    async def _look(self) -> None:
        before, tools = (self.triton_up, self._tools, self.why_not_ready), self._tools
        tried = self._loader.tried  # before the index is: what is loaded meanwhile is not in it yet
        try:
            await self._loader.look()
            async with asyncio.timeout(POLL_TIMEOUT_SECONDS):
                index = await self._index.read()
                self._take(await self._reader.read(index), index.ready)
        except (PolywandError, TimeoutError) as error:
            self._set_up(False, str(error) or "it did not answer in time")
            self._take(self._reader.call_off(AWAY), ())
            self._begin_again()
        else:
            self._set_up(True)
            if index.is_new:
                self._begin_again()
                tried = frozenset()
            self._loader.consider(index.entries, self._reader.parts)
            if not index.why_not:
                self._readiness.note(self._untried(index, tried))
            elif not self._readiness.has_begun:
                self._readiness.begin_again("Triton does not list its models")
            self._complain_about_unknown()
        if before != (self.triton_up, self._tools, self.why_not_ready):
            self._report_changes(tools)
            self._on_change()

    def _take(self, models: dict[str, Model], ready: Iterable[tuple[str, int | None]]) -> None:
        self._tools = share_out(models, self._tools)
        self._loaded = frozenset(name for name, _ in ready)

    def _set_up(self, up: bool, why_not: str = "") -> None:
        if up and not self.triton_up:
            log.info("Triton answers")
        elif self.triton_up and not up:
            log.warning("%s: %s", AWAY, why_not)
        self.triton_up = up
        metrics.TRITON_UP.set(up)

    def _begin_again(self) -> None:
        """Triton is away, or another one than before: all models have to be tried again."""
        self._readiness.begin_again()
        self._loader.forget()

    def _untried(self, index: Index, tried: Collection[str]) -> set[str]:
        """Return the models that were neither loaded nor found broken, or are and have not been read."""
        entries: defaultdict[str, list[IndexEntry]] = defaultdict(list)
        for entry in index.entries:
            entries[entry.name].append(entry)
        return {name for name, versions in entries.items() if self._is_untried(name, versions, tried)}

    def _is_untried(self, name: str, entries: Sequence[IndexEntry], tried: Collection[str]) -> bool:
        if name in tried or any(entry.state == READY for entry in entries):
            return name in self._reader.unread or (name not in tried and self._loader.is_busy(name))
        if any(entry.state == LOADING for entry in entries):
            return True
        return self._loader.is_active and (self._loader.is_busy(name) or not any(entry.state for entry in entries))

    def _complain_about_unknown(self) -> None:
        unknown = self._readiness.unknown(self._tools, self._loaded)
        if unknown and unknown != self._unknown:
            known = listed(sorted(self._tools))
            log.error("--ready-models names what is not there: %s; there are: %s", ", ".join(unknown), known)
        self._unknown = unknown

    def _report_changes(self, before: dict[str, Tool]) -> None:
        for name in sorted(before.keys() | self._tools.keys()):
            old, new = before.get(name), self._tools.get(name)
            if new is None:
                # What nobody knew yet has become its tools, or is none: a part of another model, for example.
                if old is not None and old.spec:
                    log.info("model %s was unloaded", name)
            elif new.ready and (old is None or not old.ready or old.versions != new.versions):
                versions = ", ".join(str(version.version) for version in new.versions if version.ready)
                log.info("model %s is ready (version %s)", name, versions)
            elif not new.ready and (old is None or old.reason != new.reason):
                level = logging.WARNING if _is_bad_news(old, new) else logging.DEBUG
                log.log(level, "model %s is not ready: %s", name, new.reason)
        ready = [tool.spec.kind for tool in self._tools.values() if tool.ready and tool.spec]
        for kind in ("interactor", "detector"):
            metrics.MODELS_READY.labels(kind).set(ready.count(kind))


def _is_bad_news(old: Tool | None, new: Tool) -> bool:
    """Whether a tool that is not ready has failed, or was ready; that Triton is away is told once for all."""
    if new.reason == AWAY:
        return False
    return new.retry_seconds == BROKEN_RETRY_SECONDS or (old is not None and old.ready)


def _closest_first(name: str, names: Collection[str]) -> list[str]:
    close = difflib.get_close_matches(name, names)
    return [*close, *sorted(set(names) - set(close))]


def _release(waiting: Iterable[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():  # the one who waited may have gone
            future.set_result(None)
