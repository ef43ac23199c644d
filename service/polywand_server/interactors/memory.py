"""Memory: the estimates of a stream's prompts, so that adding a click feeds back and undo finds its way."""

import time
from collections import OrderedDict

from polywand_server import metrics
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.prompt import POINT_BYTES, PROMPT_BYTES, Box, Point, Prompt

_Key = tuple[str, str, int, str, Box | None, tuple[Point, ...]]


# A memory that was not used for so long belongs to an idle stream: it forgets before those of active ones do.
IDLE_SECONDS = 30.0


class Allowance:
    """How much all memories may take: each max_bytes, and together total_bytes.

    Where those are not enough, idle memories forget first, the one that was not used for longest before the others;
    then the largest. So a stream that somebody works on keeps its share however many there are, and one that takes no
    bytes takes none from the others.
    """

    def __init__(self, max_bytes: int, total_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._total_bytes = total_bytes
        self._bytes = 0
        self._holding: set[EstimateMemory] = set()

    def grow(self, memory: "EstimateMemory", nbytes: int) -> None:
        """Count what a memory has taken, or given back."""
        self._bytes += nbytes
        if memory.nbytes:
            self._holding.add(memory)
        else:
            self._holding.discard(memory)

    def trim(self) -> None:
        """Have memories forget until all keep within the total."""
        while self._bytes > self._total_bytes:
            now = time.monotonic()
            idle = [memory for memory in self._holding if now - memory.used_at > IDLE_SECONDS]
            if idle:
                min(idle, key=lambda memory: memory.used_at).forget_one()
            else:
                max(self._holding, key=lambda memory: memory.nbytes).forget_one()


class EstimateMemory:
    """Remembers estimates by what was prompted; past its allowance the least recently used go first.

    Every method takes the version that the prompt was resolved to, since version 0 may mean another one tomorrow.
    """

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self.nbytes = 0
        self.used_at = time.monotonic()
        self._estimates: OrderedDict[_Key, Estimate] = OrderedDict()

    def exact(self, prompt: Prompt, version: int) -> Estimate | None:
        """Find the estimate of the very same points, box and seed: an undo, or a change of output options only."""
        return self._find(_key(prompt, version, prompt.box, len(prompt.points)))

    def extended(self, prompt: Prompt, version: int) -> Estimate | None:
        """Find the estimate of the longest prompt that this one adds points to, or of its seed alone."""
        for count in range(len(prompt.points) - 1, -1, -1):
            found = self._find(_key(prompt, version, prompt.box, count))
            if found is not None:
                return found
        return self._find(_key(prompt, version, None, 0)) if prompt.seed is not None else None

    def remember(self, prompt: Prompt, version: int, estimate: Estimate) -> None:
        """Keep the estimate that a prompt led to."""
        self._keep(_key(prompt, version, prompt.box, len(prompt.points)), estimate)

    def remember_seed(self, prompt: Prompt, version: int, estimate: Estimate) -> None:
        """Keep what a prompt's seed is by itself, without its points and its box."""
        self._keep(_key(prompt, version, None, 0), estimate)

    def clear(self) -> None:
        """Forget everything."""
        self._estimates.clear()
        self._grow(-self.nbytes)

    def forget_one(self) -> None:
        """Forget the estimate that was not used for longest."""
        self._grow(-_cost(*self._estimates.popitem(last=False)))

    def _keep(self, key: _Key, estimate: Estimate) -> None:
        replaced = self._estimates.pop(key, None)
        self._estimates[key] = estimate
        self._grow(_cost(key, estimate) - (_cost(key, replaced) if replaced else 0))
        self.used_at = time.monotonic()
        while self.nbytes > self._allowance.max_bytes:
            self.forget_one()
        self._allowance.trim()

    def _find(self, key: _Key) -> Estimate | None:
        found = self._estimates.get(key)
        if found is not None:
            self._estimates.move_to_end(key)
            self.used_at = time.monotonic()
        return found

    def _grow(self, nbytes: int) -> None:
        self.nbytes += nbytes
        self._allowance.grow(self, nbytes)
        metrics.MASK_MEMORY.inc(nbytes)


def _key(prompt: Prompt, version: int, box: Box | None, points: int) -> _Key:
    seed = prompt.seed.digest if prompt.seed is not None else ""
    return prompt.object_id, prompt.model, version, seed, box, prompt.points[:points]


def _cost(key: _Key, estimate: Estimate) -> int:
    return PROMPT_BYTES + POINT_BYTES * len(key[-1]) + estimate.nbytes
