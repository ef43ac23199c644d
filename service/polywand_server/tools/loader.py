"""The loader: the one owner of what Triton has loaded."""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from polywand_server.errors import PolywandError
from polywand_server.tools.folders import ModelFolders
from polywand_server.tools.history import LoadHistory
from polywand_server.tools.loading import VersionLoader
from polywand_server.tools.reports import DeathReports
from polywand_server.triton.client import DeadProcess, IndexEntry, ModelState, TritonClient
from polywand_server.triton.failures import ControlRefusedError

log = logging.getLogger(__name__)

# The pause after a failed unload, before anything else is done to the model.
FAILED_UNLOAD_SECONDS = 2.0

EndProcesses = Callable[[str, str | None], object]


def no_op(model: str, process: str | None) -> None:
    """End no process: those of a Triton elsewhere cannot be reached."""


class ModelLoader:
    """Loads models in the background: new ones, those whose files have changed, and those whose process died.

    Everything that is done to a model is done by a task that holds the model meanwhile, so a model that has just been
    loaded is not unloaded. A healthy model is never unloaded, except if its folder was deleted.

    Triton keeps the versions in service until new ones are ready, does not reload versions whose files are the same,
    and keeps the old ones if the new ones fail. A failed load is repeated after pauses that grow, or as soon as the
    files change. While files are still being written, nothing is loaded.

    allowed: whether models may be loaded and unloaded at all. folders: of the repository; if it cannot be read, every
    model is loaded once. on_change: called after every load and unload, whatever its outcome.
    end_processes: called with a model and, if known, the name of its process that Triton calls dead.
    """

    def __init__(
        self,
        triton: TritonClient,
        folders: ModelFolders,
        *,
        allowed: bool,
        on_change: Callable[[], object],
        end_processes: EndProcesses = no_op,
    ) -> None:
        self._triton = triton
        self._folders = folders
        self._history = LoadHistory(folders)
        self._versions = VersionLoader(triton, folders)
        self._reports = DeathReports(triton)
        self._allowed = allowed
        self._is_refused = False
        self._on_change = on_change
        self._end_processes = end_processes
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: set[str] = set()  # models that a task holds
        self._just_finished: set[str] = set()  # since the last scan: the index may be older than what was done to them
        self._attempted: set[str] = set()
        self._restarts = 0  # of Triton, as far as they were noticed
        self._load_counts: Counter[str] = Counter()
        self._postponed: dict[str, DeadProcess] = {}  # reports about models that are busy
        self._left_dead: set[str] = set()

    @property
    def is_active(self) -> bool:
        """Whether models are loaded: it is allowed, and Triton does not refuse."""
        return self._allowed and not self._is_refused

    @property
    def attempted(self) -> frozenset[str]:
        """Models whose load has succeeded or failed since Triton started."""
        return frozenset(self._attempted)

    def load_count(self, name: str) -> int:
        """How often a model has been loaded; its configuration may differ after each load."""
        return self._load_counts[name]

    def is_busy(self, name: str) -> bool:
        """Whether a model is being loaded or unloaded from here, or is about to be."""
        return name in self._busy

    def is_reloading(self, name: str) -> bool:
        """Whether a model is out of service only to be loaded again."""
        return self.is_active and self._history.is_reloading(name)

    def failure_reason(self, name: str) -> str:
        """Return why the last load failed; empty when it did not."""
        return self._history.failure_reason(name)

    def incomplete_versions(self, name: str) -> Mapping[int, str]:
        """Return the versions that Triton was not told to load, and why."""
        return self._versions.incomplete(name)

    def is_deleted(self, entry: IndexEntry) -> bool:
        """Whether Triton only remembers a version: it is out of service, and its folder was deleted."""
        folder = self._folders.get(entry.name)
        if folder is None or entry.version is None or entry.state != ModelState.UNAVAILABLE:
            return False
        return entry.version not in folder.versions

    def is_not_a_model(self, entry: IndexEntry) -> bool:
        """Whether Triton lists a folder that is not a model's."""
        return not entry.state and self._folders.is_missing(entry.name)

    async def scan_folders(self) -> None:
        """Read the repository's folders; call it before Triton's index is read."""
        self._just_finished.clear()
        await self._folders.scan()

    def start_due_work(self, index: Sequence[IndexEntry], parts: Mapping[str, Sequence[str]]) -> None:
        """Start the loads and unloads that are due.

        parts: the models that a model calls, by its name; version N calls version N of them.
        """
        if not self.is_active:
            return
        held = self._busy | self._just_finished
        models: defaultdict[str, list[IndexEntry]] = defaultdict(list)
        for entry in index:
            models[entry.name].append(entry)
            if entry.is_ready and entry.name not in held:
                self._history.record_in_service(entry.name)
        due = {name for name, entries in models.items() if self._history.is_due(name, entries)}
        for main, its_parts in parts.items():
            group = {main, *its_parts}
            if not group & held:
                names = self._history.order(main, its_parts, due, models[main])
                if names:
                    self._start(names, self._load_in_order(names), "load")
            due -= group
        for name in sorted(due - held):
            self._start((name,), self._load_in_order((name,)), "load")
        for name in self._history.loaded - held:
            if self._folders.is_deleted(name):
                self._start((name,), self._unload_deleted(name), "unload")

    def revive(self, report: DeadProcess) -> None:
        """Load a model again after a request found its process dead; Triton itself goes on calling the model READY.

        A process that Triton calls dead may be alive, and only have had no processor time for a second or two. When it
        goes on, Triton 2.51 ends with SIGSEGV or takes its late answer for the answer to the next request. So the
        process is ended at once. If the only request that could report it was cancelled, Triton ends and is restarted.
        """
        name = report.model
        if self._history.is_reloading(name) or self._reports.is_outdated(report):
            return
        self._end_processes(name, report.process)
        if not self.is_active:
            if name not in self._left_dead:
                self._left_dead.add(name)
                log.error(
                    "a process of model '%s' died, and this service may not load models: Triton fails all requests to "
                    "it until it is unloaded and loaded again",
                    name,
                )
        elif name in self._busy:
            self._postponed[name] = report
        else:
            self._start((name,), self._revive(report), "revive")

    def restart(self) -> None:
        """Start anew: Triton was away, so it may have lost its models, or allow loads that it refused before."""
        self._history.retry_now()
        self._reports.record_restart()
        self._restarts += 1
        self._attempted.clear()
        self._left_dead.clear()
        self._postponed.clear()
        self._is_refused = False

    async def close(self) -> None:
        """Stop waiting for loads; Triton finishes them by itself."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._folders.close()

    def _start(self, names: Sequence[str], work: Coroutine[Any, Any, None], verb: str) -> None:
        """Run work in a task that holds the models until it ends."""
        self._busy.update(names)
        task = asyncio.create_task(work, name=f"{verb} {', '.join(names)}")
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._finish(task, names))

    def _finish(self, task: asyncio.Task[None], names: Iterable[str]) -> None:
        self._tasks.discard(task)
        self._busy.difference_update(names)
        self._just_finished.update(names)
        if not task.cancelled() and (error := task.exception()):
            log.error("unexpected error in the task '%s'", task.get_name(), exc_info=error)
            self._history.record_internal_error(names)
        self._on_change()
        for report in [self._postponed.pop(name) for name in names if name in self._postponed]:
            if not task.cancelled():
                self.revive(report)

    async def _load_in_order(self, names: Sequence[str]) -> None:
        for name in names:
            await self._load(name)
            if self._history.has_failed(name):
                break
            if name != names[-1]:
                await self._versions.wait_until_drained(name)

    async def _load(self, name: str) -> None:
        log.info("loading model %s", name)
        folder, restarts = self._folders.get(name), self._restarts
        self._history.record_start(name, folder)
        try:
            await self._versions.load(name, folder)
            self._history.record_success(name)
        except ControlRefusedError as error:
            self._record_refusal(error)
        except PolywandError as error:
            some_serve = await self._versions.load_healthy_versions(name, folder)
            pause = self._history.record_failure(name, str(error), some_serve=some_serve)
            log.error("model %s did not load, next try in %g s: %s", name, pause, error)
        finally:
            if restarts == self._restarts:  # else the load was sent to a Triton that has ended
                self._attempted.add(name)
            self._load_counts[name] += 1
            self._on_change()

    async def _revive(self, report: DeadProcess) -> None:
        name = report.model
        if not await self._reports.is_confirmed(report):
            log.info("model '%s' has had no failed request since it was loaded: it is not loaded again", name)
            return
        log.error("a process of model '%s' died: loading it again", name)
        # Triton does not load a model again whose files are the same; so it is unloaded first.
        if await self._unload(name):
            self._reports.record_unload(name)
            await self._load(name)
            if not self._history.has_failed(name):
                log.warning("model '%s' is loaded again", name)

    async def _unload_deleted(self, name: str) -> None:
        """Unload a model whose folder was deleted; if the folder comes back, the model is loaded again."""
        log.info("unloading model %s: its folder was deleted", name)
        if await self._unload(name):
            self._history.forget(name)

    async def _unload(self, name: str) -> bool:
        """Unload a model; return whether it is out of service."""
        try:
            await self._triton.unload(name)
        except ControlRefusedError as error:
            self._record_refusal(error)
        except PolywandError as error:
            log.error("model %s was not unloaded: %s", name, error)
            await asyncio.sleep(FAILED_UNLOAD_SECONDS)
        else:
            self._history.record_unload(name)
            return True
        return False

    def _record_refusal(self, error: ControlRefusedError) -> None:
        if not self._is_refused:
            self._is_refused = True
            log.error("Triton refuses to load and unload models, so this service does neither (%s)", error)
