"""One tritonserver process, from its start to its last line of output. `server` restarts it."""

import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ParamSpec, Self, TypeVar

from polywand_server.triton.embedded import launch
from polywand_server.triton.embedded.logs import LogPump
from polywand_server.triton.embedded.wheel import Wheel, assemble, command, environment, socket_path, without_spaces

P = ParamSpec("P")
T = TypeVar("T")

KILL_TIMEOUT_S = 2 * launch.REAP_TIMEOUT_S + 2.0


class TritonProcess:
    """A tritonserver and its launcher (see `launch`); create it with `spawn`."""

    def __init__(
        self, process: asyncio.subprocess.Process, token: str, scratch: Path, files: Iterable[Path], lock: int
    ) -> None:
        assert process.stdout is not None
        self._process = process
        self._token = token
        self._scratch = scratch
        self._files = list(files)
        self._lock: int | None = lock
        self._log = LogPump()
        self._pump = asyncio.create_task(self._log.run(process.stdout), name="triton log")

    @classmethod
    async def spawn(cls, wheel: Wheel, repository: Path, *, token: str, scratch: Path, traces_url: str | None) -> Self:
        """Start tritonserver on the repository; it is not ready yet.

        token: part of the names of its shared memory and of `scratch`. No other server may use it.
        """
        await asyncio.to_thread(launch.remove, token, scratch)  # what a killed launcher left behind
        lock = None
        try:
            files = await _run_to_completion(assemble, wheel, scratch)
            lock = _lock_against_cleaners(scratch)
            repository = without_spaces(repository, scratch)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                launch.__file__,
                token,
                str(scratch),
                *command(wheel, repository, scratch, token, traces_url),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=environment(wheel, scratch),
                # Ctrl-C in a terminal reaches the whole foreground group; Triton has to run until the service ends.
                start_new_session=True,
            )
        except BaseException:
            if lock is not None:
                os.close(lock)
            await _run_to_completion(launch.remove, token, scratch)
            raise
        return cls(process, token, scratch, files, lock)

    @property
    def last_lines(self) -> str:
        """The end of its output, for error reports."""
        return self._log.tail

    def has_its_files(self) -> bool:
        """Whether its socket and the files that it needs to start processes of models are there; cleaners of /tmp may
        have removed them. Call it only when the server is ready.
        """
        return all(path.exists() for path in (*self._files, socket_path(self._scratch)))

    async def wait(self) -> str:
        """Wait for its end; return a text that says how it ended."""
        status = await self._process.wait()
        return _describe_exit(status)

    async def stop(self, grace_s: float) -> None:
        """Let it finish its requests for at most grace_s, then kill it. Returns when all its processes are gone."""
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), grace_s)
        except TimeoutError:
            pass
        finally:
            await self.kill()

    async def kill(self) -> None:
        """Kill it and its models' processes at once; returns when all of them are gone. May be called again."""
        assert self._process.stdin is not None
        self._process.stdin.close()  # the lifeline
        try:
            await asyncio.wait_for(self._process.wait(), KILL_TIMEOUT_S)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()
        await self._pump
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        await asyncio.to_thread(launch.remove, self._token, self._scratch)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            self._process.send_signal(number)


async def _run_to_completion(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Run work in a thread; when cancelled, still wait for its end, so that it creates no file afterwards."""
    task = asyncio.create_task(asyncio.to_thread(work, *arguments, **options))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _lock_against_cleaners(folder: Path) -> int:
    """Lock a folder and return the lock's descriptor: systemd-tmpfiles does not clean locked folders."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def _describe_exit(status: int) -> str:
    number = status - 128 if status > 128 else -status
    if number <= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"was ended by {name}"
