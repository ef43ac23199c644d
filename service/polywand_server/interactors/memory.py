"""Memory: the probability maps of a stream's prompts, so that adding a click feeds back and undo finds its way."""

from collections import OrderedDict

from polywand_server import metrics
from polywand_server.interactors.prompt import Box, Point, Prompt
from polywand_server.regions import ProbabilityMap

_Key = tuple[str, str, int, Box | None, tuple[Point, ...]]


class MaskMemory:
    """Remembers maps by what was prompted; past max_bytes the least recently used go first.

    Every method takes the version that the prompt was resolved to, since version 0 may mean another one tomorrow.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._maps: OrderedDict[_Key, ProbabilityMap] = OrderedDict()

    def exact(self, prompt: Prompt, version: int) -> ProbabilityMap | None:
        """Find the map of the very same points and box: an undo, or a change of output options only."""
        return self._find(prompt, version, len(prompt.points))

    def extended(self, prompt: Prompt, version: int) -> ProbabilityMap | None:
        """Find the map of the longest prompt that this one adds points to."""
        for count in range(len(prompt.points) - 1, -1, -1):
            found = self._find(prompt, version, count)
            if found is not None:
                return found
        return None

    def remember(self, prompt: Prompt, version: int, probabilities: ProbabilityMap) -> None:
        """Keep the map that a prompt led to."""
        key = _key(prompt, version, len(prompt.points))
        replaced = self._maps.pop(key, None)
        self._maps[key] = probabilities
        self._grow(probabilities.values.nbytes - (replaced.values.nbytes if replaced else 0))
        while self._bytes > self._max_bytes:
            _, oldest = self._maps.popitem(last=False)
            self._grow(-oldest.values.nbytes)

    def clear(self) -> None:
        """Forget everything."""
        self._maps.clear()
        self._grow(-self._bytes)

    def _find(self, prompt: Prompt, version: int, count: int) -> ProbabilityMap | None:
        key = _key(prompt, version, count)
        found = self._maps.get(key)
        if found is not None:
            self._maps.move_to_end(key)
        return found

    def _grow(self, nbytes: int) -> None:
        self._bytes += nbytes
        metrics.MASK_MEMORY.inc(nbytes)


def _key(prompt: Prompt, version: int, count: int) -> _Key:
    return prompt.object_id, prompt.model, version, prompt.box, prompt.points[:count]
