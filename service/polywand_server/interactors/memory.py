"""Memory: the estimates of a stream's prompts, so that adding a click feeds back and undo finds its way."""

from collections import OrderedDict

from polywand_server import metrics
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.prompt import POINT_BYTES, PROMPT_BYTES, Box, Point, Prompt

_Key = tuple[str, str, int, str, Box | None, tuple[Point, ...]]


class Allowance:
    """How much each of all open memories may take: max_bytes, or less where many share total_bytes."""

    def __init__(self, max_bytes: int, total_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._total_bytes = total_bytes
        self._sharers: set[EstimateMemory] = set()

    @property
    def nbytes(self) -> int:
        """Of one memory, now."""
        return min(self._max_bytes, self._total_bytes // max(1, len(self._sharers)))

    def join(self, memory: "EstimateMemory") -> None:
        """One memory more: all others make room."""
        self._sharers.add(memory)
        for sharer in self._sharers:
            sharer.trim()

    def leave(self, memory: "EstimateMemory") -> None:
        """One memory less."""
        self._sharers.discard(memory)


class EstimateMemory:
    """Remembers estimates by what was prompted; past its allowance the least recently used go first.

    Every method takes the version that the prompt was resolved to, since version 0 may mean another one tomorrow.
    """

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._bytes = 0
        self._estimates: OrderedDict[_Key, Estimate] = OrderedDict()
        allowance.join(self)

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
        self._grow(-self._bytes)

    def close(self) -> None:
        """Forget everything, and leave the allowance to others."""
        self.clear()
        self._allowance.leave(self)

    def trim(self) -> None:
        """Forget what is over the allowance."""
        while self._bytes > self._allowance.nbytes:
            self._grow(-_cost(*self._estimates.popitem(last=False)))

    def _keep(self, key: _Key, estimate: Estimate) -> None:
        replaced = self._estimates.pop(key, None)
        self._estimates[key] = estimate
        self._grow(_cost(key, estimate) - (_cost(key, replaced) if replaced else 0))
        self.trim()

    def _find(self, key: _Key) -> Estimate | None:
        found = self._estimates.get(key)
        if found is not None:
            self._estimates.move_to_end(key)
        return found

    def _grow(self, nbytes: int) -> None:
        self._bytes += nbytes
        metrics.MASK_MEMORY.inc(nbytes)


def _key(prompt: Prompt, version: int, box: Box | None, points: int) -> _Key:
    seed = prompt.seed.digest if prompt.seed is not None else ""
    return prompt.object_id, prompt.model, version, seed, box, prompt.points[:points]


def _cost(key: _Key, estimate: Estimate) -> int:
    return PROMPT_BYTES + POINT_BYTES * len(key[-1]) + estimate.nbytes
