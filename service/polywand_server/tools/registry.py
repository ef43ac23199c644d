"""The registry: which tools exist and which are ready, read from Triton's repository index and model configurations."""

import asyncio
import difflib
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress

from polywand_server.errors import NotFoundError, PolywandError, UnavailableError, WrongStateError
from polywand_server.ops import metrics
from polywand_server.tools.catalogue import Model, State, Tool, assign_tool_names, join_names
from polywand_server.tools.index import Index, IndexReader
from polywand_server.tools.kinds import Detector, Interactor
from polywand_server.tools.loader import ModelLoader
from polywand_server.tools.reader import ModelReader
from polywand_server.tools.readiness import Readiness
from polywand_server.triton.client import IndexEntry, ModelState, TritonClient

log = logging.getLogger(__name__)

AWAY = "Triton is away"
# While Triton is away it is polled this often, so that recovery is noticed at once.
AWAY_POLL_SECONDS = 0.25
# How long reading the index may take before Triton counts as away.
POLL_TIMEOUT_SECONDS = 5.0


class Registry:
    """Follows Triton's repository: the tools of a model appear when it is loaded, and go when it is unloaded.

    loader: loads what the repository holds. ready_models: what has to be ready before the service is (see `Readiness`).
    wake: set when something has happened that the next poll should not wait for, such as a load.
    on_change: called after every poll that changed anything.
    """

    def __init__(
        self,
        triton: TritonClient,
        loader: ModelLoader,
        *,
        ready_models: Sequence[str],
        poll_seconds: float,
        wake: asyncio.Event,
        on_change: Callable[[], None],
    ) -> None:
        self._loader = loader
        self._index = IndexReader(triton, loader)
        self._reader = ModelReader(triton, loader)
        self._readiness = Readiness(ready_models)
        self._poll_seconds = poll_seconds
        self._on_change = on_change
        self._tools: dict[str, Tool] = {}
        self._in_service: frozenset[str] = frozenset()  # names of models, tools or not
        self._unknown: list[str] = []
        self._wake = wake
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
        return not self.not_ready_reason

    @property
    def not_ready_reason(self) -> str:
        """Why requests may not come yet; empty when they may."""
        return self._readiness.not_ready_reason(self._tools, self._in_service)

    def knows(self, name: str) -> bool:
        """Whether a name may stand in a metric's label."""
        return name in self._tools

    def interactor(self, name: str, version: int, path: str = "prompt.") -> Interactor:
        """Find a ready interactor; version 0 is the highest ready one.

        path: of the message that holds the fields model and version, for errors.

        Raises:
            NotFoundError, WrongStateError (it is a detector), UnavailableError (not now)
        """
        tool = self._find(name, version, path)
        if not isinstance(tool, Interactor):
            text = f"model '{name}' is a detector (see Detect); an interactor is needed"
            raise WrongStateError(f"{path}model", text, metadata={"model": name})
        return tool

    def detector(self, name: str, version: int) -> Detector:
        """Find a ready detector; version 0 is the highest ready one.

        Raises:
            NotFoundError, WrongStateError (it is an interactor), UnavailableError (not now)
        """
        tool = self._find(name, version, "")
        if not isinstance(tool, Detector):
            text = f"model '{name}' is an interactor: use it with Interact, not with Detect"
            raise WrongStateError("model", text, metadata={"model": name})
        return tool

    def _find(self, name: str, version: int, path: str) -> Interactor | Detector | None:
        tool = self._tools.get(name)
        if not self.triton_up:
            raise UnavailableError(f"model '{name}' is not ready: {AWAY}" if tool else f"{AWAY}, so no model is known")
        if tool is None:
            known = join_names(_closest_first(name, self._tools))
            raise NotFoundError(f"{path}model", f"there is no model '{name}'; there are: {known}", resource=name)
        return tool.of_version(tool.choose_version(version, path))

    async def refresh(self) -> None:
        """Return when a poll of Triton has ended that began after this call.

        The task of `run` polls, so a caller that is cancelled cancels no poll.
        """
        if self._has_ended:
            return
        polled = asyncio.get_running_loop().create_future()
        self._waiting.append(polled)
        self._wake.set()
        await polled

    async def run(self) -> None:
        """Poll Triton until cancelled."""
        waiting: list[asyncio.Future[None]] = []
        try:
            while True:
                self._wake.clear()
                waiting, self._waiting = self._waiting, []
                await self._poll()
                _resolve(waiting)
                await self._pause(self._poll_seconds if self.triton_up else AWAY_POLL_SECONDS)
        finally:
            self._has_ended = True
            _resolve([*waiting, *self._waiting])
            await self._loader.close()

    async def _pause(self, seconds: float) -> None:
        """Wait before the next poll, unless woken earlier."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _poll(self) -> None:
        before, tools = (self.triton_up, self._tools, self.not_ready_reason), self._tools
        attempted = self._loader.attempted  # read before the index: a model that is loaded meanwhile is not in it yet
        try:
            await self._loader.scan_folders()
            async with asyncio.timeout(POLL_TIMEOUT_SECONDS):
                index = await self._index.read()
                self._update(await self._reader.read(index), index.ready)
        except (PolywandError, TimeoutError) as error:
            self._set_triton_up(False, str(error) or "it did not answer in time")
            self._update(self._reader.mark_unavailable(AWAY), ())
            self._start_over()
        else:
            self._set_triton_up(True)
            if index.is_new:
                self._start_over()
                attempted = frozenset()
            self._loader.start_due_work(index.entries, self._reader.parts)
            if not index.error:
                self._readiness.update(self._not_attempted(index, attempted))
            elif not self._readiness.has_started:
                self._readiness.reset("Triton does not list its models")
            self._log_unknown_names()
        if before != (self.triton_up, self._tools, self.not_ready_reason):
            self._report_changes(tools)
            self._on_change()

    def _update(self, models: dict[str, Model], ready: Iterable[tuple[str, int | None]]) -> None:
        self._tools = assign_tool_names(models, self._tools)
        self._in_service = frozenset(name for name, _ in ready)

    def _set_triton_up(self, up: bool, reason: str = "") -> None:
        if up and not self.triton_up:
            log.info("Triton answers")
        elif self.triton_up and not up:
            log.warning("%s: %s", AWAY, reason)
        self.triton_up = up
        metrics.TRITON_UP.set(up)

    def _start_over(self) -> None:
        """Triton is away, or was restarted: all models have to be loaded again."""
        self._readiness.reset()
        self._loader.restart()

    def _not_attempted(self, index: Index, attempted: Collection[str]) -> set[str]:
        """Return the models that have neither been loaded nor failed yet, or whose configuration was not read yet."""
        models: defaultdict[str, list[IndexEntry]] = defaultdict(list)
        for entry in index.entries:
            models[entry.name].append(entry)
        return {name for name, entries in models.items() if self._is_pending(name, entries, attempted)}

    def _is_pending(self, name: str, entries: Sequence[IndexEntry], attempted: Collection[str]) -> bool:
        if name in attempted or any(entry.is_ready for entry in entries):
            return name in self._reader.unread or (name not in attempted and self._loader.is_busy(name))
        if any(entry.state == ModelState.LOADING for entry in entries):
            return True
        return self._loader.is_active and (self._loader.is_busy(name) or not any(entry.state for entry in entries))

    def _log_unknown_names(self) -> None:
        unknown = self._readiness.unknown(self._tools, self._in_service)
        if unknown and unknown != self._unknown:
            known = join_names(sorted(self._tools))
            log.error("--ready-models names no tool or model: %s; there are: %s", ", ".join(unknown), known)
        self._unknown = unknown

    def _report_changes(self, before: dict[str, Tool]) -> None:
        for name in sorted(before.keys() | self._tools.keys()):
            old, new = before.get(name), self._tools.get(name)
            if new is None:
                # Without a spec, it was only the placeholder of a model that had not been loaded yet.
                if old is not None and old.spec:
                    log.info("tool %s is gone: its model was unloaded", name)
            elif new.ready and (old is None or not old.ready or old.versions != new.versions):
                versions = [str(version.version) for version in new.versions if version.ready]
                log.info("tool %s serves with %s", name, _listed_versions(versions))
            elif not new.ready and (old is None or old.reason != new.reason):
                level = logging.WARNING if _is_failure(old, new) else logging.DEBUG
                log.log(level, "tool %s does not serve: %s", name, new.reason)
        ready = [tool.spec.kind for tool in self._tools.values() if tool.ready and tool.spec]
        for kind in ("interactor", "detector"):
            metrics.MODELS_READY.labels(kind).set(ready.count(kind))


def _listed_versions(versions: Sequence[str]) -> str:
    """Return "version 1", "versions 1 and 4", "versions 1, 2 and 4"."""
    if len(versions) == 1:
        return f"version {versions[0]}"
    return f"versions {', '.join(versions[:-1])} and {versions[-1]}"


def _is_failure(old: Tool | None, new: Tool) -> bool:
    """Whether a tool that is not ready has failed, or was ready; that Triton is away has its own log line."""
    if new.reason == AWAY:
        return False
    return new.state is State.FAILED or (old is not None and old.ready)


def _closest_first(name: str, names: Collection[str]) -> list[str]:
    close = difflib.get_close_matches(name, names)
    return [*close, *sorted(set(names) - set(close))]


def _resolve(futures: Iterable[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():  # its caller may have been cancelled
            future.set_result(None)
