"""The loader: asks Triton, by explicit model control, to load what its repository holds and nobody has unloaded."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from polywand_server.errors import PolywandError
from polywand_server.folders import ModelFolder, ModelFolders
from polywand_server.triton.client import IndexEntry, TritonClient
from polywand_server.triton.revivals import FIRST_RETRY_S, LAST_RETRY_S

log = logging.getLogger(__name__)

# How long requests to a version that goes may take, before the parts that they need go too.
DRAIN_SECONDS = 60.0
DRAIN_POLL_SECONDS = 0.1

READY, LOADING, UNLOADING, UNAVAILABLE = "READY", "LOADING", "UNLOADING", "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    pause_seconds: float
    retry_at: float


class ModelLoader:
    """Loads models in the background: when they appear, and again when their files have changed since.

    Triton keeps what it has in service until what is new is ready, leaves alone the versions that have not changed, and
    goes on with the old when the new fails. What fails is tried again, less and less often, or as soon as its files
    change. While they are still changing, since somebody is copying them, nothing is loaded again.

    folders: of the repository; where they know nothing, every model is loaded once.
    on_loaded: called with a model's name after every load, whatever came of it.
    """

    def __init__(self, triton: TritonClient, folders: ModelFolders, on_loaded: Callable[[str], None]) -> None:
        self._triton = triton
        self._folders = folders
        self._on_loaded = on_loaded
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading: set[str] = set()
        self._failures: dict[str, _Failure] = {}
        self._loaded: dict[str, ModelFolder] = {}  # as they were when their last load began
        self._vanished: set[str] = set()  # unloaded by us, because their folder was gone

    def why_failed(self, name: str) -> str:
        """Say why the last load failed; empty when it did not."""
        failure = self._failures.get(name)
        return failure.reason if failure else ""

    def is_deleted(self, entry: IndexEntry) -> bool:
        """Whether Triton only remembers a version: it is out of service, and its folder is gone."""
        folder = self._folders.get(entry.name)
        if folder is None or entry.version is None or entry.state != UNAVAILABLE:
            return False
        return entry.version not in folder.versions

    async def consider(self, index: Sequence[IndexEntry], parts: Mapping[str, Sequence[str]]) -> None:
        """Start to load what is in the index but not in service, or has changed, and nobody has unloaded.

        parts: the models that a model calls, each of its versions the same version of them.
        """
        await self._folders.look()
        models: defaultdict[str, list[IndexEntry]] = defaultdict(list)
        for entry in index:
            models[entry.name].append(entry)
            if entry.state == READY and (folder := self._folders.get(entry.name)):
                self._loaded.setdefault(entry.name, folder)  # by somebody else
        due = {name for name, entries in models.items() if self._is_due(name, entries)}
        for main, its_parts in parts.items():
            group = {main, *its_parts}
            if not group & self._loading:
                self._start(*self._in_order(main, its_parts, due, models[main]))
            due -= group
        for name in due - self._loading:
            self._start(name)
        for name in self._loaded.keys() - models.keys() - self._loading:
            if self._folders.is_gone(name):
                self._keep(asyncio.create_task(self._unload(name), name=f"unload {name}"))

    def forget(self) -> None:
        """Start anew: Triton was away, and whatever comes back knows nothing."""
        self._failures.clear()

    async def close(self) -> None:
        """Stop waiting for loads; Triton finishes them by itself."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._folders.close()

    def _is_due(self, name: str, entries: Sequence[IndexEntry]) -> bool:
        folder, loaded, failure = self._folders.get(name), self._loaded.get(name), self._failures.get(name)
        if name not in self._vanished and _was_taken_out(entries, folder):
            return False
        if folder and folder != loaded:
            if not self._folders.is_settled(name):
                return False  # somebody is copying it
            if loaded:
                return True
        if failure:
            return time.monotonic() >= failure.retry_at
        # Triton gives a state to what it was ever asked to load, as long as the files could be read.
        return name in self._vanished or not any(entry.state for entry in entries)

    def _in_order(
        self, main: str, parts: Sequence[str], due: Collection[str], entries: Iterable[IndexEntry]
    ) -> Sequence[str]:
        """Order what is due of a model and its parts: a version's parts come before it and go after it."""
        due_parts = [part for part in parts if part in due]
        if main not in due:
            return due_parts
        folder, ready = self._folders.get(main), [entry.version or 0 for entry in entries if entry.state == READY]
        if folder and max(folder.versions, default=0) < max(ready, default=0):
            return [main, *due_parts]
        if any(part in self._failures and part not in due for part in parts):
            return due_parts
        return [*due_parts, main]

    def _start(self, *names: str) -> None:
        """Load models, one after the other."""
        if names:
            self._loading.update(names)
            self._keep(asyncio.create_task(self._load_all(names), name=f"load {', '.join(names)}"))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load_all(self, names: Sequence[str]) -> None:
        try:
            for name in names:
                await self._load(name)
                if name in self._failures:
                    break
                if name != names[-1]:
                    await self._drained(name)
        finally:
            self._loading.difference_update(names)

    async def _load(self, name: str) -> None:
        log.info("loading model %s", name)
        folder, last = self._folders.get(name), self._failures.get(name)
        if folder:
            is_changed = self._loaded.get(name) != folder
            self._loaded[name] = folder
            last = None if is_changed else last
        try:
            await self._triton.load(name)
            self._failures.pop(name, None)
            self._vanished.discard(name)
        except PolywandError as error:
            pause = min(2 * last.pause_seconds, LAST_RETRY_S) if last else FIRST_RETRY_S
            self._failures[name] = _Failure(str(error), pause, time.monotonic() + pause)
            log.error("model %s did not load, next try in %g s: %s", name, pause, error)
        finally:
            self._on_loaded(name)

    async def _drained(self, name: str) -> None:
        """Wait, with a limit, until no version of a model finishes its last requests any more."""
        with suppress(PolywandError, TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while await self._is_draining(name):  # noqa: ASYNC110 - only Triton knows, and it is asked
                    await asyncio.sleep(DRAIN_POLL_SECONDS)

    async def _is_draining(self, name: str) -> bool:
        index = await self._triton.repository_index()
        return any(entry.name == name and entry.state == UNLOADING for entry in index)

    async def _unload(self, name: str) -> None:
        """Free what a model takes whose folder is gone; should the folder come back, so does the model."""
        log.info("unloading model %s, whose folder is gone", name)
        self._vanished.add(name)
        self._loaded.pop(name)
        self._failures.pop(name, None)
        try:
            await self._triton.unload(name)
        except PolywandError as error:
            log.error("model %s, whose folder is gone, was not unloaded: %s", name, error)


def _was_taken_out(entries: Iterable[IndexEntry], folder: ModelFolder | None) -> bool:
    """Whether somebody has unloaded a model. Triton remembers unloaded versions that are no longer there, too."""
    present = [entry for entry in entries if folder is None or entry.version in folder.versions]
    in_service = any(entry.state in (READY, LOADING) for entry in present)
    return not in_service and any(entry.state == UNLOADING or entry.reason == "unloaded" for entry in present)
