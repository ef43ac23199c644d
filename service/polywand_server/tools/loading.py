"""One load: which versions Triton is told to load, and what is done when some of them fail."""

import asyncio
import logging
from collections.abc import Collection, Mapping
from contextlib import suppress

from polywand_server.errors import ModelFailedError, PolywandError
from polywand_server.tools.folders import ModelFolder, ModelFolders
from polywand_server.triton.client import IndexEntry, ModelState, TritonClient
from polywand_server.triton.versions import narrowed, required_file, serving

log = logging.getLogger(__name__)

# How long running requests to an old version may take before its parts are unloaded.
DRAIN_SECONDS = 60.0
DRAIN_POLL_SECONDS = 0.1


class VersionLoader:
    """Loads the versions of a model that can be loaded."""

    def __init__(self, triton: TritonClient, folders: ModelFolders) -> None:
        self._triton = triton
        self._folders = folders
        self._incomplete: dict[str, dict[int, str]] = {}

    def incomplete(self, name: str) -> Mapping[int, str]:
        """Return the versions that Triton was not told to load, and why."""
        return self._incomplete.get(name, {})

    async def load(self, name: str, folder: ModelFolder | None) -> None:
        """Load a model; folder: as it is now, None where it cannot be read.

        Raises:
            What `TritonClient.load` does.
        """
        await self._triton.load(name, await self._config(name, folder))

    async def load_healthy_versions(self, name: str, folder: ModelFolder | None) -> bool:
        """After a failed load, load the versions that did not fail, unless some are in service already.

        Returns whether any version is in service then.
        """
        broken: set[int] = set()
        try:
            while True:
                entries = await self._entries(name)
                if any(entry.is_ready for entry in entries):
                    return True
                failed = {entry.version for entry in entries if entry.version is not None and entry.has_failed}
                if folder is None or failed <= broken:
                    return False
                broken |= failed
                config = await self._config(name, folder, broken)
                if not config:
                    return False
                log.info("loading model %s without version %s", name, ", ".join(map(str, sorted(broken))))
                with suppress(ModelFailedError):
                    await self._triton.load(name, config)
        except PolywandError:
            return False

    async def wait_until_drained(self, name: str) -> None:
        """Wait, with a limit, until the unloaded versions of a model have answered their last requests."""
        with suppress(PolywandError, TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while await self._is_draining(name):  # noqa: ASYNC110 - Triton can only be polled
                    await asyncio.sleep(DRAIN_POLL_SECONDS)

    async def _is_draining(self, name: str) -> bool:
        return any(entry.state == ModelState.UNLOADING for entry in await self._entries(name))

    async def _entries(self, name: str) -> list[IndexEntry]:
        return [entry for entry in await self._triton.repository_index() if entry.name == name]

    def _record_incomplete(self, name: str, reasons: dict[int, str]) -> None:
        known = self._incomplete.get(name, {})
        for version, reason in sorted(reasons.items() - known.items()):
            log.warning("version %d of model %s is not loaded: %s", version, name, reason)
        self._incomplete[name] = reasons

    async def _config(self, name: str, folder: ModelFolder | None, broken: Collection[int] = ()) -> str:
        """Return the configuration to load a model with, limited to the versions that can be loaded.

        Empty where that is not known: then Triton loads what it finds, and reports what is wrong. By itself it takes
        any folder whose name begins with a number for a version, "2~" for 2.

        Raises:
            ModelFailedError: no version could be loaded.
        """
        if folder is None:
            return ""
        try:
            config = await self._folders.config(name)
            required = required_file(config)
            incomplete = folder.versions_without(required) if required else set()
            self._record_incomplete(name, dict.fromkeys(incomplete, f"its {required} is missing"))
            versions = serving(config, folder.versions - set(broken) - incomplete)
            if versions:
                return narrowed(config, versions)
        except (OSError, ValueError):
            return ""
        if incomplete:
            raise ModelFailedError(f"model '{name}': none of its versions that could serve has a {required}")
        return ""
