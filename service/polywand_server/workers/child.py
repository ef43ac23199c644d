"""The child process: runs one piece of work within its limits, and ends."""

import ctypes
import mmap
import os
import pickle
import resource
import signal
import socket
import struct
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from polywand_server.errors import InvalidInputError, PolywandError, TooLargeError
from polywand_server.workers import channel
from polywand_server.workers.answers import Answer, to_bytes

# So that clicks go first, and the kernel kills a child before the service when memory runs out.
NICENESS = 5
OOM_SCORE = 800
# Of prctl(2).
_PR_SET_PDEATHSIG = 1
# Of the arrays of an order, in bytes.
ALIGNMENT = 64
# Characters of a traceback that the parent logs.
MAX_TRACEBACK = 2000

# Work in a child: called with its conversation and the arguments of `Workers.run`.
Work = Callable[..., Answer]


@dataclass(frozen=True, slots=True)
class Order:
    """One piece of work. memory_bytes: its limit, beyond the memory of an idle child. cpu_seconds: its limit."""

    work: Work
    arguments: tuple[Any, ...]
    memory_bytes: int
    cpu_seconds: int


def pack(order: Order) -> list[channel.Part]:
    """Write an order as the parts of a message. Large arrays are parts of their own: they are not copied."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(order, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    # Padded, so that the first array is aligned; what follows a pickle is ignored.
    head += bytes(-(len(head) + 8 * (len(views) + 2)) % ALIGNMENT)
    sizes = [len(head), *(view.nbytes for view in views)]
    return [struct.pack(f"<{len(sizes) + 1}Q", len(sizes), *sizes), head, *views]


def unpack(content: bytes) -> Order:
    """Read an order from the content of a message."""
    (count,) = struct.unpack_from("<Q", content)
    sizes = struct.unpack_from(f"<{count}Q", content, 8)
    ends = list(accumulate(sizes, initial=8 * (count + 1)))
    view = memoryview(content)
    head, *buffers = (view[begin:end] for begin, end in pairwise(ends))
    order: Order = pickle.loads(head, buffers=buffers)
    return order


class Conversation:
    """The messages between work and the service before the answer. input: the data of `Workers.run`."""

    def __init__(self, end: socket.socket, given: memoryview) -> None:
        self.input = given
        self._end = end

    def ask(self, **facts: Any) -> Any:
        """Send facts to the service and return its reply; it may kill this process instead."""
        channel.send(self._end, to_bytes(Answer({"ask": facts})))
        message = channel.receive(self._end)
        if message is None:
            os._exit(0)
        return pickle.loads(message[0])

    def allow_memory(self, nbytes: int) -> None:
        """Limit the bytes that this process may allocate from now on."""
        limit_memory(nbytes)

    def share(self, nbytes: int) -> tuple[int, NDArray[np.uint8]]:
        """Allocate memory that the service will map; return its descriptor, and uint8 [nbytes]."""
        descriptor = os.memfd_create("polywand-pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, nbytes)
        return descriptor, np.frombuffer(mmap.mmap(descriptor, nbytes), np.uint8)


def run_child(end: socket.socket) -> NoReturn:
    """Run as a child: wait for an order, run it, answer, and end."""
    _set_up_process()
    try:
        message = channel.receive(end)
        if message is not None:
            _run_order(end, *message)
    except OSError:
        pass  # the service has closed the socket
    finally:
        os._exit(0)


def limit_memory(nbytes: int) -> None:
    """Limit what this process may allocate beyond what it has now, in bytes; a lower hard limit stays."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    _limit(resource.RLIMIT_AS, now + nbytes)


def _set_up_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(NICENESS)
    # C libraries write their messages there; the answer holds the error.
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
            score.write(str(OOM_SCORE))
    except OSError:
        pass  # a container may forbid it


def _run_order(end: socket.socket, content: bytes, descriptors: list[int]) -> None:
    order = unpack(content)
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime)
    _limit(resource.RLIMIT_CPU, spent + order.cpu_seconds)
    given = _map(descriptors[0]) if descriptors else memoryview(b"")
    limit_memory(order.memory_bytes)
    shared: list[int] = []
    try:
        answer = order.work(Conversation(end, given), *order.arguments)
        if "descriptor" in answer.facts:
            shared.append(answer.facts.pop("descriptor"))
    except (InvalidInputError, TooLargeError) as error:
        facts = {"field": error.field, "description": error.description, "reason": error.reason.name}
        answer = Answer({"error": type(error).__name__, **facts})
    except MemoryError:
        answer = Answer({"error": "MemoryError"})
    except PolywandError as error:
        answer = Answer({"error": "InternalError", "description": str(error)})
    except Exception:
        answer = Answer({"error": "InternalError", "description": traceback.format_exc()[-MAX_TRACEBACK:]})
    _limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
    channel.send(end, to_bytes(answer), descriptors=shared)


def _limit(kind: int, most: int) -> None:
    """Set a soft limit; the hard one stays as it is, since it cannot be raised again."""
    hard = resource.getrlimit(kind)[1]
    known = [limit for limit in (most, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(kind, (min(known, default=resource.RLIM_INFINITY), hard))


def _map(descriptor: int) -> memoryview:
    size = os.fstat(descriptor).st_size
    return memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ) if size else b"")
