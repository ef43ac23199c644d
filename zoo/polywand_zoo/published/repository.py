"""Adds versions to a model repository, each whole and at once: a running Triton never sees half of one."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

CONFIG_FILE = "config.pbtxt"


class RepositoryError(Exception):
    """A version could not be added; the repository is as it was."""


def next_version(repository: Path, name: str, wanted: int | None) -> int:
    """Return the wanted version if it is free, or the first one above all that a model has.

    Raises:
        RepositoryError
    """
    folder = repository / name
    versions = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    if folder.exists() and not (folder / CONFIG_FILE).is_file():
        raise RepositoryError(f"{folder} exists and is no model: it has no {CONFIG_FILE}")
    if wanted is None:
        return max(versions, default=0) + 1
    if wanted in versions:
        raise RepositoryError(f"{folder} has a version {wanted} already")
    return wanted


@dataclass(frozen=True, slots=True)
class Addition:
    """A model's new version.

    files: of the version, by name. config: of the model, if it is new; that of one which is there stays as it is.
    """

    name: str
    files: Mapping[str, bytes]
    config: str

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return sum(map(len, self.files.values())) + len(self.config)


def add_version(repository: Path, version: int, *additions: Addition) -> Path:
    """Add a version of a model, with those of its parts in front of it; returns the version's folder.

    All are added or none.

    Raises:
        RepositoryError
    """
    target = repository / additions[-1].name / str(version)
    needed = sum(addition.size for addition in additions)
    free = shutil.disk_usage(_existing(repository)).free
    if free < needed:
        raise RepositoryError(f"{target} needs {_megabytes(needed)} of disk space, and {_megabytes(free)} are free")
    try:
        with ExitStack() as stack:
            stack.enter_context(_made(repository))
            _move([_staged(stack, repository, addition, str(version)) for addition in additions])
    except OSError as error:
        raise RepositoryError(f"{target} could not be written: {error.strerror}; nothing was left behind") from error
    return target


def _staged(stack: ExitStack, repository: Path, addition: Addition, version: str) -> tuple[Path, Path]:
    """Prepare a version, or a model if it is new, in a hidden folder; returns its path there, and where it belongs."""
    folder = repository / addition.name
    if folder.exists():
        staging = stack.enter_context(_staging(folder, f".{version}-"))
        _write(staging / version, addition.files)
        return staging / version, folder / version
    staging = stack.enter_context(_staging(_beside(repository), f".{addition.name}-"))
    _write(staging / addition.name / version, addition.files)
    _write(staging / addition.name, {CONFIG_FILE: addition.config.encode("ascii")})
    return staging / addition.name, folder


def _move(moves: Sequence[tuple[Path, Path]]) -> None:
    """Move all or none."""
    with ExitStack() as undo:
        for source, target in moves:
            source.rename(target)
            undo.callback(target.rename, source)
        undo.pop_all()


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with (folder / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # before the rename: after a power cut the version is whole or not there


@contextmanager
def _staging(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a hidden folder that is gone afterwards, with all that was not moved out of it."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as folder:
        yield Path(folder)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; if the block fails, remove those that were made."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):  # another process has written into it meanwhile
                path.rmdir()
        raise


def _beside(repository: Path) -> Path:
    """Choose where to prepare a new model: beside the repository, since Triton takes every folder in it for a model.

    Where that is another file system, or not ours to write to, only the repository itself is left.
    """
    parent = repository.resolve().parent
    usable = os.access(parent, os.W_OK | os.X_OK) and parent.stat().st_dev == repository.stat().st_dev
    return parent if usable else repository


def _existing(path: Path) -> Path:
    """Return the closest folder above a path, or itself, that exists."""
    return next(candidate for candidate in (path.resolve(), *path.resolve().parents) if candidate.exists())


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
