"""What a running service takes of the machine, and what is left of it when it has gone."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.running import Service, images_in_use, tritonservers, wait_for

SHARED_MEMORY = Path("/dev/shm")
INTERACT_STREAMS = 'polywand_grpc_active_streams{method="polywand.v1.AnnotationService/Interact"}'
DETECT_STREAMS = 'polywand_grpc_active_streams{method="polywand.v1.AnnotationService/DetectStream"}'
MASK_MEMORY = "polywand_mask_memory_bytes"
TASKS, SLOTS = "polywand_asyncio_tasks", "polywand_shared_memory_bytes"


def wait_for_rest(service: Service, seconds: float = 120) -> None:
    """Wait until nothing is left of any client: no stream, no image in use, no remembered map."""
    for sample in (INTERACT_STREAMS, DETECT_STREAMS, MASK_MEMORY):
        wait_for(lambda sample=sample: service.metric(sample) == 0, seconds, service)
    wait_for(lambda: images_in_use(service) == 0, seconds, service)


def scratch(service: Service) -> Path:
    """The private directory of the service's own Triton."""
    return Path(service.triton.removeprefix("unix:").rpartition(":")[0]).parent


def children(service: Service) -> list[psutil.Process]:
    """Every process below the service's own: the launcher, Triton, and its models'."""
    return psutil.Process(service.process.pid).children(recursive=True)


def tritonserver(service: Service) -> psutil.Process:
    """The service's own Triton."""
    (found,) = tritonservers(service)
    return found


def model_processes(service: Service, model: str) -> list[psutil.Process]:
    """Those of a Python model's instances that live: one for each version."""
    found = []
    for child in children(service):
        with suppress(psutil.Error):  # it has just ended
            if any(argument.rstrip("_0123456789") == model for argument in child.cmdline()):
                found.append(child)
    return found


def unique_bytes(service: Service) -> int:
    """Memory that would be free if the service's own process ended (USS)."""
    return int(psutil.Process(service.process.pid).memory_full_info().uss)


def shared_memory(service: Service) -> dict[str, int]:
    """Files in /dev/shm that bear this service's name or are mapped by one of its processes: bytes by name."""
    names = {path.name for path in SHARED_MEMORY.glob(f"{scratch(service).name}*")}
    for process in (psutil.Process(service.process.pid), *children(service)):
        names |= _mapped(process)
    return {name: (SHARED_MEMORY / name).stat().st_size for name in names if (SHARED_MEMORY / name).exists()}


def _mapped(process: psutil.Process) -> set[str]:
    try:
        lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    except OSError:  # it has just ended
        return set()
    paths = (Path(line.split(maxsplit=5)[5]) for line in lines if f" {SHARED_MEMORY}/" in line)
    return {path.name for path in paths if path.parent == SHARED_MEMORY and not path.name.endswith(" (deleted)")}


def descriptors(service: Service) -> int:
    """Open files and sockets of the service's own process, without those of memory that it shares with Triton."""
    links = Path(f"/proc/{service.process.pid}/fd").iterdir()
    return sum(not _target(link).startswith(f"{SHARED_MEMORY}/") for link in links)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # closed meanwhile
        return f"{SHARED_MEMORY}/"


@dataclass(frozen=True)
class Traces:
    """All that a service has outside of its process, noted while it runs."""

    processes: list[psutil.Process]
    paths: list[Path]
    prefix: str

    @classmethod
    def of(cls, service: Service) -> "Traces":
        """Note those of a running service."""
        paths = [scratch(service), *(SHARED_MEMORY / name for name in shared_memory(service))]
        return cls(children(service), paths, scratch(service).name)

    def left(self) -> list[str]:
        """What is still there."""
        alive = [str(process) for process in self.processes if _is_alive(process)]
        files = {path for path in self.paths if path.exists()} | set(SHARED_MEMORY.glob(f"{self.prefix}*"))
        return alive + sorted(map(str, files))


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
