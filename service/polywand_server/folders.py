"""The model repository as its folder shows it: which versions every model has, and whether its files have changed."""

import asyncio
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
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


class ModelFolders:
    """Looks at a repository's folder, without ever holding up the event loop; without a repository it knows nothing."""

    def __init__(self, repository: Path | None) -> None:
        self._repository = repository
        self._looking: asyncio.Task[Mapping[str, ModelFolder]] | None = None
        self._present: Mapping[str, ModelFolder] | None = None
        self._last: Mapping[str, ModelFolder] | None = None  # of those that succeeded, where the newest has not
        self._since: dict[str, float] = {}  # when a model, also one that is gone, became as it is
        self._complaint = ""

    def get(self, name: str) -> ModelFolder | None:
        """Return a model as the last look has seen it; None if it is not there, or nobody can tell."""
        return self._present.get(name) if self._present else None

    def is_settled(self, name: str) -> bool:
        """Whether a model has been as it is for a while, so that nobody is copying it just now."""
        return time.monotonic() - self._since.get(name, 0.0) >= SETTLING_SECONDS

    def is_gone(self, name: str) -> bool:
        """Whether a model is certainly not there, and has not been for a while."""
        return self._present is not None and name not in self._present and self.is_settled(name)

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

    def _take(self, looked: asyncio.Task[Mapping[str, ModelFolder]]) -> None:
        try:
            found = looked.result()
        except OSError as error:
            self._complain(f"the model repository cannot be read, so changes in it go unnoticed: {error}")
            self._present = None
            return
        self._complain("")
        before, self._last = self._last, found
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


def read_folders(repository: Path) -> dict[str, ModelFolder]:
    """Read the folders of all models, by name; hidden ones are being prepared by somebody.

    Raises:
        OSError: the repository itself cannot be read.
    """
    with os.scandir(repository) as entries:
        models = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return {entry.name: _model(entry.path) for entry in models}


def _model(folder: str) -> ModelFolder:
    inside = _visible(folder)
    config = [entry for entry in inside if entry.name == CONFIG_FILE]
    versions = [entry for entry in inside if is_version(entry.name) and entry.is_dir()]
    files = chain(config, *(_below(version.path) for version in versions))
    return ModelFolder(frozenset(int(version.name) for version in versions), frozenset(filter(None, map(_file, files))))


def is_version(name: str) -> bool:
    """Whether Triton takes a folder of this name for a version: a number without leading zeros."""
    return name.isascii() and name.isdecimal() and not name.startswith("0")


def _below(folder: str) -> Iterator[os.DirEntry[str]]:
    for entry in _visible(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path)
        else:
            yield entry


def _file(entry: os.DirEntry[str]) -> tuple[str, int, int] | None:
    with suppress(OSError):  # it went while we looked
        status = entry.stat()
        return entry.path, status.st_size, status.st_mtime_ns
    return None


def _visible(folder: str) -> list[os.DirEntry[str]]:
    """List a folder, without what is hidden, and without the caches that Python keeps beside a model's code."""
    with suppress(OSError), os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".") and entry.name != "__pycache__"]
    return []
