"""The model repository as its folder shows it: which versions every model has, and whether its files have changed."""

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
# A file system that is slower than that is not waited for: the next look sees what this one found.
PATIENCE_SECONDS = 1.0
SETTLING_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model's folder at one moment; two are equal when nothing has changed between them.

    versions: those that Triton takes for such. files: path, size and time of change of all that makes the model.
    """

    versions: frozenset[int]
    files: frozenset[tuple[str, int, int]]

    def without(self, name: str) -> set[int]:
        """Return the versions that have no file of this name."""
        return {
            version
            for version in self.versions
            if not any(path.endswith(f"/{version}/{name}") for path, *_ in self.files)
        }


@dataclass(frozen=True, slots=True)
class Sight:
    """What one look at a repository has found.

    identity: device and inode of its folder. models: by name. partial: names of those that could not be read, or not
    wholly, or that have no version; what a model was before, it still is then. unreadable: of those that could not.
    """

    identity: tuple[int, int]
    models: Mapping[str, ModelFolder]
    partial: frozenset[str]
    unreadable: frozenset[str]


class ModelFolders:
    """Looks at a repository's folder, without ever holding up the event loop; without a repository it knows nothing.

    A repository that cannot be read for a moment, or one that has become another folder without any model (a network
    folder that is not mounted), tells nothing, and no model is gone.
    """

    def __init__(self, repository: Path | None, settling_seconds: float | None = None) -> None:
        self._repository = repository
        self._settling_seconds = settling_seconds if settling_seconds is not None else SETTLING_SECONDS
        self._looking: asyncio.Task[Sight] | None = None
        self._present: Mapping[str, ModelFolder] | None = None
        self._last: Mapping[str, ModelFolder] | None = None  # of those that succeeded, where the newest has not
        self._identity: tuple[int, int] | None = None  # of the folder that `_last` was found in
        self._unreadable: frozenset[str] = frozenset()
        self._since: dict[str, float] = {}  # when a model, also one that is gone, became as it is
        self._complaint = ""

    def has_none(self, name: str) -> bool:
        """Whether the last look has found out that there is no model of this name."""
        return self._present is not None and name not in self._present and name not in self._unreadable

    def get(self, name: str) -> ModelFolder | None:
        """Return a model as the last look has seen it; None if it is not there, or nobody can tell."""
        return self._present.get(name) if self._present else None

    def is_settled(self, name: str) -> bool:
        """Whether a model has been as it is for a while, so that nobody is copying it just now."""
        return time.monotonic() - self._since.get(name, 0.0) >= self._settling_seconds

    def is_gone(self, name: str) -> bool:
        """Whether a model is certainly not there, and has not been for a while."""
        return self.has_none(name) and self.is_settled(name)

    async def config(self, name: str) -> str:
        """Return the text of a model's config.pbtxt.

        Raises:
            OSError: there is none, or it cannot be read.
        """
        if self._repository is None:
            raise FileNotFoundError("the repository is elsewhere")
        return await asyncio.to_thread((self._repository / name / CONFIG_FILE).read_text)

    async def look(self) -> None:
        """Find out how the models are now, or were a moment ago."""
        if self._repository is None:
            return
        if self._looking is None:
            self._looking = asyncio.create_task(
                asyncio.to_thread(read_folders, self._repository), name="look at the model repository"
            )
        await asyncio.wait((self._looking,), timeout=PATIENCE_SECONDS)
        if self._looking is not None and self._looking.done():
            looked, self._looking = self._looking, None
            self._take(looked)

    async def close(self) -> None:
        """Wait no longer."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    def _take(self, looked: asyncio.Task[Sight]) -> None:
        try:
            sight = looked.result()
        except OSError as error:
            self._complain(f"the model repository cannot be read, so changes in it go unnoticed: {error}")
            self._present = None
            return
        if self._last and not sight.models and sight.identity != self._identity:
            self._complain("the model repository is another folder now, without any model (is it not mounted?)")
            self._present = None
            return
        before = self._last
        kept = _still_there(sight, before or {})
        found = {**sight.models, **kept}
        self._complain(_complaint_about(kept.keys() | sight.unreadable))
        self._last, self._identity, self._unreadable = found, sight.identity, sight.unreadable
        # What is there at the first look is taken to have been there for long.
        if before is not None:
            for name in found.keys() | before.keys():
                if found.get(name) != before.get(name):
                    self._since[name] = time.monotonic()
        self._present = found

    def _complain(self, complaint: str) -> None:
        if complaint and complaint != self._complaint:
            log.error(complaint)
        self._complaint = complaint


