"""The loader: the one owner of what Triton has loaded. It loads what the repository holds and nobody has unloaded."""

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from polywand_server.errors import ModelFailedError, PolywandError
from polywand_server.tools.folders import ModelFolder, ModelFolders
from polywand_server.triton.client import Death, IndexEntry, TritonClient
from polywand_server.triton.failures import ControlRefusedError
from polywand_server.triton.versions import narrowed, required_file, serving

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 2.0, 60.0  # pauses between loads that fail; each is twice the one before
# How long requests to a version that goes may take, before the parts that they need go too.
DRAIN_SECONDS = 60.0
DRAIN_POLL_SECONDS = 0.1

READY, LOADING, UNLOADING, UNAVAILABLE = "READY", "LOADING", "UNLOADING", "UNAVAILABLE"

EndProcesses = Callable[[str, str | None], object]


def leave_alone(model: str, process: str | None) -> None:
    """End no process: those of a Triton elsewhere are out of reach."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """Of a model's last load. some_serve: whether versions of it were in service all the same."""

    reason: str
    pause_seconds: float
    retry_at: float
    some_serve: bool


class ModelLoader:
    """Loads models in the background: when they appear, when their files have changed, and when their process died.

    Whatever is done to a model is done by a task that has the model for itself meanwhile, so nothing is unloaded that
    has just been loaded. What is healthy is never unloaded.

    Triton keeps what it has in service until what is new is ready, leaves alone the versions that have not changed, and
    goes on with the old when the new fails. What fails is tried again, less and less often, or as soon as its files
    change. While they are still changing, since somebody is copying them, nothing is loaded again.

    allowed: whether models may be loaded and unloaded at all. folders: of the repository; where they know nothing,
    every model is loaded once. on_change: called whenever a model was loaded or not, whatever came of it.
    end_processes: of a model of which Triton calls one dead, with that one's name where it is known.
    """

    def __init__(
        self,
        triton: TritonClient,
        folders: ModelFolders,
        *,
        allowed: bool,
        on_change: Callable[[], object],
        end_processes: EndProcesses = leave_alone,
    ) -> None:
        self._triton = triton
        self._folders = folders
        self._allowed = allowed
        self._is_refused = False
        self._on_change = on_change
        self._end_processes = end_processes
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: set[str] = set()  # models that a task has for itself
        self._just_ended: set[str] = set()  # since the last look: an index from before is not to be trusted about them
        self._failures: dict[str, _Failure] = {}
        self._loaded: dict[str, ModelFolder] = {}  # as they were when their last load began
        self._taken_out: set[str] = set()  # unloaded by us, to be loaded again
        self._incomplete: dict[str, dict[int, str]] = {}
        self._tried: set[str] = set()
        self._lives = 0  # of Triton, as far as they were noticed
        self._born_at = 0.0
        self._loads: Counter[str] = Counter()
        self._not_dead_before: dict[str, float] = {}  # requests that were sent before met a process that has gone
        self._found_healthy: dict[str, float] = {}  # when Triton knew of no failure, though a request said so
        self._deaths: dict[str, Death] = {}  # of models that are busy, for later
        self._left_dead: set[str] = set()

    @property
    def is_active(self) -> bool:
        """Whether models are loaded: they may be, and Triton does not refuse."""
        return self._allowed and not self._is_refused

    @property
    def tried(self) -> frozenset[str]:
        """Models that have been loaded, or could not be, since Triton is there."""
        return frozenset(self._tried)

    def loads(self, name: str) -> int:
        """Tell how often a model has been loaded, so that it may have another configuration after that."""
        return self._loads[name]

    def is_busy(self, name: str) -> bool:
        """Whether a model is being loaded or unloaded by us, or is about to be."""
        return name in self._busy

    def is_coming_back(self, name: str) -> bool:
        """Whether a model is out of service only to be loaded again."""
        return self.is_active and name in self._taken_out

    def why_failed(self, name: str) -> str:
        """Say why the last load failed; empty when it did not."""
        failure = self._failures.get(name)
        return failure.reason if failure else ""

    def incomplete(self, name: str) -> Mapping[int, str]:
        """Return the versions that Triton was not told to load, and why."""
        return self._incomplete.get(name, {})

    def is_deleted(self, entry: IndexEntry) -> bool:
        """Whether Triton only remembers a version: it is out of service, and its folder is gone."""
        folder = self._folders.get(entry.name)
        if folder is None or entry.version is None or entry.state != UNAVAILABLE:
            return False
        return entry.version not in folder.versions

    def is_no_model(self, entry: IndexEntry) -> bool:
        """Whether Triton takes a folder for a model that is none."""
        return not entry.state and self._folders.has_none(entry.name)

    async def look(self) -> None:
        """Find out what the repository holds; call it before Triton's index is read."""
        self._just_ended.clear()
        await self._folders.look()

    def consider(self, index: Sequence[IndexEntry], parts: Mapping[str, Sequence[str]]) -> None:
        """Start to load what is in the index but not in service, or has changed, and nobody has unloaded.

        parts: the models that a model calls, each of its versions the same version of them.
        """
        if not self.is_active:
            return
        left_alone = self._busy | self._just_ended
        models: defaultdict[str, list[IndexEntry]] = defaultdict(list)
        for entry in index:
            models[entry.name].append(entry)
            if entry.state == READY and entry.name not in left_alone:
                self._note_ready(entry.name)
        due = {name for name, entries in models.items() if self._is_due(name, entries)}
        for main, its_parts in parts.items():
            group = {main, *its_parts}
            if not group & left_alone:
                names = self._in_order(main, its_parts, due, models[main])
                if names:
                    self._begin(names, self._load_all(names), "load")
            due -= group
        for name in due - left_alone:
            self._begin((name,), self._load_all((name,)), "load")
        for name in self._loaded.keys() - left_alone:
            if self._folders.is_gone(name):
                self._begin((name,), self._unload(name), "unload")

    def revive(self, death: Death) -> None:
        """Bring a model back whose process a request found dead; Triton itself goes on calling the model READY.

        A process that Triton calls dead may be alive, and only have had no share of the processor for a second or two.
        When it goes on, Triton 2.51 is ended by SIGSEGV or takes its late answer for that to the next request. So it is
        ended at once. That needs somebody to hear of it: when the only request has been cancelled meanwhile, Triton
        ends, and is restarted.
        """
        # Those that waited behind it hear of the death a second later each: by then the model may be back.
        name = death.model
        if name in self._taken_out or death.asked_at < max(self._born_at, self._not_dead_before.get(name, 0.0)):
            return
        self._end_processes(name, death.process)
        if not self.is_active:
            if name not in self._left_dead:
                self._left_dead.add(name)
                log.error(
                    "a process of model '%s' died, and models are not ours to load: Triton fails all requests to it "
                    "until somebody unloads and loads it",
                    name,
                )
        elif name in self._busy:
            self._deaths[name] = death
        else:
            self._begin((name,), self._revive(death), "revive")

    def forget(self) -> None:
        """Start anew: Triton was away, and what comes back may know nothing, or have become less strict."""
        self._failures = {name: replace(failure, retry_at=0.0) for name, failure in self._failures.items()}
        self._lives += 1
        self._born_at = time.monotonic()
        self._tried.clear()
        self._left_dead.clear()
        self._deaths.clear()
        self._is_refused = False

    async def close(self) -> None:
        """Stop waiting for loads; Triton finishes them by itself."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._folders.close()

    def _note_ready(self, name: str) -> None:
        """Take note of a model in service, which may have been loaded by somebody else."""
        self._taken_out.discard(name)
        if folder := self._folders.get(name):
            self._loaded.setdefault(name, folder)

    def _is_due(self, name: str, entries: Sequence[IndexEntry]) -> bool:
        folder, loaded, failure = self._folders.get(name), self._loaded.get(name), self._failures.get(name)
        if self._folders.has_none(name):
            return False
        if self._was_unloaded_by_others(name, entries, folder):
            return False
        if folder and folder != loaded:
            if not self._folders.is_settled(name):
                return False  # somebody is copying it
            if loaded:
                return True
        if failure:
            return time.monotonic() >= failure.retry_at
        # Triton gives a state to what it was ever asked to load, as long as the files could be read.
        return name in self._taken_out or not any(entry.state for entry in entries)

    def _was_unloaded_by_others(self, name: str, entries: Iterable[IndexEntry], folder: ModelFolder | None) -> bool:
        """Triton remembers unloaded versions that are no longer there, and unloads the others when one fails."""
        failure = self._failures.get(name)
        if name in self._taken_out or (failure and not failure.some_serve):
            return False
        present = [entry for entry in entries if folder is None or entry.version in folder.versions]
        in_service = any(entry.state in (READY, LOADING) for entry in present)
        return not in_service and any(entry.state == UNLOADING or entry.reason == "unloaded" for entry in present)

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
        if any(self._holds_back(part, serves=bool(ready)) for part in parts if part not in due):
            return due_parts
        return [*due_parts, main]

    def _holds_back(self, part: str, *, serves: bool) -> bool:
        """Whether a model has to wait for its part to be mended; serves: whether the model has versions in service."""
        failure = self._failures.get(part)
        return failure is not None and (serves or not failure.some_serve)

    def _begin(self, names: Sequence[str], work: Coroutine[Any, Any, None], what: str) -> None:
        """Work on models in a task that has them for itself until it ends."""
        self._busy.update(names)
        task = asyncio.create_task(work, name=f"{what} {', '.join(names)}")
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._end(task, names))

    def _end(self, task: asyncio.Task[None], names: Iterable[str]) -> None:
        self._tasks.discard(task)
        self._busy.difference_update(names)
        self._just_ended.update(names)
        if not task.cancelled() and (error := task.exception()):
            log.error("'%s' failed for a reason that nobody thought of", task.get_name(), exc_info=error)
            retry_at = time.monotonic() + LAST_RETRY_SECONDS
            failure = _Failure("the service failed on it; its log says why", LAST_RETRY_SECONDS, retry_at, True)
            self._failures.update(dict.fromkeys(names, failure))
        self._on_change()
        for death in [self._deaths.pop(name) for name in names if name in self._deaths]:
            if not task.cancelled():
                self.revive(death)

    async def _load_all(self, names: Sequence[str]) -> None:
        """Load models, one after the other."""
        for name in names:
            await self._load(name)
            if name in self._failures:
                break
            if name != names[-1]:
                await self._drained(name)

    async def _load(self, name: str) -> None:
        log.info("loading model %s", name)
        folder, last, life = self._folders.get(name), self._failures.get(name), self._lives
        if folder:
            last = last if self._loaded.get(name) == folder else None
            self._loaded[name] = folder
        try:
            await self._triton.load(name, await self._config(name, folder))
            self._failures.pop(name, None)
            self._taken_out.discard(name)
        except ControlRefusedError as error:
            self._refuse(error)
        except PolywandError as error:
            some_serve = await self._serve_sound_ones(name, folder)
            if some_serve:
                self._taken_out.discard(name)
            pause = min(2 * last.pause_seconds, LAST_RETRY_SECONDS) if last else FIRST_RETRY_SECONDS
            self._failures[name] = _Failure(str(error), pause, time.monotonic() + pause, some_serve)
            log.error("model %s did not load, next try in %g s: %s", name, pause, error)
        finally:
            if life == self._lives:  # else it was asked of a Triton that has gone
                self._tried.add(name)
            self._loads[name] += 1
            self._on_change()

    async def _config(self, name: str, folder: ModelFolder | None, broken: Collection[int] = ()) -> str:
        """Return what Triton is to load a model with: its configuration, but for versions that are broken.

        Empty where that cannot be told: then it loads what it finds, and says what is wrong. Left to itself it takes
        any folder that begins with a number for a version, "2~" for 2.

        Raises:
            ModelFailedError: no version could be loaded.
        """
        if folder is None:
            return ""
        try:
            config = await self._folders.config(name)
            required = required_file(config)
            incomplete = folder.without(required) if required else set()
            self._incomplete[name] = dict.fromkeys(incomplete, f"its {required} is missing")
            versions = serving(config, folder.versions - set(broken) - incomplete)
            if versions:
                return narrowed(config, versions)
        except (OSError, ValueError):
            return ""
        if incomplete:
            raise ModelFailedError(f"model '{name}': none of its versions that could serve has a {required}")
        return ""

    async def _serve_sound_ones(self, name: str, folder: ModelFolder | None) -> bool:
        """After a load that failed: load the other versions, if none is in service; tell whether one is then."""
        broken: set[int] = set()
        try:
            while True:
                entries = [entry for entry in await self._triton.repository_index() if entry.name == name]
                if any(entry.state == READY for entry in entries):
                    return True
                failed = {entry.version for entry in entries if entry.version is not None and _failed(entry)}
                if folder is None or failed <= broken:
                    return False
                broken |= failed
                config = await self._config(name, folder, broken)
                if not config:
                    return False
                log.info("loading model %s without version %s", name, ", ".join(map(str, sorted(broken))))
                with suppress(ModelFailedError):
                    await self._triton.load(name, config)
        except PolywandError:
            return False

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
        if await self._take_out(name):
            self._loaded.pop(name, None)
            self._failures.pop(name, None)

    async def _revive(self, death: Death) -> None:
        name = death.model
        if not await self._is_dead(death):
            log.info("model '%s' has not failed since it was loaded: leaving it alone", name)
            return
        log.error("a process of model '%s' died: loading it again", name)
        # Loading alone does nothing while the files are the same.
        if await self._take_out(name):
            # What is sent from now on cannot meet the dead one.
            self._not_dead_before[name] = time.monotonic()
            await self._load(name)
            if name not in self._failures:
                log.warning("model '%s' is back", name)

    async def _is_dead(self, death: Death) -> bool:
        """Whether the model that is loaded now is the one that a request found dead.

        Another Triton may have come meanwhile, or another service may have loaded the model again: then no request to
        it has failed. Where requests that are sent later find it dead all the same, they are believed.
        """
        name = death.model
        try:
            has_failed = await self._triton.has_failed_requests(name)
        except PolywandError:  # it is not loaded, or Triton is away: what is to be loaded then is found as ever
            return False
        if has_failed or death.asked_at > self._found_healthy.get(name, float("inf")):
            self._found_healthy.pop(name, None)
            return True
        self._found_healthy[name] = time.monotonic()
        return False

    async def _take_out(self, name: str) -> bool:
        """Unload a model, to be loaded again; tell whether it is out of service."""
        try:
            await self._triton.unload(name)
        except ControlRefusedError as error:
            self._refuse(error)
        except PolywandError as error:
            log.error("model %s was not unloaded: %s", name, error)
            await asyncio.sleep(FIRST_RETRY_SECONDS)  # before anything else is tried
        else:
            self._taken_out.add(name)
            return True
        return False

    def _refuse(self, error: ControlRefusedError) -> None:
        if not self._is_refused:
            self._is_refused = True
            log.error("Triton does not let us load and unload models, so they stay as they are (%s)", error)


def _failed(entry: IndexEntry) -> bool:
    return entry.state == UNAVAILABLE and entry.reason != "unloaded"
