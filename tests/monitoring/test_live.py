"""A real Prometheus and a real Alertmanager: what the dashboard asks is answered, and an alert fires and resolves."""

import math
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.monitoring.files import legend_labels, rules, selectors, shown
from tests.monitoring.load import under_load
from tests.monitoring.programs import Prometheus, Webhook, free_port, monitoring, needs_prometheus
from tests.running import Service, running_service, wait_for

pytestmark = needs_prometheus

LOAD_SECONDS = 12
# Panels without data in a load that has nothing of the kind, and why.
QUIET = {
    "GPU": "there is none",
}


class Replica:
    """A replica without a Triton, at an address that stays the same: it starts and stops in a second."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "replica.log"
        self._port = free_port()
        self.target = f"127.0.0.1:{self._port}"

    def running(self):
        return running_service(self._log, "--triton-url=127.0.0.1:9", f"--http-port={self._port}")


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Replica:
    return Replica(tmp_path_factory.mktemp("replica"))


@pytest.fixture(scope="module")
def watched(
    puppets: Service, replica: Replica, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Prometheus, Webhook]]:
    """Prometheus, which scrapes the puppets and another replica, during a load on the puppets."""
    targets = [puppets.http.removeprefix("http://"), replica.target]
    with monitoring(tmp_path_factory.mktemp("monitoring"), targets) as parts, under_load(puppets):
        time.sleep(LOAD_SECONDS)
        yield parts


def series(prometheus: Prometheus, expr: str) -> list[tuple[dict[str, str], float]]:
    """Return the labels and the value of each series of an answer."""
    return [(found["metric"], float(found["value"][1])) for found in prometheus.query(expr)]


def test_every_expression_of_the_dashboard_is_answered_without_nan(watched: tuple[Prometheus, Webhook]) -> None:
    prometheus, _ = watched
    wait_for(lambda: {panel.panel for panel in shown() if not series(prometheus, panel.expr)} <= set(QUIET), 60)
    empty = set()
    for panel in shown():
        answer = series(prometheus, panel.expr)
        if not answer:
            empty.add(panel.panel)
        for labels, value in answer:
            assert math.isfinite(value), (panel, labels)
            assert legend_labels(panel.legend) <= labels.keys(), panel
    assert empty == set(QUIET)


def test_every_rule_is_evaluated_and_what_is_recorded_is_a_number(watched: tuple[Prometheus, Webhook]) -> None:
    prometheus, _ = watched
    evaluated = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert [rule["name"] for rule in evaluated if rule["health"] != "ok"] == []
    for rule in rules():
        if "record" in rule:
            recorded = series(prometheus, rule["record"])
            assert recorded, rule["record"]
            assert all(math.isfinite(value) for _, value in recorded), rule["record"]


def test_tritons_metrics_that_are_named_are_in_triton(puppets: Service) -> None:
    page = puppets.get("/metrics/triton")[1]
    named = {name for panel in shown() for name, _ in selectors(panel.expr) if name.startswith("nv_")}
    assert named
    assert {name for name in named if f"# TYPE {name} " not in page and not name.startswith("nv_gpu_")} == set()


def test_promtool_finds_no_mistake_in_the_metrics(puppets: Service) -> None:
    page = puppets.get("/metrics")[1]
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_alert_reaches_its_receiver_when_a_replica_stops_and_is_resolved_when_it_runs_again(
    watched: tuple[Prometheus, Webhook], replica: Replica
) -> None:
    prometheus, webhook = watched
    name = "PolywandReplicaDown"
    wait_for(lambda: webhook.has(name, "firing"), 30)  # it has not run yet
    with replica.running():
        wait_for(lambda: webhook.has(name, "resolved"), 30)
        assert name not in prometheus.firing()
        webhook.received.clear()
    wait_for(lambda: webhook.has(name, "firing"), 30)
    alert = webhook.has(name, "firing")
    assert alert is not None
    assert alert["path"] == "/team"  # of a warning
    assert alert["labels"]["instance"] == replica.target
    assert alert["annotations"] == {
        "summary": f"{replica.target} answers no scrape.",
        "description": f"The replica {replica.target} has not answered Prometheus for two minutes.",
        "runbook_url": "docs/runbook.md#polywandreplicadown",
    }
    with replica.running():
        wait_for(lambda: webhook.has(name, "resolved"), 30)
        with urllib.request.urlopen(f"http://{replica.target}/livez", timeout=10) as response:
            assert response.status == 200
