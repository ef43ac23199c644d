"""Models whose process died, and how they come back."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from polywand_server.errors import PolywandError

FIRST_RETRY_S, LAST_RETRY_S = 2.0, 60.0  # pauses between loads that fail; each is twice the one before

EndProcesses = Callable[[str, str | None], object]

_log = logging.getLogger(__name__)


def leave_alone(model: str, process: str | None) -> None:
    """End no process: those of a Triton elsewhere are out of reach."""


class Entry(Protocol):
    """See `client.IndexEntry`."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def state(self) -> str: ...  # noqa: D102

    @property
    def reason(self) -> str: ...  # noqa: D102


class Repository(Protocol):
    """What is asked of Triton; see `client.TritonClient`."""

    async def load(self, name: str) -> None: ...  # noqa: D102

    async def unload(self, name: str) -> None: ...  # noqa: D102

    async def repository_index(self) -> Sequence[Entry]: ...  # noqa: D102


class Revivals:
    """Loads models again whose process died; Triton itself calls them READY and fails every request, a second each.

    A process that Triton calls dead may be alive, and only have had no share of the processor for a second or two. When
    it goes on, Triton 2.51 is ended by SIGSEGV or takes its late answer for that to the next request. So it is ended at
    once. That needs somebody to hear of it: when the only request has been cancelled meanwhile, Triton ends, and is
    restarted.

    end_processes: of a model, with the name of one of them where it is known; called at once.
    """

    def __init__(self, repository: Repository, end_processes: EndProcesses) -> None:
        self._repository = repository
        self._end_processes = end_processes
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._taken_out_at: dict[str, float] = {}

    def is_under_way(self, model: str) -> bool:
        """Whether the model is being loaded again."""
        return model in self._under_way

    def begin(self, model: str, process: str | None, asked_at: float) -> None:
        """A request that was sent at `asked_at` (`time.monotonic`) found the process of this model dead."""
        # Those that waited behind it hear of the death a second later each: by then the model may be back.
        if model in self._under_way or asked_at < self._taken_out_at.get(model, 0):
            return
        self._end_processes(model, process)
        task = asyncio.create_task(self._revive(model), name=f"revive {model}")
        task.add_done_callback(lambda _: self._under_way.pop(model, None))
        self._under_way[model] = task

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._under_way.values():
            task.cancel()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    async def _revive(self, model: str) -> None:
        """Try until the model is back, whoever brought it, or its folder has gone."""
        _log.error("the process of model '%s' died: loading it again", model)
        pause, is_unloaded = FIRST_RETRY_S, False
        while True:
            try:
                if not is_unloaded:
                    await self._repository.unload(model)  # loading alone does nothing while the files are the same
                    is_unloaded = True
                    self._taken_out_at[model] = time.monotonic()  # what is sent from now on cannot meet the dead one
                await self._repository.load(model)
            except PolywandError as error:
                _log.error("could not load model '%s' again, next try in %g s: %s", model, pause, error)
            else:
                _log.warning("model '%s' is back", model)
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_RETRY_S)
            # Until then, Triton calls the dead model READY.
            if is_unloaded and await self._is_settled(model):
                return

    async def _is_settled(self, model: str) -> bool:
        """Whether a model that could not be loaded again has been loaded by somebody else, or has no folder now."""
        try:
            entries = [entry for entry in await self._repository.repository_index() if entry.name == model]
        except PolywandError:
            return False
        if not entries:
            _log.warning("model '%s' is not in Triton's repository any more: not loading it again", model)
            return True
        failed = [entry for entry in entries if entry.state == "UNAVAILABLE" and entry.reason != "unloaded"]
        return not failed and any(entry.state == "READY" for entry in entries)
