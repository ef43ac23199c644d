"""What Triton has: its repository index, corrected where that tells of folders instead of what is loaded."""

import asyncio
import logging
from dataclasses import dataclass, replace

from polywand_server.errors import ModelFailedError
from polywand_server.tools.folders import is_model_name
from polywand_server.tools.loader import READY, UNAVAILABLE, ModelLoader
from polywand_server.triton.client import IndexEntry, TritonClient

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Index:
    """The versions that Triton has, loaded or not.

    why_not: why it does not tell of others; empty when it does. is_new: whether it has been replaced since it was asked
    last, which may be too quick to be noticed otherwise.
    """

    entries: tuple[IndexEntry, ...]
    why_not: str = ""
    is_new: bool = False

    @property
    def ready(self) -> frozenset[tuple[str, int | None]]:
        """Names and versions of what is in service."""
        return frozenset((entry.name, entry.version) for entry in self.entries if entry.state == READY)


class IndexReader:
    """Reads the index, again and again.

    Triton lists the folders that it finds. One that it does not find, or a repository that it cannot read for a moment,
    takes nothing out of service: what it had loaded, it still has, and says so when it is asked for that alone.
    """

    def __init__(self, triton: TritonClient, loader: ModelLoader) -> None:
        self._triton = triton
        self._loader = loader
        self._last = Index(())

    async def read(self) -> Index:
        """Read it.

        Raises:
            UnavailableError, DeadlineError: Triton is away
        """
        try:
            listed, why_not = await self._triton.repository_index(), ""
        except ModelFailedError as error:
            listed, why_not = [], str(error)
        if why_not and why_not != self._last.why_not:
            log.error("Triton does not list its models, so what comes and goes there is not seen: %s", why_not)
        entries = [entry for entry in listed if is_model_name(entry.name) and not self._loader.is_no_model(entry)]
        names = {entry.name for entry in entries}
        missing = [entry for entry in self._last.entries if entry.name not in names]
        there = await asyncio.gather(*(self._is_loaded(entry) for entry in missing))
        for entry, is_loaded in zip(missing, there, strict=True):
            if is_loaded:
                entries.append(entry)
            elif why_not:
                entries.append(replace(entry, state=UNAVAILABLE, reason="Triton does not find it now"))
        # Triton keeps a state for whatever it was told to load, as long as it lives.
        had_state = {entry.name for entry in self._last.entries if entry.state}
        has_state = {entry.name for entry in entries if entry.state}
        self._last = Index(tuple(entries), why_not, is_new=bool((had_state & names) - has_state))
        return self._last

    async def _is_loaded(self, entry: IndexEntry) -> bool:
        if entry.state != READY or entry.version is None:
            return False
        return await self._triton.model_ready(entry.name, entry.version)
