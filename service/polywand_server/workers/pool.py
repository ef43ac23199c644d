"""The service's side of its children: a few at once, each for one piece of work, and gone when nobody wants it."""

import asyncio
import fcntl
import logging
import mmap
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
from polywand_server.errors import DeadlineError, InternalError, InvalidInputError, TooLargeError, UnavailableError
from polywand_server.workers import channel
from polywand_server.workers.answers import Answer, from_bytes
from polywand_server.workers.child import Order, Work

# Read by the process that children are forked from, before the first of them.
MODULES = ("polywand_server.jobs",)
# Of every child, beyond what its work is allowed: its own stack, and what libraries set up at first use.
BASE_MEMORY_BYTES = 128 << 20
# Children that wait for work, so that none waits for a fork.
SPARE = 1
# How long one piece of work may take by the clock; the processor's time ends it sooner, unless the machine is busy.
WALL_SECONDS = 60.0
# How long a child or its parent may take to begin.
BEGIN_SECONDS = 20.0
# Before the parent of the children is started again.
RESTART_SECONDS = 1.0
# The exit code of a child that has ended because its parent has, or without a word.
LOST = 0
# Of the process that forks: libraries must not start threads in it, and gRPC, which it never uses, has nothing to do.
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "GRPC_ENABLE_FORK_SUPPORT": "0",
}

_log = logging.getLogger(__name__)

