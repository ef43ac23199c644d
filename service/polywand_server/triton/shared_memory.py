"""Shared memory between this process and a Triton on the same host: slots, each for one inference at a time.

The life of a slot: made and registered with Triton, then unlinked, so that whatever happens to either process nothing
stays behind; taken and put back, again and again; retired when an inference did not end well. Then Triton may still
read or write it, so it serves nobody else, and is given up when Triton says that no request uses it.
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
from polywand_server.triton.tensors import Array, Placed, TensorForm

FOLDER = Path("/dev/shm")
# Sizes are powers of two from here, so that models of variable input sizes find used slots again.
SMALLEST_SLOT_BYTES = 256 * 1024
ALIGNMENT_BYTES = 64
# How long after one another Triton is asked whether it still uses retired slots: mostly it lets go at once.
FIRST_POLL_S, LONGEST_POLL_S = 0.01, 0.25
# And how long a Triton that does not answer is left alone.
AWAY_POLL_S = 1.0
# What is still in use then, by a model that hangs, is not counted any more.
RETIRED_S = 60.0
# How long the end waits for Triton to let go of what was retired.
CLOSE_S = 1.0
# After a failure nothing new is shared for so long, twice as long after the next one, until one succeeds.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
# How long an inference waits for a new slot: sending a crop takes a few milliseconds.
PATIENCE_S = 0.25

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """A shared memory object of its own, mapped here. memory: uint8 [nbytes]."""

    name: str
    memory: NDArray[np.uint8] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.memory.nbytes

    def place(self, inputs: Mapping[str, TensorForm], outputs: Mapping[str, TensorForm]) -> Placed:
        """Lay out tensors, one after another."""
        forms = {**inputs, **outputs}
        ends = accumulate((_aligned(form.nbytes) for form in forms.values()), initial=0)
        offsets = dict(zip(forms, ends, strict=False))  # the last end begins nothing

        def views(of: Mapping[str, TensorForm]) -> dict[str, Array]:
            return {name: self._view(offsets[name], form) for name, form in of.items()}

        return Placed(self.name, views(inputs), views(outputs), offsets)

    def _view(self, offset: int, form: TensorForm) -> NDArray[Any]:
        part: NDArray[Any] = self.memory[offset : offset + form.nbytes].view(form.numpy_dtype)
        return part.reshape(form.shape)


class SharedMemory:
    """The slots shared with one Triton. Where sharing fails, tensors are sent, and it is tried again later.

    prefix: of the objects' names. max_bytes: of all slots together, retired ones included.
    """

    def __init__(self, client: TritonClient, prefix: str, max_bytes: int) -> None:
        self._client = client
        self._prefix = prefix
        self._max_bytes = max_bytes
        self._bytes = 0
        self._failures = 0
        self._paused_until = 0.0
        self._free: defaultdict[int, list[Slot]] = defaultdict(list)
        self._making: set[asyncio.Task[Slot | None]] = set()
        # With the time, by time.monotonic(), from which it is no longer counted.
        self._retired: dict[Slot, float] = {}
        self._giving_up: asyncio.Task[None] | None = None
        self._poll_s = FIRST_POLL_S

    async def take(self, tensors: Iterable[TensorForm]) -> Slot | None:
        """Find a slot that holds these tensors; None when there is no room, or it cannot be shared now.

        Whoever takes it puts it back, or retires it.
        """
        needed = sum(_aligned(form.nbytes) for form in tensors)
        nbytes = max(SMALLEST_SLOT_BYTES, 1 << (needed - 1).bit_length())
        if self._free[nbytes]:
            return self._free[nbytes].pop()
        if nbytes > self._max_bytes or time.monotonic() < self._paused_until:
            return None
        if self._bytes + nbytes > self._max_bytes:
            self._retire_a_free_one()
            return None
        # A task of its own: whoever asked may leave, and Triton would map what nobody knows of.
        making = asyncio.create_task(self._make(nbytes), name="share memory with Triton")
        self._making.add(making)
        making.add_done_callback(self._making.discard)
        try:
            done, _ = await asyncio.wait((making,), timeout=PATIENCE_S)
        except asyncio.CancelledError:
            making.add_done_callback(self._keep)
            raise
        if not done:
            making.add_done_callback(self._keep)
            return None
        return making.result()

    def put_back(self, slot: Slot) -> None:
        """Let a slot be used again: its inference is answered."""
        self._free[slot.nbytes].append(slot)

    def retire(self, slot: Slot) -> None:
        """Never use a slot again: its inference failed or was abandoned, and Triton may still be at it."""
        self._retired[slot] = time.monotonic() + RETIRED_S
        self._poll_s = FIRST_POLL_S
        if self._giving_up is None or self._giving_up.done():
            self._giving_up = asyncio.create_task(self._give_up_retired(), name="give up shared memory")

    async def close(self) -> None:
        """Give up all slots; Triton is about to end, or forgets them now."""
        if self._making:
            await asyncio.wait(self._making, timeout=CLOSE_S)
        for slots in self._free.values():
            while slots:
                self.retire(slots.pop())
        if self._giving_up is not None:
            await asyncio.wait((self._giving_up,), timeout=CLOSE_S)
        left = [task for task in (*self._making, self._giving_up) if task is not None]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for slot in [*self._retired]:
            self._forget(slot)

    async def _make(self, nbytes: int) -> Slot | None:
        """Never raises: memory that is not shared is only slower."""
        name = f"{self._prefix}{secrets.token_hex(8)}"
        self._grow(nbytes)
        try:
            slot = Slot(name, await asyncio.to_thread(_create, name, nbytes))
        except OSError as error:  # mostly: the container's /dev/shm is small
            self._grow(-nbytes)
            self._pause(f"{self._bytes >> 20} MiB of shared memory are all there is ({error.strerror})")
            return None
        try:
            await self._client.register_region(name, nbytes)
        except (RegionError, ModelFailedError) as error:
            self._grow(-nbytes)
            self._pause(f"Triton does not map this host's memory ({error})")
            return None
        except PolywandError as error:
            self.retire(slot)  # it may have mapped it
            self._pause(str(error))
            return None
        finally:
            (FOLDER / name).unlink(missing_ok=True)
        self._failures = 0
        return slot

    def _keep(self, making: "asyncio.Task[Slot | None]") -> None:
        """Let others use a slot whose first user did not wait for it."""
        slot = None if making.cancelled() else making.result()
        if slot is not None:
            self.put_back(slot)

    def _pause(self, why: str) -> None:
        seconds = min(FIRST_PAUSE_S * 2.0**self._failures, LONGEST_PAUSE_S)
        self._paused_until = time.monotonic() + seconds
        if not self._failures:  # where it never works, saying so once is enough
            _log.warning("tensors go to Triton by gRPC, as long as memory cannot be shared: %s", why)
        self._failures += 1

    def _retire_a_free_one(self) -> None:
        """Make room for another size, so that one size which is no longer asked for does not keep it all."""
        largest = max((size for size, slots in self._free.items() if slots), default=None)
        if largest is not None:
            self.retire(self._free[largest].pop())

    async def _give_up_retired(self) -> None:
        """Have Triton forget retired slots, one after another, until none is left."""
        while self._retired:
            answers = await self._ask_for_retired()
            if self._retired:
                await asyncio.sleep(self._poll_s if answers else AWAY_POLL_S)
                self._poll_s = min(2 * self._poll_s, LONGEST_POLL_S)

    async def _ask_for_retired(self) -> bool:
        """Ask for each once; False when Triton does not answer. A new one has forgotten them, and says so."""
        for slot, until in [*self._retired.items()]:
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
        del self._retired[slot]
        self._grow(-slot.nbytes)

    def _grow(self, nbytes: int) -> None:
        self._bytes += nbytes
        metrics.SHARED_MEMORY.inc(nbytes)


def is_on_this_host(url: str) -> bool:
    """Whether a Triton at this URL may be able to map this host's shared memory; asking it tells (see `take`)."""
    host = url.rpartition(":")[0].strip("[]")
    return url.startswith("unix:") or host in ("localhost", "::1") or host.startswith("127.")


def _create(name: str, nbytes: int) -> NDArray[np.uint8]:
    descriptor = os.open(FOLDER / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        # Takes the memory now, or says that there is none: touching a mapping of what is not there would be a SIGBUS.
        os.posix_fallocate(descriptor, 0, nbytes)
        return np.frombuffer(mmap.mmap(descriptor, nbytes), np.uint8)
    except OSError:
        (FOLDER / name).unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
