"""Files as they are named on a command line: read once, told by a name that can be printed, written whole."""

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

MAX_READ_BYTES = 255 << 20  # what fits into one message, and more than any image that a server takes
STANDARD_INPUT = "Standard input"  # as sentences call it
_NAMES_OF_STANDARD_INPUT = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")


class Source:
    """A file that is read once: a pipe has its bytes only once, and a file may change.

    name: as it was given; "-" is standard input, and so are that one's names in /dev and /proc.
    """

    def __init__(self, name: str | os.PathLike[str]) -> None:
        self.name = os.fspath(name)
        self._data: bytes | None = None

    @property
    def is_standard_input(self) -> bool:
        """Whether this reads what comes by a pipe or `<`."""
        return self.name in _NAMES_OF_STANDARD_INPUT

    def read(self) -> bytes:
        """Return the file's bytes, which are kept until `forget`. Raises InvalidRequest as `read` does."""
        if self._data is None:
            self._data = _read_standard_input() if self.is_standard_input else read(self.name)
        return self._data

    def forget(self) -> None:
        """Let go of the bytes: what is asked for is answered."""
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
            data = file.read(MAX_READ_BYTES + 1)  # not all of what has no end, such as /dev/zero
    except OSError as error:
        raise _unreadable(name, error.strerror or str(error)) from error
    except ValueError as error:  # a NUL in the name
        if isinstance(error, PolywandError):
            raise
        raise _unreadable(name, str(error)) from error
    return _checked(data, name)


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: what was there stays until all of the new is on the disk.

    A link is followed, and a device is written to. Raises PolywandError when that fails.
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
    """What tells whether two names mean one file: device and inode, and the way there after all links.

    An int is an open file, of which only a regular one counts. Names of what does not exist count by their way alone.
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
    """Write beside the target, then rename."""
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
    """The permissions of the file that is replaced, or those that a new one gets here."""
    with suppress(FileNotFoundError):
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
