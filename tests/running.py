"""The real service as a child process, as tests and benchmarks run it."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parent.parent / "model_repository"
PORTS = re.compile(r"gRPC on (\S+):(\d+), HTTP on (\S+):(\d+)(?:, metrics on (\S+:\d+))?, Triton at ([^\s\"]+)")
START_SECONDS = 90
KILL_SECONDS = 0.05


def _versions(model: str) -> tuple[int, ...]:
    """Of a shipped model, in order; what was taken out of service has a name that begins with 0."""
    names = [path.name for path in (REPOSITORY / model).iterdir()]
    return tuple(sorted(int(name) for name in names if name.isdecimal() and name[0] != "0"))


WAND_VERSIONS = _versions("wand")
WAND_VERSION = WAND_VERSIONS[-1]
DETECTION = 1  # inference, once for each image


def copy_newest(repository: Path, *models: str) -> Path:
    """Lay out shipped models with their newest versions alone: such a service is up sooner than one with all."""
    for name in models:
        older = shutil.ignore_patterns(*map(str, _versions(name)[:-1]))
        shutil.copytree(REPOSITORY / name, repository / name, ignore=older)
    return repository


@dataclass(frozen=True)
class Service:
    """A running service. target: of its gRPC port. http: base URL of its HTTP port.
    metrics: of its metrics port, or its HTTP port. triton: as the service dials it."""

    process: subprocess.Popen[bytes]
    log: Path
    target: str
    http: str
    triton: str
    metrics: str

    def get(self, path: str) -> tuple[int, str]:
        """GET from the metrics port, or the HTTP port where there is none: status and body."""
        try:
            with urllib.request.urlopen(self.metrics + path, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, sample: str) -> float:
        """Return one sample of /metrics by its name and labels, 0 when it is not there yet."""
        for line in self.get("/metrics")[1].splitlines():
            name, _, value = line.rpartition(" ")
            if name == sample:
                return float(value)
        return 0.0

    def wait_ready(self, *models: str, seconds: float = START_SECONDS) -> None:
        """Wait until /readyz says so and the log says that each of the models serves."""
        wait_for(lambda: self.get("/readyz")[0] == 200, seconds, self)
        for model in models:
            wait_for(lambda model=model: f"tool {model} serves with" in self.log.read_text(), seconds, self)


def images_in_use(service: Service) -> float:
    """Memory of decoded images that a stream or a request uses now, bytes."""
    samples = dict(line.rpartition(" ")[::2] for line in service.get("/metrics")[1].splitlines())
    kept = float(samples["polywand_kept_image_memory_bytes"])
    return float(samples["polywand_image_memory_bytes"]) - kept


def wait_for(condition, seconds: float, service: Service | None = None) -> None:
    """Poll until the condition holds; fail with the service's last log lines."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except OSError:
            pass
        if service is not None and service.process.poll() is not None:
            break
        time.sleep(0.05)
    tail = service.log.read_text()[-4000:] if service is not None else ""
    raise AssertionError(f"did not happen within {seconds} s\n{tail}")


async def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Poll until the condition holds, and let other tasks run meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds} s"
        await asyncio.sleep(0.02)


async def run_the_others() -> None:
    """Let all other tasks of the event loop go on until each waits for something."""
    for _ in range(100):
        await asyncio.sleep(0)


@contextmanager
def running_service(log: Path, *options: str, program: tuple[str, ...] = ()) -> Iterator[Service]:
    """Run `polywand-server`, or another program that takes its options, on free ports until the block ends."""
    command = [*(program or (str(Path(sys.executable).parent / "polywand-server"),)), "--grpc-port=0", "--http-port=0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POLYWAND_")}
    with log.open("wb") as stderr:
        process = subprocess.Popen([*command, *options], stderr=stderr, env=environment)
    try:
        yield _started(process, log)
    finally:
        # Not in order, which takes a second or two: tests of endings do that themselves. Triton notices, and ends.
        process.kill()
        process.wait()


def _started(process: subprocess.Popen[bytes], log: Path) -> Service:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = PORTS.search(log.read_text())
        if found:
            host, grpc_port, http_host, http_port, metrics, triton = found.groups()
            http = f"http://{http_host}:{http_port}"
            return Service(process, log, f"{host}:{grpc_port}", http, triton, f"http://{metrics}" if metrics else http)
        time.sleep(0.05)
    raise AssertionError(f"the service did not start:\n{log.read_text()[-4000:]}")


@contextmanager
def outage(service: Service) -> Iterator[None]:
    """Kill the service's Triton with SIGKILL, and again whenever it comes back, until the block ends."""
    over = threading.Event()

    def keep_killing() -> None:
        while not over.wait(KILL_SECONDS):
            _kill_triton(service)

    _kill_triton(service)
    killer = threading.Thread(target=keep_killing)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()


def _kill_triton(service: Service) -> None:
    for server in tritonservers(service):
        with suppress(psutil.NoSuchProcess):
            server.kill()


def tritonservers(service: Service) -> list[psutil.Process]:
    """The service's own Triton; none while it is away or elsewhere."""
    found = []
    for child in psutil.Process(service.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if child.name() == "tritonserver":
                found.append(child)
    return found
