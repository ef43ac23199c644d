"""The model repository's folders: which versions every model has, and whether its files have changed."""

import asyncio
import errno
import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

CONFIG_FILE = "config.pbtxt"
# What the contract's type for versions can hold.
MAX_VERSION = 2**32 - 1
# A scan that takes longer goes on in its thread, and the next call takes its result.
SCAN_TIMEOUT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model's folder at one moment; two are equal when nothing has changed between them.

    versions: the subfolders that Triton takes for versions. files: path, size and modification time (ns) of the
    configuration and of all files of the versions.
    """

    versions: frozenset[int]
    files: frozenset[tuple[str, int, int]]

    def versions_without(self, file: str) -> set[int]:
        """Return the versions that have no file of this name."""
        return {
            version
            for version in self.versions
            if not any(path.endswith(f"/{version}/{file}") for path, *_ in self.files)
        }


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found in a repository.

    identity: device and inode of the repository's folder. models: by name.
    partial: names of models that could not be read, or not completely, or that have no version; such a model counts as
    unchanged. unreadable: those of them that could not be read at all.
    too_high: the folders ("MODEL/NUMBER") whose number is higher than any version's.
    """

    identity: tuple[int, int]
    models: Mapping[str, ModelFolder]
    partial: frozenset[str]
    unreadable: frozenset[str]
    too_high: frozenset[str]


class ModelFolders:
    """Scans a repository's folder in a thread. Without a repository nothing is known of any model.

    A repository that cannot be read for a moment, or whose path now leads to another folder without any model (a
    network folder that is not mounted), tells nothing: then no model counts as deleted.

    settling_seconds: time for which files must not have changed before they count as completely written.
    """

    def __init__(self, repository: Path | None, settling_seconds: float) -> None:
        self._repository = repository
        self._settling_seconds = settling_seconds
        self._scan: asyncio.Task[Scan] | None = None
        self._current: Mapping[str, ModelFolder] | None = None  # None while nothing is known
        self._last: Mapping[str, ModelFolder] | None = None  # of the last scan that succeeded
        self._identity: tuple[int, int] | None = None  # of the folder of that scan
        self._unreadable: frozenset[str] = frozenset()
        self._changed_at: dict[str, float] = {}  # when each model last changed or was deleted
        self._problem = ""
        self._too_high: frozenset[str] = frozenset()

    def is_missing(self, name: str) -> bool:
        """Whether the last scan has found that there is no model of this name."""
        return self._current is not None and name not in self._current and name not in self._unreadable

    def get(self, name: str) -> ModelFolder | None:
        """Return a model as the last scan found it; None if it is not there, or nothing is known."""
        return self._current.get(name) if self._current else None

    def is_settled(self, name: str) -> bool:
        """Whether a model has not changed for a while, so that its files are completely written."""
        return time.monotonic() - self._changed_at.get(name, 0.0) >= self._settling_seconds

    def is_deleted(self, name: str) -> bool:
        """Whether a model is certainly not there, and has not been for a while."""
        return self.is_missing(name) and self.is_settled(name)

    async def config(self, name: str) -> str:
        """Return the text of a model's config.pbtxt.

        Raises:
            OSError: there is none, or it cannot be read.
        """
        if self._repository is None:
            raise FileNotFoundError("the repository is elsewhere")
        return await asyncio.to_thread((self._repository / name / CONFIG_FILE).read_text)

    async def scan(self) -> None:
        """Scan the repository; where that takes long, return before it ends, and take the result next time."""
        if self._repository is None:
            return
        if self._scan is None:
            work = asyncio.to_thread(scan_repository, self._repository)
            self._scan = asyncio.create_task(work, name="scan the model repository")
        await asyncio.wait((self._scan,), timeout=SCAN_TIMEOUT_SECONDS)
        if self._scan is not None and self._scan.done():
            done, self._scan = self._scan, None
            self._update(done)

    async def close(self) -> None:
        """Cancel the running scan."""
        if self._scan is not None:
            self._scan.cancel()
            await asyncio.gather(self._scan, return_exceptions=True)

    def _update(self, done: asyncio.Task[Scan]) -> None:
        try:
            scan = done.result()
        except OSError as error:
            self._log_problem(f"the model repository cannot be read, so changes in it go unnoticed: {error}")
            self._current = None
            return
        if self._last and not scan.models and scan.identity != self._identity:
            self._log_problem("the model repository is another folder now, without any model (is it not mounted?)")
            self._current = None
            return
        for folder in sorted(scan.too_high - self._too_high):
            log.warning("folder %s is no version: the highest possible one is %d", folder, MAX_VERSION)
        self._too_high |= scan.too_high
        previous = self._last
        kept = _unchanged(scan, previous or {})
        found = {**scan.models, **kept}
        self._log_problem(_problem_with(kept.keys() | scan.unreadable))
        self._last, self._identity, self._unreadable = found, scan.identity, scan.unreadable
        # Models of the first scan count as settled.
        if previous is not None:
            for name in found.keys() | previous.keys():
                if found.get(name) != previous.get(name):
                    self._changed_at[name] = time.monotonic()
        self._current = found

    def _log_problem(self, problem: str) -> None:
        """Log a problem unless it is the same as after the last scan; empty: there is none."""
        if problem and problem != self._problem:
            log.error(problem)
        self._problem = problem