# What the service says when work asks: it raises to end the work.
Reply = Callable[[dict[str, Any]], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one piece of work.

    memory_bytes: what it may take. cpu_seconds: of the processor. field: of the request, for errors. what: it is that
    takes them, in words ("the image").
    """

    memory_bytes: int
    cpu_seconds: int
    field: str
    what: str


@dataclass(slots=True, eq=False)
class _Child:
    """process: its pidfd; None until it has begun. ended: resolves to its exit code, negative for a signal."""

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
    living: dict[int, _Child] = field(default_factory=dict)


class Workers:
    """Runs work in children with limits, at most `most` at once, in fair turns; cancelling kills."""

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
        asyncio.get_running_loop().add_reader(ours, self._hear, self._spawner)
        for _ in range(SPARE):
            self._add_spare()

    async def close(self) -> None:
        """Kill all children and their parent."""
        self._closing = True
        if self._restarting is not None:
            self._restarting.cancel()
        spawner = self._spawner
        if spawner is not None:
            self._lose(spawner)
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
        """Run work in a child; returns its answer, and the memory that it shares, if it does.

        work: a function of a module's top level, that takes a `Conversation` and the arguments.
        data: what lies in the conversation's `input`. reply: answers what the work asks.

        Raises:
            TooLargeError: it needs more memory or time than it may take.
            InvalidInputError: as the work raised it.
            DeadlineError, UnavailableError, InternalError
        """
        order = pickle.dumps(Order(work, arguments, BASE_MEMORY_BYTES + limits.memory_bytes, limits.cpu_seconds))
        async with self._turns.turn(), self._child() as child:
            try:
                async with asyncio.timeout(WALL_SECONDS):
                    await self._give(child, order, data)
                    return await self._hold_conversation(child, limits, reply)
            except TimeoutError:
                raise DeadlineError(
                    f"{limits.what} was not done within {WALL_SECONDS:g} s: this server is busy"
                ) from None

    @asynccontextmanager
    async def _child(self) -> AsyncIterator[_Child]:
        if self._spawner is None and self._restarting is None:
            self.start()
        if self._spawner is None:
            raise UnavailableError("this server starts the processes that work on large input anew: try again", 1.0)
        child = self._spare.popleft() if self._spare else self._spawn()
        self._add_spare()
        try:
            yield child
        finally:
            self._kill(child)

    def _add_spare(self) -> None:
        """Have a child ready for the next work, unless the parent has ended: that may show only now."""
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
                channel.send(self._spawner.requests, b"", [theirs.fileno()])
            except OSError:
                self._lose(self._spawner)
        return child

    async def _give(self, child: _Child, order: bytes, data: Sequence[bytes | memoryview]) -> None:
        async with asyncio.timeout(BEGIN_SECONDS):
            await child.begun
        memory = os.memfd_create("polywand-input", os.MFD_CLOEXEC)
        try:
            if data:
                await asyncio.to_thread(_write, memory, data)
            channel.send(child.end, order, [memory])
        except OSError:
            pass  # it has ended: its exit code says why
        finally:
            os.close(memory)

    async def _hold_conversation(
        self, child: _Child, limits: Limits, reply: Reply | None
    ) -> tuple[Answer, NDArray[np.uint8] | None]:
        while True:
            message = await self._listen(child)
            if message is None:
                raise self._why(await child.ended, limits)
            answer, descriptors = message
            try:
                if "ask" in answer.facts and reply is not None:
                    channel.send(child.end, pickle.dumps(await reply(answer.facts["ask"])))
                    continue
                _raise_error(answer.facts, limits)
                self._kill(child)  # before what it shares is used: nobody changes it any more
                return answer, _map(descriptors[0]) if descriptors else None
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    async def _listen(self, child: _Child) -> tuple[Answer, list[int]] | None:
        """Receive the child's next message; None when it has ended."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                message = channel.receive(child.end)
            except BlockingIOError:
                readable = loop.create_future()
                loop.add_reader(child.end, _set, readable)
                try:
                    # Its end shows in both, unless this side has let go of it meanwhile.
                    await asyncio.wait((readable, child.ended), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if child.end.fileno() >= 0:
                        loop.remove_reader(child.end)
                continue
            except OSError:
                return None
            if message is None:
                return None
            content, descriptors = message
            try:
                return from_bytes(content), descriptors
            except (ValueError, LookupError, TypeError) as error:
                raise InternalError("the service failed on this request; its log says why") from error

    def _why(self, code: int, limits: Limits) -> Exception:
        if code == LOST:
            return UnavailableError("the process that worked on this has ended: try again", RESTART_SECONDS)
        if code == -signal.SIGXCPU:
            return _too_long(limits)
        if code == -signal.SIGKILL:  # by the kernel, or somebody
            return TooLargeError(limits.field, f"{limits.what} took more memory than there is")
        _log.error("a child that worked on %s (%s) ended with %d", limits.what, limits.field, code)
        return InvalidInputError(limits.field, f"{limits.what} cannot be worked on: it made the process fail")

    def _kill(self, child: _Child) -> None:
        if child.end.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(child.end)
            child.end.close()
        if child.process is not None:
            with suppress(OSError):
                signal.pidfd_send_signal(child.process, signal.SIGKILL)

    def _hear(self, spawner: _Spawner) -> None:
        """Take in which children have begun, and which have ended."""
        while True:
            try:
                message = channel.receive(spawner.requests)
            except BlockingIOError:
                return
            except OSError:
                message = None
            if message is None:
                self._lose(spawner)
                return
            content, descriptors = message
            what, pid, code = pickle.loads(content)  # the parent never sees input
            if what == "begun":
                child = spawner.beginning.popleft()
                child.process, child.pid = descriptors[0], pid
                spawner.living[pid] = child
                _set(child.begun)
                if child.end.fileno() < 0:  # nobody waits for it any more
                    self._kill(child)
                continue
            child = spawner.living.pop(pid)
            if child.process is not None:
                os.close(child.process)
                child.process = None
            _set(child.ended, code)

    def _lose(self, spawner: _Spawner) -> None:
        """Forget a parent that has ended, and its children; another one is started, unless this is the end."""
        if self._spawner is not spawner:
            return
        asyncio.get_running_loop().remove_reader(spawner.requests)
        spawner.requests.close()
        self._spawner = None
        self._spare.clear()
        for child in (*spawner.beginning, *spawner.living.values()):
            self._kill(child)
            if child.process is not None:
                os.close(child.process)
                child.process = None
            _set(child.begun)
            _set(child.ended, LOST)
        if not self._closing:
            _log.error("the process that children are forked from has ended: starting another one")
            spawner.process.poll()
            self._restarting = asyncio.create_task(self._restart(), name="start the parent of children")

    async def _restart(self) -> None:
        while self._spawner is None:
            await asyncio.sleep(RESTART_SECONDS)
            try:
                self.start()
            except OSError as error:  # no memory, no process more
                _log.error("cannot start the process that children are forked from: %s", error.strerror)
        self._restarting = None


def _write(memory: int, data: Sequence[bytes | memoryview]) -> None:
    for part in data:
        view = memoryview(part)
        while view:
            view = view[os.write(memory, view) :]


def _map(descriptor: int) -> NDArray[np.uint8]:
    """Map what a child shares, uint8 [nbytes], for reading."""
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return np.frombuffer(mmap.mmap(descriptor, os.fstat(descriptor).st_size, prot=mmap.PROT_READ), np.uint8)


def _raise_error(facts: dict[str, Any], limits: Limits) -> None:
    match facts.get("error"):
        case None:
            return
        case "MemoryError":
            raise _too_much_memory(limits)
        case "InvalidInputError":
            raise InvalidInputError(str(facts["field"]), str(facts["description"]))
        case "TooLargeError":
            raise TooLargeError(str(facts["field"]), str(facts["description"]))
        case _:
            _log.error("work on %s (%s) failed in a child:\n%s", limits.what, limits.field, facts.get("description"))
            raise InternalError("the service failed on this request; its log says why")


def _too_long(limits: Limits) -> TooLargeError:
    return TooLargeError(
        limits.field, f"{limits.what} took more than {limits.cpu_seconds} s of processor time, the most that it may"
    )


def _too_much_memory(limits: Limits) -> TooLargeError:
    return TooLargeError(limits.field, f"{limits.what} took more memory than it may")


def _set(future: "asyncio.Future[Any]", result: Any = None) -> None:
    if not future.done():
        future.set_result(result)
