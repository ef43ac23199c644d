"""The service's side of its children: a few at once, each for one piece of work, killed when that is over."""

import asyncio
import fcntl
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polywand_server.admission.turns import Turns
from polywand_server.errors import (
    DeadlineError,
    InternalError,
    InvalidInputError,
    Reason,
    TooLargeError,
    UnavailableError,
)
from polywand_server.workers import channel
from polywand_server.workers.answers import Answer, from_bytes
from polywand_server.workers.child import Order, Work, pack
from polywand_server.workers.mapping import map_read_only

# Imported by the process that children are forked from, before the first fork.
MODULES = ("polywand_server.jobs",)
# Memory of every child beyond the limit of its work: its stack, and what libraries allocate at first use.
BASE_MEMORY_BYTES = 128 << 20
# Children that wait for work, so that work does not wait for a fork.
SPARE = 1
# Wall-clock limit of one piece of work; the limit of processor time is reached sooner, unless the machine is busy.
WALL_SECONDS = 60.0
# Limit for a child or its parent to start.
BEGIN_SECONDS = 20.0
# Delay before the parent of the children is started again.
RESTART_SECONDS = 1.0
# The exit code of a child that ended because its parent did, or without an answer.
PARENT_ENDED = 0
# Of the process that forks: libraries must not start threads in it, and gRPC is not used there.
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "GRPC_ENABLE_FORK_SUPPORT": "0",
}

_log = logging.getLogger(__name__)