def _still_there(sight: Sight, before: Mapping[str, ModelFolder]) -> dict[str, ModelFolder]:
    """Return the models as they were before whose folders cannot be read now, or have no version any more."""
    return {
        name: before[name]
        for name in sight.partial
        if name in before and (before[name].versions or name not in sight.models)
    }


def _complaint_about(names: Collection[str]) -> str:
    if not names:
        return ""
    return f"models are empty or cannot be read, so changes in them go unnoticed: {', '.join(sorted(names))}"


def read_folders(repository: Path) -> Sight:
    """Read the folders of all models, by name.

    A folder is a model's that has a configuration or a version; any other beside them is somebody's own.

    Raises:
        OSError: the repository itself cannot be read.
    """
    status = repository.stat()
    with os.scandir(repository) as entries:
        candidates = [entry for entry in entries if is_model_name(entry.name)]
    models, partial, unreadable = {}, set(), set()
    for entry in candidates:
        try:
            model, is_whole = _model(entry)
        except FileNotFoundError:  # it went while we looked
            continue
        except OSError:
            partial.add(entry.name)
            unreadable.add(entry.name)
            continue
        if not is_whole or (model and not model.versions):
            partial.add(entry.name)
        if model and (model.versions or model.files):
            models[entry.name] = model
    return Sight((status.st_dev, status.st_ino), models, frozenset(partial), frozenset(unreadable))


def is_model_name(name: str) -> bool:
    """Whether a folder of this name may be a model's: not what is hidden, a cache of Python's or an editor's copy."""
    return not name.startswith(".") and name not in ("__pycache__", "lost+found") and not name.endswith("~")


def is_version(name: str) -> bool:
    """Whether Triton takes a folder of this name for a version: a number without leading zeros."""
    return name.isascii() and name.isdecimal() and not name.startswith("0")


def _model(entry: os.DirEntry[str]) -> tuple[ModelFolder | None, bool]:
    """Read one model's folder; tell also whether that was all of it: links may lead to what is not mounted now.

    Without configuration and versions it has no files either. None: it is no folder.
    """
    if not entry.is_dir():
        return None, not _leads_nowhere(entry)
    inside = _visible(entry.path)
    config = [file for file in inside if file.name == CONFIG_FILE]
    numbers = [folder for folder in inside if is_version(folder.name)]
    versions = [folder for folder in numbers if folder.is_dir()]
    files = [*config, *(file for version in versions for file in _below(version.path))]
    found = ModelFolder(frozenset(int(version.name) for version in versions), frozenset(_states(files)))
    return found, not any(map(_leads_nowhere, numbers))


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _below(folder: str) -> Iterator[os.DirEntry[str]]:
    with suppress(FileNotFoundError):  # it went while we looked
        for entry in _visible(folder):
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path)
            else:
                yield entry


def _states(files: list[os.DirEntry[str]]) -> Iterator[tuple[str, int, int]]:
    for entry in files:
        try:
            status = entry.stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):  # it went while we looked, or is a link to nothing
                raise
        else:
            yield entry.path, status.st_size, status.st_mtime_ns


def _visible(folder: str) -> list[os.DirEntry[str]]:
    """List a folder, without what is hidden, and without the caches that Python keeps beside a model's code."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".") and entry.name != "__pycache__"]
