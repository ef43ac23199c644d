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

from polywand_server import metrics
from polywand_server.errors import ModelFailedError, PolywandError
from polywand_server.triton.client import TritonClient
from polywand_server.triton.failures import RegionError
from polywand_server.triton.tensors import Array, Placed, TensorForm

FOLDER = Path("/dev/shm")
# Sizes are powers of two from here, so that models of variable input sizes find used slots again.
SMALLEST_SLOT_BYTES = 256 * 1024
ALIGNMENT_BYTES = 64
# How long after one another Triton is asked whether it still uses a retired slot: mostly it lets go at once.
RETIRE_POLLS_S = (0.01, 0.02, 0.04, 0.08, 0.16, *[0.25] * 240)
# How long the end waits for Triton to let go of what was retired.
CLOSE_S = 1.0
# How long nothing is asked of a file system that was full.
FULL_PAUSE_S = 60.0

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
    """The slots shared with one Triton.

    prefix: of the objects' names. max_bytes: of all slots together, retired ones included.
    """

    def __init__(self, client: TritonClient, prefix: str, max_bytes: int) -> None:
        self._client = client
        self._prefix = prefix
        self._max_bytes = max_bytes
        self._bytes = 0
        self._full_until = 0.0
        self._free: defaultdict[int, list[Slot]] = defaultdict(list)
        self._retiring: set[asyncio.Task[None]] = set()

    async def take(self, tensors: Iterable[TensorForm]) -> Slot | None:
        """Find a slot that holds these tensors; None when there is no room, or Triton cannot map our memory.

        Whoever takes it puts it back, or retires it. Raises what `TritonClient.register_region` does, but RegionError.
        """
        needed = sum(_aligned(form.nbytes) for form in tensors)
        nbytes = max(SMALLEST_SLOT_BYTES, 1 << (needed - 1).bit_length())
        if self._free[nbytes]:
            return self._free[nbytes].pop()
        if nbytes > self._max_bytes or time.monotonic() < self._full_until:
            return None
        if self._bytes + nbytes > self._max_bytes:
            self._retire_a_free_one()
            return None
        return await self._make(nbytes)

    def put_back(self, slot: Slot) -> None:
        """Let a slot be used again: its inference is answered."""
        self._free[slot.nbytes].append(slot)

    def retire(self, slot: Slot) -> None:
        """Never use a slot again: its inference failed or was abandoned, and Triton may still be at it."""
        task = asyncio.create_task(self._retire(slot), name=f"retire {slot.name}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def close(self) -> None:
        """Give up all slots; Triton is about to end, or forgets them now."""
        for slots in self._free.values():
            while slots:
                self.retire(slots.pop())
        if self._retiring:
            await asyncio.wait(self._retiring, timeout=CLOSE_S)
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)

    async def _make(self, nbytes: int) -> Slot | None:
        name = f"{self._prefix}{secrets.token_hex(8)}"
        try:
            slot = Slot(name, _create(name, nbytes))
        except OSError as error:  # mostly: the container's /dev/shm is small
            _log.warning(
                "%d MiB of shared memory are all there is (%s): what does not fit goes to Triton by gRPC",
                *(self._bytes >> 20, error.strerror),
            )
            self._full_until = time.monotonic() + FULL_PAUSE_S
            return None
        self._grow(nbytes)
        try:
            await self._client.register_region(name, nbytes)
        except ModelFailedError as error:
            self._grow(-nbytes)
            self._max_bytes = 0
            _log.warning("Triton refuses shared memory, so tensors go to it by gRPC (%s)", error)
            return None
        except RegionError as error:
            self._grow(-nbytes)
            self._max_bytes = 0
            _log.info("Triton does not share this host's memory, so tensors go to it by gRPC (%s)", error)
            return None
        except BaseException:
            self.retire(slot)
            raise
        finally:
            (FOLDER / name).unlink(missing_ok=True)
        return slot

    def _retire_a_free_one(self) -> None:
        """Make room for another size, so that one size which is no longer asked for does not keep it all."""
        largest = max((size for size, slots in self._free.items() if slots), default=None)
        if largest is not None:
            self.retire(self._free[largest].pop())

    async def _retire(self, slot: Slot) -> None:
        try:
            for pause_s in RETIRE_POLLS_S:
                try:
                    await self._client.unregister_region(slot.name)
                    return
                except PolywandError:  # in use, or Triton is away and takes its mapping with it
                    await asyncio.sleep(pause_s)
        finally:
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
