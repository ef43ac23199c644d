"""Shared memory between this process and a Triton on the same host: slots, each for one inference at a time.

The life of a slot: created and registered with Triton, then unlinked, so that no file is left however either process
ends; acquired and released, again and again; discarded when an inference failed. Triton may still read or write a
discarded slot, so it is not used again, and Triton is asked to unregister it until no request uses it.
"""

import asyncio
import logging
import mmap
import os
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polywand_server.errors import ModelFailedError, PolywandError
from polywand_server.ops import metrics
from polywand_server.triton.client import TritonClient
from polywand_server.triton.failures import RegionError
from polywand_server.triton.tensors import Array, SharedTensors, TensorSpec

FOLDER = Path("/dev/shm")
# Sizes are powers of two from here, so that slots are used again by models of variable input sizes.
SMALLEST_SLOT_BYTES = 256 * 1024
ALIGNMENT_BYTES = 64
# Between two attempts to unregister discarded slots; mostly the first one succeeds.
FIRST_POLL_S, LONGEST_POLL_S = 0.01, 0.25
# The same while Triton does not answer.
AWAY_POLL_S = 1.0
# After this time a discarded slot is no longer counted, even if a model that hangs still uses it.
DISCARDED_S = 60.0
# How long `close` waits for Triton to unregister the slots.
CLOSE_S = 1.0
# After a failure no slot is created for this long; the pause doubles with each further failure.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
# How long an inference waits for a new slot; sending a crop by gRPC instead takes a few milliseconds.
CREATE_TIMEOUT_S = 0.25

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One shared memory object, mapped into this process. memory: uint8 [nbytes]."""

    name: str
    memory: NDArray[np.uint8] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.memory.nbytes

    def lay_out(self, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]) -> SharedTensors:
        """Lay out tensors, one after another."""
        specs = {**inputs, **outputs}
        starts = accumulate((_aligned(spec.nbytes) for spec in specs.values()), initial=0)
        offsets = dict(zip(specs, starts, strict=False))  # the last one is the end

        def views(of: Mapping[str, TensorSpec]) -> dict[str, Array]:
            return {name: self._view(offsets[name], spec) for name, spec in of.items()}

        return SharedTensors(self.name, views(inputs), views(outputs), offsets)

    def _view(self, offset: int, spec: TensorSpec) -> NDArray[Any]:
        part: NDArray[Any] = self.memory[offset : offset + spec.nbytes].view(spec.numpy_dtype)
        return part.reshape(spec.shape)


class SharedMemory:
    """The slots shared with one Triton. While sharing fails, tensors are sent by gRPC, and it is tried again later.

    prefix: of the objects' names. max_bytes: of all slots together, discarded ones included.
    """

    def __init__(self, client: TritonClient, prefix: str, max_bytes: int) -> None:
        self._client = client
        self._prefix = prefix
        self._max_bytes = max_bytes
        self._bytes = 0
        self._failures = 0
        self._paused_until = 0.0
        self._free: defaultdict[int, list[Slot]] = defaultdict(list)
        self._creating: set[asyncio.Task[Slot | None]] = set()
        # Each with the time, by time.monotonic(), from which it is no longer counted.
        self._discarded: dict[Slot, float] = {}
        self._unregistering: asyncio.Task[None] | None = None
        self._poll_s = FIRST_POLL_S

    async def acquire(self, tensors: Iterable[TensorSpec]) -> Slot | None:
        """Return a slot for these tensors; None if max_bytes is reached, or memory cannot be shared now.

        The caller has to `release` or to `discard` it.
        """
        needed = sum(_aligned(spec.nbytes) for spec in tensors)
        nbytes = max(SMALLEST_SLOT_BYTES, 1 << (needed - 1).bit_length())
        if self._free[nbytes]:
            return self._free[nbytes].pop()
        if nbytes > self._max_bytes or time.monotonic() < self._paused_until:
            return None
        if self._bytes + nbytes > self._max_bytes:
            self._discard_a_free_slot()
            return None
        # In a task of its own: if the caller were cancelled, Triton would keep a region that is in no list here.
        creating = asyncio.create_task(self._create(nbytes), name="share memory with Triton")
        self._creating.add(creating)
        creating.add_done_callback(self._creating.discard)
        try:
            done, _ = await asyncio.wait((creating,), timeout=CREATE_TIMEOUT_S)
        except asyncio.CancelledError:
            creating.add_done_callback(self._keep)
            raise
        if not done:
            creating.add_done_callback(self._keep)
            return None
        return creating.result()

    def release(self, slot: Slot) -> None:
        """Let a slot be used again: its inference was answered."""
        self._free[slot.nbytes].append(slot)

    def discard(self, slot: Slot) -> None:
        """Never use a slot again: its inference failed or was cancelled, and Triton may still use it."""
        self._discarded[slot] = time.monotonic() + DISCARDED_S
        self._poll_s = FIRST_POLL_S
        if self._unregistering is None or self._unregistering.done():
            self._unregistering = asyncio.create_task(self._unregister_discarded(), name="unregister shared memory")

    async def close(self) -> None:
        """Unregister all slots, as far as Triton still answers."""
        if self._creating:
            await asyncio.wait(self._creating, timeout=CLOSE_S)
        for slots in self._free.values():
            while slots:
                self.discard(slots.pop())
        if self._unregistering is not None:
            await asyncio.wait((self._unregistering,), timeout=CLOSE_S)
        left = [task for task in (*self._creating, self._unregistering) if task is not None]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for slot in [*self._discarded]:
            self._forget(slot)

    async def _create(self, nbytes: int) -> Slot | None:
        """Create and register a slot; None if that fails, since sending tensors by gRPC is only slower."""
        name = f"{self._prefix}{secrets.token_hex(8)}"
        self._grow(nbytes)
        try:
            slot = Slot(name, await asyncio.to_thread(_map_new, name, nbytes))
        except OSError as error:  # mostly: the container's /dev/shm is small
            self._grow(-nbytes)
            self._pause(f"/dev/shm has room for no more than {self._bytes >> 20} MiB ({error.strerror})")
            return None
        try:
            await self._client.register_region(name, nbytes)
        except (RegionError, ModelFailedError) as error:
            self._grow(-nbytes)
            self._pause(f"Triton cannot map this host's shared memory ({error})")
            return None
        except PolywandError as error:
            self.discard(slot)  # Triton may have mapped it
            self._pause(str(error))
            return None
        finally:
            (FOLDER / name).unlink(missing_ok=True)
        self._failures = 0
        return slot

    def _keep(self, creating: "asyncio.Task[Slot | None]") -> None:
        """Release a slot that was created too late for the caller of `acquire`."""
        slot = None if creating.cancelled() else creating.result()
        if slot is not None:
            self.release(slot)

    def _pause(self, reason: str) -> None:
        seconds = min(FIRST_PAUSE_S * 2.0**self._failures, LONGEST_PAUSE_S)
        self._paused_until = time.monotonic() + seconds
        if not self._failures:  # only the first of several failures in a row is logged
            _log.warning("tensors are sent to Triton by gRPC while memory cannot be shared: %s", reason)
        self._failures += 1

    def _discard_a_free_slot(self) -> None:
        """Make room for another size, so that sizes which are no longer used do not keep all memory."""
        largest = max((size for size, slots in self._free.items() if slots), default=None)
        if largest is not None:
            self.discard(self._free[largest].pop())

    async def _unregister_discarded(self) -> None:
        """Unregister discarded slots, one after another, until none is left."""
        while self._discarded:
            answers = await self._try_to_unregister()
            if self._discarded:
                await asyncio.sleep(self._poll_s if answers else AWAY_POLL_S)
                self._poll_s = min(2 * self._poll_s, LONGEST_POLL_S)

    async def _try_to_unregister(self) -> bool:
        """Try each slot once; False when Triton does not answer. A restarted Triton knows none of them."""
        for slot, until in [*self._discarded.items()]:
            try:
                await self._client.unregister_region(slot.name)
            except ModelFailedError:  # in use
                if time.monotonic() < until:
                    continue
            except PolywandError:
                if time.monotonic() < until:
                    return False
            self._forget(slot)
        return True

    def _forget(self, slot: Slot) -> None:
        del self._discarded[slot]
        self._grow(-slot.nbytes)

    def _grow(self, nbytes: int) -> None:
        self._bytes += nbytes
        metrics.SHARED_MEMORY.inc(nbytes)


def is_on_this_host(url: str) -> bool:
    """Whether a Triton at this URL may be able to map this host's shared memory; `acquire` finds out."""
    host = url.rpartition(":")[0].strip("[]")
    return url.startswith("unix:") or host in ("localhost", "::1") or host.startswith("127.")


def _map_new(name: str, nbytes: int) -> NDArray[np.uint8]:
    descriptor = os.open(FOLDER / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        # Reserves the memory now, or fails: without it, writing to the mapping could end this process with SIGBUS.
        os.posix_fallocate(descriptor, 0, nbytes)
        return np.frombuffer(mmap.mmap(descriptor, nbytes), np.uint8)
    except OSError:
        (FOLDER / name).unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
