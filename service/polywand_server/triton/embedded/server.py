"""NVIDIA's tritonserver as a child process of the service: started, supervised, restarted and ended with it."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import Self

from polywand_server.triton.client import TritonClient
from polywand_server.triton.embedded.launch import region_prefix
from polywand_server.triton.embedded.pools import make_private
from polywand_server.triton.embedded.process import TritonProcess
from polywand_server.triton.embedded.scratch import scratch_of
from polywand_server.triton.embedded.stubs import kill_stubs
from polywand_server.triton.embedded.wheel import EmbeddedTritonError, find_wheel, metrics_url, socket_url

__all__ = ["EmbeddedTriton", "EmbeddedTritonError", "State"]

READY_POLL_S = 0.05
PROBE_INTERVAL_S = 2.0
PROBE_TIMEOUT_S = 5.0
FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 10.0
STABLE_S = 60.0  # after a server that ran this long, the next one starts without a long delay
FIRST_CHECK_S, CHECK_S = 0.25, 1.0  # between two checks of its memory and files: while models load, and later
LOADING_S = 60.0

_log = logging.getLogger(__name__)


class State(StrEnum):
    """What the server is doing."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPING = "stopping"


class EmbeddedTriton:
    """A tritonserver on a model repository, kept running between `start` and `stop`.

    It has no model loaded at first, and none after a restart: the caller loads them (`TritonClient.load`).

    start_timeout_s: how long tritonserver may take to become ready.
    hang_timeout_s: how long it may answer no probe before it is killed and restarted.
    scratch: the folder for its private directory; None for the system's.
    traces_url: where it sends the spans of traced requests (OTLP over HTTP).
    on_restart: called after every restart.
    probe: returns, within the given seconds, whether the server answers; by default a gRPC call.
    """

    def __init__(
        self,
        repository: Path,
        *,
        start_timeout_s: float = 60.0,
        hang_timeout_s: float = 10.0,
        traces_url: str | None = None,
        scratch: Path | None = None,
        probe: Callable[[float], Awaitable[bool]] | None = None,
        on_restart: Callable[[], object] = lambda: None,
    ) -> None:
        self._repository = repository.resolve()
        self._start_timeout_s = start_timeout_s
        self._hang_timeout_s = hang_timeout_s
        self._traces_url = traces_url
        self._probe = probe
        self._on_restart = on_restart
        self._token = secrets.token_hex(4)
        self._scratch = scratch_of(self._token, scratch)
        self._state = State.STOPPED
        self._restarts = 0
        self._process: TritonProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Its address, for `TritonClient`; the same after every restart."""
        return socket_url(self._scratch)

    @property
    def metrics_url(self) -> str:
        """The address of its own Prometheus metrics; the same after every restart."""
        return metrics_url(self._scratch)

    @property
    def region_prefix(self) -> str:
        """Prefix for names of shared memory that is removed at its end, even if it and this process are killed."""
        return region_prefix(self._token)

    @property
    def state(self) -> State:
        """What the server is doing."""
        return self._state

    @property
    def restarts(self) -> int:
        """How often it was restarted since `start`."""
        return self._restarts

    async def start(self) -> None:
        """Start it; returns when it accepts requests.

        Raises:
            EmbeddedTritonError: it cannot be started; the text holds its last lines of output.
        """
        if self._state is not State.STOPPED:
            raise RuntimeError(f"the embedded Triton is {self._state}")
        self._state = State.STARTING
        try:
            self._process = await self._launch()
        except BaseException:
            self._state = State.STOPPED
            raise
        self._state = State.READY
        self._supervisor = asyncio.create_task(self._supervise(self._process), name="supervise Triton")
        _log.info("tritonserver runs on %s with the model repository %s", self.url, self._repository)

    async def supervised(self) -> None:
        """Wait until its supervision ends; raise the error that ended it, unless it was ended by `stop`."""
        if self._supervisor is not None:
            await asyncio.wait([self._supervisor])
            if not self._supervisor.cancelled():
                self._supervisor.result()

    async def stop(self, grace_s: float = 5.0) -> None:
        """End it; running requests may finish within grace_s. Returns when all its processes and files are gone."""
        if self._supervisor is None:
            return
        self._state = State.STOPPING
        self._supervisor.cancel()
        await asyncio.wait([self._supervisor])
        self._supervisor = None
        if self._process is not None:
            await self._process.stop(grace_s)
            self._process = None
        self._state = State.STOPPED
        _log.info("tritonserver has stopped")

    def end_model_processes(self, model: str, process: str | None) -> None:
        """Kill the processes of a Python model that still run; process: the name of one, if known."""
        killed = kill_stubs(model, process, self.region_prefix)
        if killed:
            _log.warning(
                "Triton calls a process of model '%s' dead: killed its processes, %d that still ran", model, killed
            )

    def protect_memory(self) -> None:
        """Let no other user read the memory that it shares with the processes of its models.

        This is done once a second anyway; a call does it at once.
        """
        found = make_private(self.region_prefix)
        if found:
            _log.debug("%d memory pools were readable for other users", found)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _launch(self) -> TritonProcess:
        """Start one server and wait until it is ready."""
        if not self._repository.is_dir():
            raise EmbeddedTritonError(f"the model repository {self._repository} is not a folder")
        process = await TritonProcess.spawn(
            find_wheel(),
            self._repository,
            token=self._token,
            scratch=self._scratch,
            traces_url=self._traces_url,
        )
        try:
            await self._until_ready(process)
        except BaseException:
            await process.kill()
            raise
        return process

    async def _until_ready(self, process: TritonProcess) -> None:
        exited = asyncio.create_task(process.wait())
        ready = asyncio.create_task(self._ready())
        try:
            await asyncio.wait((exited, ready), timeout=self._start_timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
                return
            problem = exited.result() if exited.done() else f"was not ready within {self._start_timeout_s:g} s"
        finally:
            exited.cancel()
            ready.cancel()
        await process.kill()
        raise EmbeddedTritonError(f"tritonserver {problem}; its last lines:\n{process.last_lines}")

    async def _ready(self) -> None:
        client = TritonClient(self.url)
        try:
            while True:
                if await client.server_ready(PROBE_TIMEOUT_S):
                    return
                await asyncio.sleep(READY_POLL_S)
        finally:
            await client.close()

    async def _supervise(self, process: TritonProcess) -> None:
        """Restart every server that ends or hangs, after pauses that grow."""
        clock = asyncio.get_running_loop().time
        backoff_s = FIRST_BACKOFF_S
        while True:
            started = clock()
            reason = await self._wait_for_failure(process)
            self._state = State.RESTARTING
            await process.kill()
            self._process = None
            _log.error("tritonserver %s; restarting it. Its last lines:\n%s", reason, process.last_lines)
            if clock() - started > STABLE_S:
                backoff_s = FIRST_BACKOFF_S
            process, backoff_s = await self._restart(backoff_s)
            self._process = process
            self._restarts += 1
            self._on_restart()
            self._state = State.READY
            _log.warning("tritonserver runs again (restart %d)", self._restarts)

    async def _restart(self, backoff_s: float) -> tuple[TritonProcess, float]:
        """Start servers until one is ready; return it, and the pause before the next restart."""
        while True:
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            try:
                return await self._launch(), backoff_s
            except (EmbeddedTritonError, OSError) as error:
                _log.error("could not restart tritonserver, next try in %.1f s: %s", backoff_s, error)

    async def _wait_for_failure(self, process: TritonProcess) -> str:
        """Wait until the server has ended, hangs or has lost its files; return a text that says which."""
        failures = (process.wait(), self._wait_for_hang(), self._wait_for_lost_files(process))
        tasks = [asyncio.create_task(failure) for failure in failures]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return next(iter(done)).result()
        finally:
            for task in tasks:
                task.cancel()

    async def _wait_for_lost_files(self, process: TritonProcess) -> str:
        """Return when some of its files are gone; protect its memory meanwhile."""
        clock = asyncio.get_running_loop().time
        loading_until = clock() + LOADING_S
        while await asyncio.to_thread(process.has_its_files):
            await asyncio.to_thread(self.protect_memory)
            await asyncio.sleep(FIRST_CHECK_S if clock() < loading_until else CHECK_S)
        return f"has lost files in {self._scratch} (is its folder cleaned?) and was killed"

    async def _wait_for_hang(self) -> str:
        """Return when it has answered no probe for too long."""
        client = TritonClient(self.url)
        probe = self._probe or client.server_live
        clock = asyncio.get_running_loop().time
        answered, failures = clock(), 0
        try:
            # At least two failures: a single one may mean that this process, and not Triton, was suspended.
            while clock() - answered < self._hang_timeout_s or failures < 2:
                await asyncio.sleep(min(PROBE_INTERVAL_S, self._hang_timeout_s / 4))
                if await probe(min(PROBE_TIMEOUT_S, self._hang_timeout_s / 2)):
                    answered, failures = clock(), 0
                else:
                    failures += 1
        finally:
            await client.close()
        return f"answered no probe for {clock() - answered:.1f} s and was killed"
