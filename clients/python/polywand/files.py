"""Files named on a command line: read once, shown by a printable name, written atomically."""

import os
import stat
import sys
import tempfile
from collections.abc import Hashable, Iterable
from contextlib import suppress
from pathlib import Path

import grpc

from polywand.errors import InvalidRequest, PolywandError
from polywand_common.texts import shown

MAX_READ_BYTES = 255 << 20  # fits into one message, and is more than any image that a server accepts
STANDARD_INPUT = "Standard input"  # its name in error texts
_NAMES_OF_STANDARD_INPUT = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")


class Source:
    """A file that is read once: a pipe cannot be read twice, and a file may change.

    name: as given; "-" is standard input, and so are its names in /dev and /proc.
    """

    def __init__(self, name: str | os.PathLike[str]) -> None:
        self.name = os.fspath(name)
        self._data: bytes | None = None

    @property
    def is_standard_input(self) -> bool:
        """Whether this is standard input."""
        return self.name in _NAMES_OF_STANDARD_INPUT

    @property
    def path(self) -> Path:
        """The path, also of standard input."""
        return Path("/dev/stdin" if self.is_standard_input else self.name)

    def read(self) -> bytes:
        """Return the file's bytes, which are kept until `discard`. Raises InvalidRequest as `read` does."""
        if self._data is None:
            self._data = _read_standard_input() if self.is_standard_input else read(self.name)
        return self._data

    def discard(self) -> None:
        """Free the bytes after the answer."""
        self._data = b""


def read(path: str | os.PathLike[str]) -> bytes:
    """Read a file's bytes. Raises InvalidRequest when it cannot be read, is empty, or is too large to be sent."""
    name = shown(path)
    if not name:
        raise _unreadable("An image", "its name is empty")
    try:
        with Path(path).open("rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_size > MAX_READ_BYTES:
                raise _too_large(name, f"{status.st_size:,} bytes")
            data = file.read(MAX_READ_BYTES + 1)  # a limit for endless files such as /dev/zero
    except OSError as error:
        raise _unreadable(name, error.strerror or str(error)) from error
    except ValueError as error:  # a NUL in the name
        if isinstance(error, PolywandError):
            raise
        raise _unreadable(name, str(error)) from error
    return _checked(data, name)


def write(path: Path, data: bytes) -> None:
    """Write a file atomically: an older file stays until all of the new one is on the disk.

    Links are followed; devices are written to directly. Raises PolywandError when that fails.
    """
    try:
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            target.write_bytes(data)
            return
        _replace(target, data)
    except OSError as error:
        message = f"{shown(path)} cannot be written: {error.strerror or error}."
        raise PolywandError(message, grpc.StatusCode.INTERNAL) from error


def identities(paths: Iterable[str | os.PathLike[str] | int]) -> set[Hashable]:
    """Return what identifies files by any of their names: device and inode, and the path with all links resolved.

    An int is a file descriptor, which counts only if it is a regular file. Missing files have their path alone.
    """
    found: set[Hashable] = set()
    for path in paths:
        with suppress(OSError, ValueError):
            if not isinstance(path, int):
                found.add(os.path.normcase(os.path.realpath(path)))
            status = os.stat(path)
            if not isinstance(path, int) or stat.S_ISREG(status.st_mode):
                found.add((status.st_dev, status.st_ino))
    return found


def _read_standard_input() -> bytes:
    if sys.stdin is None:
        raise _unreadable(STANDARD_INPUT, "it is closed")
    try:
        data = sys.stdin.buffer.read(MAX_READ_BYTES + 1)
    except (OSError, ValueError) as error:
        raise _unreadable(STANDARD_INPUT, getattr(error, "strerror", None) or str(error)) from error
    return _checked(data, STANDARD_INPUT)


def _checked(data: bytes, name: str) -> bytes:
    if len(data) > MAX_READ_BYTES:
        raise _too_large(name, "too many bytes")
    if not data:
        raise InvalidRequest(f"{name} is empty.", grpc.StatusCode.INVALID_ARGUMENT)
    return data


def _unreadable(name: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{name} cannot be read: {reason}", grpc.StatusCode.INVALID_ARGUMENT)


def _too_large(name: str, size: str) -> InvalidRequest:
    return InvalidRequest(f"{name} has {size}: at most {MAX_READ_BYTES:,} are sent.", grpc.StatusCode.INVALID_ARGUMENT)


def _replace(target: Path, data: bytes) -> None:
    """Write a file in the same folder, then rename it."""
    descriptor, beside = tempfile.mkstemp(prefix=".polywand-", suffix=target.suffix, dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).chmod(_mode(target))
        Path(beside).replace(target)
    except BaseException:
        with suppress(OSError):
            Path(beside).unlink()
        raise


def _mode(target: Path) -> int:
    """Return the permissions of the replaced file, or those of a new one by the umask."""
    with suppress(FileNotFoundError):
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
