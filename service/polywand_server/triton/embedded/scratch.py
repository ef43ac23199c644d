"""The folder of the embedded Triton's files: where it is, and whether files in it can be written and executed."""

import os
import shutil
import tempfile
from pathlib import Path

from polywand_server.triton.embedded.launch import scratch_name
from polywand_server.triton.embedded.wheel import EmbeddedTritonError, socket_url

MAX_SOCKET_PATH_BYTES = 107  # the kernel's limit
NEEDED_BYTES = 16 << 20  # of backends and sockets


def scratch_of(token: str, folder: Path | None) -> Path:
    """Return the path of a server's private directory, in the given folder or in the system's for temporary files.

    Raises:
        EmbeddedTritonError: files in the folder cannot be written or executed; the text says what to do.
    """
    named = "--scratch" if folder is not None else "the folder for temporary files"
    try:
        folder = (folder or Path(tempfile.gettempdir())).absolute()
    except OSError as error:
        raise EmbeddedTritonError(
            f"no folder for temporary files can be written: name one with --scratch ({error})"
        ) from error
    path = folder / scratch_name(token)
    if len(socket_url(path).encode()) > MAX_SOCKET_PATH_BYTES:
        if named == "--scratch":
            raise EmbeddedTritonError(f"--scratch: '{folder}' is too long for the path of a socket: name a shorter one")
        folder = Path("/tmp")
        path = folder / scratch_name(token)
    _check(folder, named)
    return path


def _check(folder: Path, named: str) -> None:
    """Raise EmbeddedTritonError if a server's files cannot be in a folder."""
    if not folder.is_dir():
        raise EmbeddedTritonError(f"{named}: there is no folder '{folder}'")
    system = os.statvfs(folder)
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK | os.X_OK) or system.f_flag & os.ST_RDONLY:
        reason = "cannot be written"
    elif system.f_flag & os.ST_NOEXEC:
        reason = "is mounted noexec, and Triton runs programs from there"
    elif free < NEEDED_BYTES:
        reason = f"has {free >> 20} MiB left of the {NEEDED_BYTES >> 20} that are needed"
    else:
        return
    raise EmbeddedTritonError(f"{named}: '{folder}' {reason}: name another with --scratch")
