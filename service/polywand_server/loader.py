"""The loader: asks Triton, by explicit model control, to load what its repository holds and nobody has unloaded."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from polywand_server.errors import PolywandError
from polywand_server.triton.client import IndexEntry, TritonClient

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 2.0
LAST_RETRY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    pause_seconds: float
    retry_at: float


class ModelLoader:
    """Loads models in the background, each once in Triton's present life; failed ones again, less and less often.

    on_loaded: called after every load, whatever came of it.
    """

    def __init__(self, triton: TritonClient, on_loaded: Callable[[], None]) -> None:
        self._triton = triton
        self._on_loaded = on_loaded
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, _Failure] = {}

    def why_failed(self, name: str) -> str:
        """Say why the last load failed; empty when it did not."""
        failure = self._failures.get(name)
        return failure.reason if failure else ""

    def consider(self, index: Sequence[IndexEntry]) -> None:
        """Start to load what is in the index but not in service, and was not taken out of service by somebody."""
        for entry in index:
            # Triton gives a state to what it was ever asked to load, as long as the files could be read.
            never_loaded = not entry.state
            failed = entry.state == "UNAVAILABLE" and entry.name in self._failures
            if (never_loaded or failed) and entry.name not in self._loading and self._is_due(entry.name):
                task = asyncio.create_task(self._load(entry.name), name=f"load {entry.name}")
                self._loading[entry.name] = task

    def forget(self) -> None:
        """Start anew: Triton was away, and whatever comes back knows nothing."""
        self._failures.clear()

    async def close(self) -> None:
        """Stop waiting for loads; Triton finishes them by itself."""
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _is_due(self, name: str) -> bool:
        failure = self._failures.get(name)
        return failure is None or time.monotonic() >= failure.retry_at

    async def _load(self, name: str) -> None:
        log.info("loading model %s", name)
        try:
            await self._triton.load(name)
            self._failures.pop(name, None)
        except PolywandError as error:
            last = self._failures.get(name)
            pause = min(2 * last.pause_seconds, LAST_RETRY_SECONDS) if last else FIRST_RETRY_SECONDS
            self._failures[name] = _Failure(str(error), pause, time.monotonic() + pause)
            log.error("model %s did not load, next try in %g s: %s", name, pause, error)
        finally:
            del self._loading[name]
            self._on_loaded()