def _unchanged(scan: Scan, previous: Mapping[str, ModelFolder]) -> dict[str, ModelFolder]:
    """Return, as they were before, the models whose folders cannot be read now or have no version any more."""
    return {
        name: previous[name]
        for name in scan.partial
        if name in previous and (previous[name].versions or name not in scan.models)
    }


def _problem_with(names: Collection[str]) -> str:
    if not names:
        return ""
    return f"models are empty or cannot be read, so changes in them go unnoticed: {', '.join(sorted(names))}"


def scan_repository(repository: Path) -> Scan:
    """Read the folders of all models.

    A folder with a configuration or a version is a model's; others are ignored.

    Raises:
        OSError: the repository itself cannot be read.
    """
    status = repository.stat()
    with os.scandir(repository) as entries:
        candidates = [entry for entry in entries if is_model_name(entry.name)]
    models, partial, unreadable, too_high = {}, set(), set(), set[str]()
    for entry in candidates:
        try:
            model, is_complete, beyond = _read_folder(entry)
        except FileNotFoundError:  # deleted during the scan
            continue
        except OSError:
            partial.add(entry.name)
            unreadable.add(entry.name)
            continue
        too_high.update(f"{entry.name}/{number}" for number in beyond)
        if not is_complete or (model and not model.versions):
            partial.add(entry.name)
        if model and (model.versions or model.files):
            models[entry.name] = model
    return Scan((status.st_dev, status.st_ino), models, frozenset(partial), frozenset(unreadable), frozenset(too_high))


def is_model_name(name: str) -> bool:
    """Whether a folder of this name may be a model's: not a hidden one, a Python cache or an editor's backup."""
    return not name.startswith(".") and name not in ("__pycache__", "lost+found") and not name.endswith("~")


def is_number(name: str) -> bool:
    """Whether Triton takes a folder of this name for a version: a number without leading zeros."""
    return name.isascii() and name.isdecimal() and not name.startswith("0")


def _read_folder(entry: os.DirEntry[str]) -> tuple[ModelFolder | None, bool, list[str]]:
    """Read a model's folder.

    Return it (None: it is no folder); whether that is all of it, since links may lead to a folder that is not mounted
    now; and the names of folders that are too high for a version. Without a configuration and versions it has no files
    either.
    """
    if not entry.is_dir():
        return None, not _is_broken_link(entry), []
    inside = _list_visible(entry.path)
    config = [file for file in inside if file.name == CONFIG_FILE]
    numbers = [folder for folder in inside if is_number(folder.name) and int(folder.name) <= MAX_VERSION]
    beyond = [folder.name for folder in inside if is_number(folder.name) and int(folder.name) > MAX_VERSION]
    versions = [folder for folder in numbers if folder.is_dir()]
    files = [*config, *(file for version in versions for file in _files_below(version.path))]
    found = ModelFolder(frozenset(int(version.name) for version in versions), frozenset(_file_states(files)))
    return found, not any(map(_is_broken_link, numbers)), beyond


def _is_broken_link(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _files_below(folder: str) -> Iterator[os.DirEntry[str]]:
    with suppress(FileNotFoundError):  # deleted during the scan
        for entry in _list_visible(folder):
            if entry.is_dir(follow_symlinks=False):
                yield from _files_below(entry.path)
            else:
                yield entry


def _file_states(files: list[os.DirEntry[str]]) -> Iterator[tuple[str, int, int]]:
    for entry in files:
        try:
            status = entry.stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):  # deleted during the scan, or a broken link
                raise
        else:
            yield entry.path, status.st_size, status.st_mtime_ns


def _list_visible(folder: str) -> list[os.DirEntry[str]]:
    """List a folder without hidden files and without Python's caches."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".") and entry.name != "__pycache__"]
