"""Prometheus and Alertmanager as child processes, with the files of deploy/monitoring for a test's time scale."""

import json
import shutil
import socket
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.files import FOLDER, RULES, read
from tests.running import wait_for

PROGRAMS = ("promtool", "prometheus", "amtool", "prometheus-alertmanager")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
needs_prometheus = pytest.mark.skipif(
    bool(MISSING),
    reason=f"NOT RUN: {', '.join(MISSING)} not here: apt-get install prometheus prometheus-alertmanager",
)


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus. url: of its API."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of its API."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as response:
            answer = json.load(response)
        assert answer["status"] == "success"
        return answer["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Return the series of an instant query."""
        return list(self.get("query", query=expr)["result"])

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        alerts = self.get("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


class Webhook:
    """Receives alerts. received: (name, status) of each, with its labels and annotations."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                received.extend(alert | {"path": self.path} for alert in body["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Webhook":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def has(self, name: str, status: str) -> dict[str, Any] | None:
        """Return the last alert of this name and status that came, if any."""
        found = [alert for alert in self.received if alert["labels"]["alertname"] == name and alert["status"] == status]
        return found[-1] if found else None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def prometheus(folder: Path, targets: list[str], alertmanager: int) -> Iterator[Prometheus]:
    """Run Prometheus with the shipped configuration and rules, but seconds in place of minutes.

    targets: host:port of the replicas. alertmanager: its port.
    """
    config, rules = read(FOLDER / "prometheus.yml"), read(RULES)
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{alertmanager}"]
    config["rule_files"] = [str(folder / "rules.yml")]
    for job in config["scrape_configs"]:
        job["scrape_timeout"] = "1s"
        job["static_configs"][0]["targets"] = targets
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                rule["for"] = "2s"
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with _process(command, folder / "prometheus.log", f"http://127.0.0.1:{port}/-/ready"):
        yield Prometheus(f"http://127.0.0.1:{port}")


@contextmanager
def alertmanager(folder: Path, port: int, receiver: str) -> Iterator[None]:
    """Run Alertmanager with the shipped configuration, but without its pauses. receiver: URL of the webhook."""
    config = read(FOLDER / "alertmanager.yml")
    config["route"] |= {"group_wait": "0s", "group_interval": "1s"}
    for entry in config["receivers"]:
        for webhook in entry.get("webhook_configs", ()):
            webhook["url"] = webhook["url"].replace("http://localhost:9094", receiver)
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config))
    command = [
        "prometheus-alertmanager",
        f"--config.file={folder / 'alertmanager.yml'}",
        f"--storage.path={folder / 'alerts'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    with _process(command, folder / "alertmanager.log", f"http://127.0.0.1:{port}/-/ready"):
        yield


@contextmanager
def monitoring(folder: Path, targets: list[str]) -> Iterator[tuple[Prometheus, Webhook]]:
    """Run both, and a webhook behind them."""
    with ExitStack() as stack:
        webhook = stack.enter_context(Webhook())
        port = free_port()
        stack.enter_context(alertmanager(folder, port, webhook.url))
        yield stack.enter_context(prometheus(folder, targets, port)), webhook


@contextmanager
def _process(command: list[str], log: Path, ready: str) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with urllib.request.urlopen(ready, timeout=1) as response:
            return bool(response.status == 200)

    try:
        wait_for(answers, 30)
        yield
    finally:
        process.kill()
        process.wait()
