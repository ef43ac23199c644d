"""The servers of one run: the service with its Triton, and the JSON server on that same Triton."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.json_client import running_json_server
from tests.bench.machine import Memory, memory
from tests.running import REPOSITORY, running_service


@dataclass(frozen=True, slots=True)
class Servers:
    """Where they listen, and what is asked. target: the service's gRPC port. model: of the tool, in Triton."""

    target: str
    triton: str
    json_url: str
    tool: str
    model: str
    detector: str
    pids: dict[str, int]

    def memory(self, way: str = "service") -> Memory:
        """What the service and its Triton, or the JSON server, hold now."""
        return memory(self.pids[way])


@contextmanager
def running_servers(log: Path, tool: str, model: str, detector: str) -> Iterator[Servers]:
    """Run all servers as processes of their own until the block ends."""
    with running_service(log, f"--model-repository={REPOSITORY}") as service:
        service.wait_ready(tool, detector)
        with running_json_server(service.triton, model) as (json_url, json_pid):
            pids = {"service": service.process.pid, "json": json_pid}
            yield Servers(service.target, service.triton, json_url, tool, model, detector, pids)