# Replies to what work asks; raises to end the work.
Reply = Callable[[dict[str, Any]], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one piece of work.

    memory_bytes, cpu_seconds: the most that it may use. field: of the request, for errors. what: name of the work, for
    errors ("decoding the image"). reason: of the error where it needs more.
    """

    memory_bytes: int
    cpu_seconds: int
    field: str
    what: str
    reason: Reason = Reason.LIMIT_EXCEEDED


@dataclass(slots=True, eq=False)
class _Child:
    """A child. process: its pidfd; None until it has started. ended: resolves to its exit code, -N for signal N."""

    end: socket.socket
    begun: "asyncio.Future[None]"
    ended: "asyncio.Future[int]"
    process: int | None = None
    pid: int = 0


@dataclass(slots=True)
class _Spawner:
    process: subprocess.Popen[bytes]
    requests: socket.socket
    beginning: deque[_Child] = field(default_factory=deque)
    running: dict[int, _Child] = field(default_factory=dict)


class Workers:
    """Runs work in children with limits, at most `most` at once, in fair turns; cancelling a run kills its child."""

    def __init__(self, most: int) -> None:
        self._turns = Turns(most)
        self._spawner: _Spawner | None = None
        self._spare: deque[_Child] = deque()
        self._closing = False
        self._restarting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the process that children are forked from; it is ready a moment later."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "polywand_server.workers.spawner", str(theirs.fileno()), *MODULES]
            process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **_ENVIRONMENT},
                start_new_session=True,  # Ctrl-C in a terminal is for the service
            )
        ours.setblocking(False)
        self._spawner = _Spawner(process, ours)
        asyncio.get_running_loop().add_reader(ours, self._read_reports, self._spawner)
        for _ in range(SPARE):
            self._add_spare()

    async def close(self) -> None:
        """Kill all children and their parent."""
        self._closing = True
        if self._restarting is not None:
            self._restarting.cancel()
        spawner = self._spawner
        if spawner is not None:
            self._drop_spawner(spawner)
            spawner.process.kill()
            await asyncio.to_thread(spawner.process.wait)

    async def run(
        self,
        limits: Limits,
        work: Work,
        *arguments: Any,
        data: Sequence[bytes | memoryview] = (),
        reply: Reply | None = None,
    ) -> tuple[Answer, NDArray[np.uint8] | None]:
        """Run work in a child; return its answer, and the memory that it shares, uint8 [nbytes], or None.

        work: a function of a module's top level, that takes a `Conversation` and the arguments.
        data: the conversation's `input`. reply: answers what the work asks.

        Raises:
            TooLargeError: it exceeds its limit of memory or processor time.
            InvalidInputError: as the work raised it.
            DeadlineError: it exceeds WALL_SECONDS.
            UnavailableError, InternalError
        """
        order = Order(work, arguments, BASE_MEMORY_BYTES + limits.memory_bytes, limits.cpu_seconds)
        async with self._turns.turn(), self._child() as child:
            try:
                async with asyncio.timeout(WALL_SECONDS):
                    await self._send_order(child, order, data)
                    return await self._hold_conversation(child, limits, reply)
            except TimeoutError:
                text = f"{limits.what} was not done within {WALL_SECONDS:g} s: this server is busy"
                raise DeadlineError(text, reason=Reason.SERVER_TIMEOUT) from None

    @asynccontextmanager
    async def _child(self) -> AsyncIterator[_Child]:
        if self._spawner is None and self._restarting is None:
            self.start()
        if self._spawner is None:
            text = "this server restarts its processes for large input: try again"
            raise UnavailableError(text, RESTART_SECONDS, reason=Reason.SERVER_UNAVAILABLE)
        child = self._spare.popleft() if self._spare else self._spawn()
        self._add_spare()
        try:
            yield child
        finally:
            self._kill(child)

    def _add_spare(self) -> None:
        """Start a child for the next work, unless the parent has ended, which `_spawn` may detect."""
        child = None if self._spawner is None else self._spawn()
        if child is not None and self._spawner is not None:
            self._spare.append(child)

    def _spawn(self) -> _Child:
        assert self._spawner is not None
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        child = _Child(ours, loop.create_future(), loop.create_future())
        with theirs:
            self._spawner.beginning.append(child)
            try:
                channel.send(self._spawner.requests, descriptors=[theirs.fileno()])
            except OSError:
                self._drop_spawner(self._spawner)
        return child

    async def _send_order(self, child: _Child, order: Order, data: Sequence[bytes | memoryview]) -> None:
        async with asyncio.timeout(BEGIN_SECONDS):
            await child.begun
        given = await _written_by_thread(lambda: channel.write(*data))
        try:
            content = await _written_by_thread(lambda: channel.write(*pack(order)))
            with suppress(OSError):  # it has ended: its exit code says why
                channel.post(child.end, content, [given])
        finally:
            os.close(given)

    async def _hold_conversation(
        self, child: _Child, limits: Limits, reply: Reply | None
    ) -> tuple[Answer, NDArray[np.uint8] | None]:
        while True:
            message = await self._receive(child)
            if message is None:
                raise self._exit_error(await child.ended, limits)
            answer, descriptors = message
            try:
                if "ask" in answer.facts and reply is not None:
                    channel.send(child.end, pickle.dumps(await reply(answer.facts["ask"])))
                    continue
                _raise_error(answer.facts, limits)
                self._kill(child)  # so that it cannot change the shared memory any more
                return answer, _map(descriptors[0]) if descriptors else None
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    async def _receive(self, child: _Child) -> tuple[Answer, list[int]] | None:
        """Receive the child's next message; None when it has ended."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                message = channel.accept(child.end)
            except BlockingIOError:
                readable = loop.create_future()
                loop.add_reader(child.end, _set, readable)
                try:
                    # Both resolve when it ends, unless this side has closed the socket.
                    await asyncio.wait((readable, child.ended), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if child.end.fileno() >= 0:
                        loop.remove_reader(child.end)
                continue
            except OSError:
                return None
            if message is None:
                return None
            memory, descriptors = message
            try:
                return await asyncio.to_thread(_read_answer, memory), descriptors
            except BaseException as error:
                for descriptor in descriptors:
                    os.close(descriptor)
                if isinstance(error, ValueError | LookupError | TypeError):
                    raise InternalError("the service failed on this request; its log says why") from error
                raise

    def _exit_error(self, code: int, limits: Limits) -> Exception:
        if code == PARENT_ENDED:
            text = "the process that worked on this has ended: try again"
            return UnavailableError(text, RESTART_SECONDS, reason=Reason.SERVER_UNAVAILABLE)
        if code == -signal.SIGXCPU:
            return _too_long(limits)
        if code == -signal.SIGKILL:  # by the kernel, for lack of memory, or by an operator
            return TooLargeError(limits.field, f"{limits.what} took more memory than there is", reason=limits.reason)
        _log.error("a child that worked on %s (%s) ended with %d", limits.what, limits.field, code)
        return InvalidInputError(limits.field, f"{limits.what} cannot be worked on: it made the process fail")

    def _kill(self, child: _Child) -> None:
        if child.end.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(child.end)
            child.end.close()
        if child.process is not None:
            with suppress(OSError):
                signal.pidfd_send_signal(child.process, signal.SIGKILL)

    def _read_reports(self, spawner: _Spawner) -> None:
        """Read which children have started, and which have ended."""
        while True:
            try:
                message = channel.receive(spawner.requests)
            except BlockingIOError:
                return
            except OSError:
                message = None
            if message is None:
                self._drop_spawner(spawner)
                return
            content, descriptors = message
            what, pid, code = pickle.loads(content)  # the parent never sees input
            if what == "begun":
                child = spawner.beginning.popleft()
                child.process, child.pid = descriptors[0], pid
                spawner.running[pid] = child
                _set(child.begun)
                if child.end.fileno() < 0:  # its work was cancelled
                    self._kill(child)
                continue
            child = spawner.running.pop(pid)
            if child.process is not None:
                os.close(child.process)
                child.process = None
            _set(child.ended, code)

    def _drop_spawner(self, spawner: _Spawner) -> None:
        """Drop a parent that has ended, and its children; start another one, unless the service is closing."""
        if self._spawner is not spawner:
            return
        asyncio.get_running_loop().remove_reader(spawner.requests)
        spawner.requests.close()
        self._spawner = None
        self._spare.clear()
        for child in (*spawner.beginning, *spawner.running.values()):
            self._kill(child)
            if child.process is not None:
                os.close(child.process)
                child.process = None
            _set(child.begun)
            _set(child.ended, PARENT_ENDED)
        if not self._closing:
            _log.error("the process that children are forked from has ended: starting another one")
            spawner.process.kill()
            self._restarting = asyncio.create_task(self._restart(spawner.process), name="start the parent of children")

    async def _restart(self, ended: "subprocess.Popen[bytes]") -> None:
        await asyncio.to_thread(ended.wait)  # else it stays as a zombie
        while self._spawner is None:
            await asyncio.sleep(RESTART_SECONDS)
            try:
                self.start()
            except OSError as error:  # out of memory or processes
                _log.error("cannot start the process that children are forked from: %s", error.strerror)
        self._restarting = None


def _read_answer(memory: int) -> Answer:
    return from_bytes(channel.read(memory))


async def _written_by_thread(write: Callable[[], int]) -> int:
    """Write a memory file in a thread, and return its descriptor; if this is cancelled, it is closed when written."""
    writing = asyncio.get_running_loop().run_in_executor(None, write)
    try:
        return await asyncio.shield(writing)
    except asyncio.CancelledError:
        writing.add_done_callback(_close_written)
        raise


def _close_written(writing: "asyncio.Future[int]") -> None:
    if not writing.cancelled() and writing.exception() is None:
        os.close(writing.result())


def _map(descriptor: int) -> NDArray[np.uint8]:
    """Map memory that a child shares, read-only: uint8 [nbytes]."""
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return map_read_only(descriptor)


def _raise_error(facts: dict[str, Any], limits: Limits) -> None:
    match facts.get("error"):
        case None:
            return
        case "MemoryError":
            raise _too_much_memory(limits)
        case "InvalidInputError":
            raise InvalidInputError(str(facts["field"]), str(facts["description"]), reason=Reason[facts["reason"]])
        case "TooLargeError":
            raise TooLargeError(str(facts["field"]), str(facts["description"]), reason=Reason[facts["reason"]])
        case _:
            _log.error("work on %s (%s) failed in a child:\n%s", limits.what, limits.field, facts.get("description"))
            raise InternalError("the service failed on this request; its log says why")


def _too_long(limits: Limits) -> TooLargeError:
    text = f"{limits.what} took more than {limits.cpu_seconds} s of processor time, the most that it may"
    return TooLargeError(limits.field, text, reason=limits.reason)


def _too_much_memory(limits: Limits) -> TooLargeError:
    return TooLargeError(limits.field, f"{limits.what} took more memory than it may", reason=limits.reason)


def _set(future: "asyncio.Future[Any]", result: Any = None) -> None:
    if not future.done():
        future.set_result(result)
