"""Reports that a process of a model died: which of them are still true."""

import time

from polywand_server.errors import PolywandError
from polywand_server.triton.client import DeadProcess, TritonClient


class DeathReports:
    """Checks reports of dead processes, so that no healthy model is unloaded.

    A report may be outdated: requests that waited behind the first one fail a second later each, and by then the model
    may have been loaded again, here or by another service, or Triton may have been restarted.
    """

    def __init__(self, triton: TritonClient) -> None:
        self._triton = triton
        self._triton_since = 0.0
        self._unloaded_at: dict[str, float] = {}
        self._found_healthy_at: dict[str, float] = {}

    def is_outdated(self, report: DeadProcess) -> bool:
        """Whether the request was sent before Triton was restarted or the dead model was unloaded."""
        return report.sent_at < max(self._triton_since, self._unloaded_at.get(report.model, 0.0))

    def record_unload(self, model: str) -> None:
        """Record that a dead model was unloaded: no request that is sent from now on can meet its process."""
        self._unloaded_at[model] = time.monotonic()

    def record_restart(self) -> None:
        """Record that Triton was away."""
        self._triton_since = time.monotonic()

    async def is_confirmed(self, report: DeadProcess) -> bool:
        """Whether Triton has counted a failed request to the model since it was loaded.

        If it has not, the model was loaded again meanwhile. If a request that is sent after this check reports the same
        model, that report is believed.
        """
        name = report.model
        try:
            has_failed = await self._triton.has_failed_requests(name)
        except PolywandError:  # not loaded, or Triton is away: the next poll of the index finds what is due
            return False
        if has_failed or report.sent_at > self._found_healthy_at.get(name, float("inf")):
            self._found_healthy_at.pop(name, None)
            return True
        self._found_healthy_at[name] = time.monotonic()
        return False
