"""Memory: the estimates of a stream's prompts, so that a click extends the last one, and undo finds an earlier one."""

import hashlib
import struct
import time
from collections import OrderedDict

from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.prompt import Prompt
from polywand_server.ops import metrics

# Memory of a key and its entry (measured, rounded up).
KEY_BYTES = 1024

# Object, model, version, and the digest of the prompt's seed, box and points.
Key = tuple[str, str, int, bytes]

# A memory that was not used for this long is idle: its estimates are dropped before those of active streams.
IDLE_SECONDS = 30.0


class MemoryBudget:
    """The limits of all memories: max_bytes of each, and total_bytes together.

    Past the total, idle memories drop estimates first, the least recently used memory before the others; then the
    largest does. So a stream in use keeps its share however many there are.
    """

    def __init__(self, max_bytes: int, total_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._total_bytes = total_bytes
        self._bytes = 0
        self._holding: set[EstimateMemory] = set()

    def grow(self, memory: "EstimateMemory", nbytes: int) -> None:
        """Add bytes to a memory's count; a negative number removes some."""
        self._bytes += nbytes
        if memory.nbytes:
            self._holding.add(memory)
        else:
            self._holding.discard(memory)

    def trim(self) -> None:
        """Drop estimates until the total limit holds."""
        while self._bytes > self._total_bytes:
            now = time.monotonic()
            idle = [memory for memory in self._holding if now - memory.used_at > IDLE_SECONDS]
            if idle:
                min(idle, key=lambda memory: memory.used_at).drop_one()
            else:
                max(self._holding, key=lambda memory: memory.nbytes).drop_one()


class EstimateMemory:
    """Keeps estimates by prompt; past its limit, the least recently used are dropped."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self.nbytes = 0
        self.used_at = time.monotonic()
        self._estimates: OrderedDict[Key, Estimate] = OrderedDict()
        self._is_closed = False

    def find(self, key: Key) -> Estimate | None:
        """Find the estimate of a prompt, or of the beginning of one."""
        found = self._estimates.get(key)
        if found is not None:
            self._estimates.move_to_end(key)
            self.used_at = time.monotonic()
        return found

    def remember(self, key: Key, estimate: Estimate) -> None:
        """Keep the estimate that a prompt, or its beginning, led to."""
        if self._is_closed:
            return
        replaced = self._estimates.pop(key, None)
        self._estimates[key] = estimate
        self._grow(_cost(estimate) - (_cost(replaced) if replaced else 0))
        self.used_at = time.monotonic()
        while self.nbytes > self._budget.max_bytes:
            self.drop_one()
        self._budget.trim()

    def drop_one(self) -> None:
        """Drop the least recently used estimate."""
        self._grow(-_cost(self._estimates.popitem(last=False)[1]))

    def forget(self, object_id: str | None) -> None:
        """Drop the estimates of one object, or with None all."""
        for key in [key for key in self._estimates if object_id is None or key[0] == object_id]:
            self._grow(-_cost(self._estimates.pop(key)))

    def close(self) -> None:
        """Drop all estimates, and keep no more."""
        self._is_closed = True
        self._estimates.clear()
        self._grow(-self.nbytes)

    def _grow(self, nbytes: int) -> None:
        self.nbytes += nbytes
        self._budget.grow(self, nbytes)
        metrics.MASK_MEMORY.inc(nbytes)


def seed_key(prompt: Prompt, version: int) -> Key:
    """The key of a prompt's seed by itself, without its points and its box."""
    return _key(prompt, version, _digest_of_seed(prompt))


def keys_of(prompt: Prompt, version: int) -> list[Key]:
    """The keys of a prompt's beginnings: with none of its points, with the first one, ... with all of them.

    version: the resolved one, since version 0 may mean another one later.
    """
    state = _digest_of_seed(prompt)
    if prompt.box is not None:
        state.update(struct.pack("<4d", prompt.box.x0, prompt.box.y0, prompt.box.x1, prompt.box.y1))
    keys = [_key(prompt, version, state)]
    for point in prompt.points:
        state.update(struct.pack("<ddb", point.x, point.y, point.label))
        keys.append(_key(prompt, version, state))
    return keys


def _digest_of_seed(prompt: Prompt) -> "hashlib.blake2b":
    # The seed's digest has one length, so that nothing that follows can be taken for a part of it.
    seed = prompt.seed.digest.encode() if prompt.seed is not None else b""
    return hashlib.blake2b(struct.pack("<b", len(seed)) + seed, digest_size=16)


def _key(prompt: Prompt, version: int, state: "hashlib.blake2b") -> Key:
    return prompt.object_id, prompt.model, version, state.digest()


def _cost(estimate: Estimate) -> int:
    return KEY_BYTES + estimate.nbytes
