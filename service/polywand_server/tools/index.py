"""Triton's repository index, corrected: it tells which folders Triton finds, and not what it has loaded."""

import asyncio
import logging
from dataclasses import dataclass, replace

from polywand_server.errors import ModelFailedError
from polywand_server.tools.folders import MAX_VERSION, is_model_name
from polywand_server.tools.loader import ModelLoader
from polywand_server.triton.client import NOT_FOUND, IndexEntry, ModelState, TritonClient

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Index:
    """The model versions in Triton, loaded or not.

    error: why the list may be incomplete; empty when it is complete. is_new: whether Triton was restarted since the
    last reading, which may be too quick to be noticed otherwise.
    """

    entries: tuple[IndexEntry, ...]
    error: str = ""
    is_new: bool = False

    @property
    def ready(self) -> frozenset[tuple[str, int | None]]:
        """Names and versions of what is in service."""
        return frozenset((entry.name, entry.version) for entry in self.entries if entry.is_ready)


class IndexReader:
    """Reads the index, and keeps what Triton still serves although it does not list it.

    Triton lists the folders that it finds. When a folder, or the whole repository, cannot be read for a moment, Triton
    still serves what it has loaded from there, and says so when it is asked for that version.
    """

    def __init__(self, triton: TritonClient, loader: ModelLoader) -> None:
        self._triton = triton
        self._loader = loader
        self._last = Index(())
        self._no_versions: set[tuple[str, int]] = set()

    async def read(self) -> Index:
        """Read the index.

        Raises:
            UnavailableError, DeadlineError: Triton is away
        """
        try:
            listed, problem = await self._triton.repository_index(), ""
        except ModelFailedError as error:
            listed, problem = [], str(error)
        if problem and problem != self._last.error:
            log.error("Triton does not list its models, so changes of them go unnoticed: %s", problem)
        entries = [entry for entry in listed if self._counts(entry)]
        names = {entry.name for entry in entries}
        missing = [entry for entry in self._last.entries if entry.name not in names]
        loaded = await asyncio.gather(*(self._is_loaded(entry) for entry in missing))
        for entry, is_loaded in zip(missing, loaded, strict=True):
            if is_loaded:
                entries.append(entry)
            elif problem:
                entries.append(replace(entry, state=ModelState.UNAVAILABLE, reason=NOT_FOUND))
        # Triton keeps a state for every model that it was told to load, until it ends.
        had_state = {entry.name for entry in self._last.entries if entry.state}
        has_state = {entry.name for entry in entries if entry.state}
        self._last = Index(tuple(entries), problem, is_new=bool((had_state & names) - has_state))
        return self._last

    def _counts(self, entry: IndexEntry) -> bool:
        """Whether an entry is of a model, and of a version that the contract's type can hold."""
        if not is_model_name(entry.name) or self._loader.is_not_a_model(entry):
            return False
        if entry.version is None or 0 < entry.version <= MAX_VERSION:
            return True
        if (entry.name, entry.version) not in self._no_versions:
            self._no_versions.add((entry.name, entry.version))
            text = "version %d of model %s is ignored: versions are from 1 to %d"
            log.warning(text, entry.version, entry.name, MAX_VERSION)
        return False

    async def _is_loaded(self, entry: IndexEntry) -> bool:
        if not entry.is_ready or entry.version is None:
            return False
        return await self._triton.model_ready(entry.name, entry.version)
