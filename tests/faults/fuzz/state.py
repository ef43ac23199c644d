"""The service before and after: everything has to come back to where it was, and its log has to stay quiet."""

import re
import time
from dataclasses import dataclass, field

from tests.running import Service
from tests.soak.state import State, look

REST_SECONDS = 30.0
# How much more there may be in the end, without any client: of memory what malloc keeps; of descriptors what gRPC's
# threads open once and keep; of files in shared memory, what is 0 stays 0.
ALLOWANCES = {
    "tasks": 0,
    "streams": 0,
    "image_mib": 0,
    "mask_mib": 0,
    "processes": 0,
    "shared_files": 0,
    "descriptors": 12,
    "rss": 400,
}
RESTARTS = "polywand_triton_restarts_total"
# Lines of the service's own. Libraries complain of damaged files in words of theirs.
UNFORESEEN = re.compile(
    r"unexpected error while handling a request|Traceback|^\S+ \S+ (ERROR|CRITICAL) +polywand", re.M
)
MOST_LOG_BYTES = 1_000_000
EXCERPT_CHARACTERS = 1_500


@dataclass(slots=True)
class Watch:
    """Knows a service as it was when this was made."""

    service: Service
    before: State = field(init=False)
    restarts: float = field(init=False)
    log_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.before = look(self.service)
        self.restarts = self.service.metric(RESTARTS)
        self.log_bytes = self.service.log.stat().st_size

    def breaches(self) -> list[str]:
        """Wait until the service has come to rest; what has not come back, and what the log says."""
        if self.service.process.poll() is not None:
            return [f"the service ended with exit status {self.service.process.returncode}", *self._log_breaches()]
        deadline = time.monotonic() + REST_SECONDS
        while (found := self._growth()) and time.monotonic() < deadline:
            time.sleep(0.5)
        restarts = self.service.metric(RESTARTS) - self.restarts
        return [*found, *([f"Triton was restarted {restarts:g} times"] if restarts else []), *self._log_breaches()]

    def _growth(self) -> list[str]:
        after = look(self.service)
        numbers = [(name, getattr(self.before, name), getattr(after, name), more) for name, more in ALLOWANCES.items()]
        return [
            f"{name} grew from {old:.0f} to {new:.0f}; {more} more were allowed"
            for name, old, new, more in numbers
            if new - old > more
        ]

    def _log_breaches(self) -> list[str]:
        with self.service.log.open("rb") as file:
            file.seek(self.log_bytes)
            log = file.read(10 * MOST_LOG_BYTES).decode(errors="replace")
        found = [f"{len(log)} bytes of log: {log[:200]!r} ..."] if len(log) > MOST_LOG_BYTES else []
        lines = list(UNFORESEEN.finditer(log))
        if lines:
            begin = lines[0].start()
            found.append(f"{len(lines)} lines in the log such as\n{log[begin : begin + EXCERPT_CHARACTERS]}")
        return found
