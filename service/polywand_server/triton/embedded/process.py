"""One running tritonserver, from its start to its last line of output. `embedded` starts the next one."""

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
from polywand_server.triton.embedded.wheel import Wheel, assemble, command, environment, socket_path, without_blanks

P = ParamSpec("P")
T = TypeVar("T")

KILL_TIMEOUT_S = 2 * launch.REAP_TIMEOUT_S + 2.0


class TritonProcess:
    """tritonserver with its launcher between it and us (see `launch`); make it with `spawn`."""

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
    async def spawn(
        cls, wheel: Wheel, repository: Path, *, token: str, scratch: Path, metrics_port: int | None
    ) -> Self:
        """Start tritonserver on the repository; it is not ready yet.

        token: names its shared memory and, within `scratch`'s parent, `scratch`. Nobody else may run with it.
        """
        await asyncio.to_thread(launch.remove, token, scratch)  # what a launcher that was killed left behind
        lock = None
        try:
            files = await _to_its_end(assemble, wheel, scratch)
            lock = _keep_from_cleaners(scratch)
            repository = without_blanks(repository, scratch)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", launch.__file__, token, str(scratch)),
                *command(wheel, repository, scratch, token, metrics_port),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=environment(wheel, scratch),
                # Ctrl-C in a terminal goes to the whole foreground group; Triton has to outlast the service's draining.
                start_new_session=True,
            )
        except BaseException:
            if lock is not None:
                os.close(lock)
            await _to_its_end(launch.remove, token, scratch)
            raise
        return cls(process, token, scratch, files, lock)

    @property
    def last_lines(self) -> str:
        """The end of its output, for error reports."""
        return self._log.tail

    def has_its_files(self) -> bool:
        """Whether it can be reached and start processes of models: cleaners of /tmp may have taken what that needs.

        Ask when it is ready.
        """
        return all(path.exists() for path in (*self._files, socket_path(self._scratch)))

    async def wait(self) -> str:
        """Wait for its end; return how it ended, in words."""
        status = await self._process.wait()
        return _in_words(status)

    async def stop(self, grace_s: float) -> None:
        """Let it finish the requests it has, for so many seconds; then kill it. Returns when nothing of it is left."""
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), grace_s)
        except TimeoutError:
            pass
        finally:
            await self.kill()

    async def kill(self) -> None:
        """Kill it, and its models' processes, at once; returns when nothing of it is left. May be repeated."""
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


async def _to_its_end(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Run work in a thread; when cancelled, wait for its end all the same, so that nothing is made after that."""
    task = asyncio.create_task(asyncio.to_thread(work, *arguments, **options))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _keep_from_cleaners(folder: Path) -> int:
    """Lock a folder, and return the lock's descriptor: systemd-tmpfiles leaves a locked one alone, however old."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def _in_words(status: int) -> str:
    number = status - 128 if status > 128 else -status
    if number <= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"was ended by {name}"
