"""What happened to each model so far (loads, failures, unloads), and which loads are due because of it."""

import time
from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from polywand_server.tools.folders import ModelFolder, ModelFolders
from polywand_server.triton.client import IndexEntry, ModelState

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 2.0, 60.0  # pauses between failed loads; each is twice the one before


@dataclass(frozen=True, slots=True)
class _Failure:
    """A failed load. some_serve: whether some versions of the model are in service all the same."""

    reason: str
    pause_seconds: float
    retry_at: float
    some_serve: bool


class LoadHistory:
    """Records what is done to models and decides what is due.

    A model is due when it was never loaded, when its files have changed and are no longer being written, when it was
    unloaded to be loaded again, or when its last load failed and the pause is over. A model that was unloaded from
    elsewhere is not due.
    """

    def __init__(self, folders: ModelFolders) -> None:
        self._folders = folders
        self._failures: dict[str, _Failure] = {}
        self._loaded: dict[str, ModelFolder] = {}  # as each was when its last load began
        self._reloading: set[str] = set()  # unloaded by us, to be loaded again

    @property
    def loaded(self) -> AbstractSet[str]:
        """Models that were loaded from their folders, or found in service."""
        return self._loaded.keys()

    def has_failed(self, name: str) -> bool:
        """Whether the last load failed."""
        return name in self._failures

    def failure_reason(self, name: str) -> str:
        """Return why the last load failed; empty when it did not."""
        failure = self._failures.get(name)
        return failure.reason if failure else ""

    def is_reloading(self, name: str) -> bool:
        """Whether a model was unloaded only to be loaded again."""
        return name in self._reloading

    def record_in_service(self, name: str) -> None:
        """Record that a model is in service, from wherever it was loaded."""
        self._reloading.discard(name)
        if folder := self._folders.get(name):
            self._loaded.setdefault(name, folder)

    def record_start(self, name: str, folder: ModelFolder | None) -> None:
        """Record that a load begins; after a change of the files, pauses start from the shortest again."""
        if folder is None:
            return
        failure = self._failures.get(name)
        if failure and self._loaded.get(name) != folder:
            self._failures[name] = replace(failure, pause_seconds=0.0)
        self._loaded[name] = folder

    def record_success(self, name: str) -> None:
        """Record that a model was loaded."""
        self._failures.pop(name, None)
        self._reloading.discard(name)

    def record_failure(self, name: str, reason: str, *, some_serve: bool) -> float:
        """Record that a load failed; return the seconds until the next one.

        some_serve: whether some versions of the model are in service all the same.
        """
        failure = self._failures.get(name)
        pause = min(max(2 * failure.pause_seconds if failure else 0.0, FIRST_RETRY_SECONDS), LAST_RETRY_SECONDS)
        self._failures[name] = _Failure(reason, pause, time.monotonic() + pause, some_serve)
        if some_serve:
            self._reloading.discard(name)
        return pause

    def record_internal_error(self, names: Iterable[str]) -> None:
        """Record that the service itself failed on models: they are tried again after the longest pause."""
        retry_at = time.monotonic() + LAST_RETRY_SECONDS
        failure = _Failure("internal error; see the service's log", LAST_RETRY_SECONDS, retry_at, some_serve=True)
        self._failures.update(dict.fromkeys(names, failure))

    def record_unload(self, name: str) -> None:
        """Record that a model was unloaded, to be loaded again."""
        self._reloading.add(name)

    def forget(self, name: str) -> None:
        """Forget a model that was unloaded because its folder was deleted; if the folder comes back, it is due."""
        self._loaded.pop(name, None)
        self._failures.pop(name, None)

    def retry_now(self) -> None:
        """End the pauses of all failed models."""
        self._failures = {name: replace(failure, retry_at=0.0) for name, failure in self._failures.items()}

    def is_due(self, name: str, entries: Sequence[IndexEntry]) -> bool:
        """Whether a model has to be loaded now; entries: its versions in Triton's index."""
        folder, loaded, failure = self._folders.get(name), self._loaded.get(name), self._failures.get(name)
        if self._folders.is_missing(name) or self._was_unloaded_elsewhere(name, entries, folder):
            return False
        if folder and folder != loaded:
            if not self._folders.is_settled(name):
                return False  # its files are still being written
            if loaded:
                return True
        if failure:
            return time.monotonic() >= failure.retry_at
        # Triton gives a state to every model that it was asked to load, if it could read the files.
        return name in self._reloading or not any(entry.state for entry in entries)

    def order(
        self, main: str, parts: Sequence[str], due: Collection[str], entries: Iterable[IndexEntry]
    ) -> Sequence[str]:
        """Order the loads that are due of a model and its parts: a new version's parts come before it, and an old
        version's parts go after it.

        entries: of the model, in Triton's index.
        """
        due_parts = [part for part in parts if part in due]
        if main not in due:
            return due_parts
        folder, ready = self._folders.get(main), [entry.version or 0 for entry in entries if entry.is_ready]
        if folder and max(folder.versions, default=0) < max(ready, default=0):
            return [main, *due_parts]
        if any(self._blocks(part, main_serves=bool(ready)) for part in parts if part not in due):
            return due_parts
        return [*due_parts, main]

    def _blocks(self, part: str, *, main_serves: bool) -> bool:
        """Whether a model has to wait for a part that failed; main_serves: whether it has versions in service."""
        failure = self._failures.get(part)
        return failure is not None and (main_serves or not failure.some_serve)

    def _was_unloaded_elsewhere(self, name: str, entries: Iterable[IndexEntry], folder: ModelFolder | None) -> bool:
        """Triton also keeps entries of versions whose folder was deleted, and unloads all versions if one fails."""
        failure = self._failures.get(name)
        if name in self._reloading or (failure and not failure.some_serve):
            return False
        present = [entry for entry in entries if folder is None or entry.version in folder.versions]
        in_service = any(entry.state in (ModelState.READY, ModelState.LOADING) for entry in present)
        unloaded = any(entry.state == ModelState.UNLOADING or entry.was_unloaded for entry in present)
        return unloaded and not in_service
