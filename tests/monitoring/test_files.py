"""Rules, alerts, dashboard and runbook name what is there, and each other."""

import re
import subprocess
import sys

import pytest
from prometheus_client import REGISTRY

from polywand_server.ops import metrics
from tests.monitoring.files import (
    DASHBOARD,
    FOLDER,
    RULE_TESTS,
    RULES,
    RUNBOOK,
    alerts,
    grouped,
    read,
    rules,
    selectors,
    shown,
)
from tests.monitoring.programs import needs_prometheus

# Which Prometheus adds itself.
TARGET_LABELS = {"job", "instance"}
SUFFIXES = ("", "_bucket", "_sum", "_count")
# Of Prometheus, of Triton: tests/monitoring/test_live.py finds them in the real ones.
OTHERS = {"up": set(), "nv_gpu_utilization": {"gpu_uuid"}, "nv_gpu_memory_used_bytes": {"gpu_uuid"}}
# Metrics that the dashboard does not show, and why.
NOT_SHOWN: dict[str, str] = {}


def own() -> dict[str, set[str]]:
    """The names of all series of the service, with their labels."""
    found: dict[str, set[str]] = {}
    for collector, names in REGISTRY._collector_to_names.items():
        labels = set(getattr(collector, "_labelnames", ()))
        for name in names:
            found[name] = labels | ({"le"} if name.endswith("_bucket") else set())
    return found


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + [panel.expr for panel in shown()]


def test_every_metric_that_is_named_exists_with_its_labels() -> None:
    known = own() | OTHERS
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    wrong = []
    for expr in expressions():
        for name, labels in selectors(expr):
            if name.startswith(("nv_inference_", "nv_gpu_")) or name in recorded:
                continue
            if name not in known or not labels - {"job", "instance"} <= known[name]:
                wrong.append(f"{name}{sorted(labels)}")
    assert wrong == []


def test_what_is_added_up_by_a_label_has_it() -> None:
    known = own() | OTHERS
    wrong = []
    for expr in expressions():
        for labels, names in grouped(expr):
            present = set().union(*(known.get(name, {"model"}) for name in names)) | TARGET_LABELS
            if not labels <= present:
                wrong.append((expr, labels - present))
    assert wrong == []


def test_a_recorded_name_says_by_which_labels_it_is_recorded() -> None:
    for rule in rules():
        if "record" in rule:
            level = set(rule["record"].partition(":")[0].split("_"))
            for labels, _ in grouped(rule["expr"]):
                assert labels - {"le"} <= level | {"job"}, rule["record"]


def test_every_metric_of_the_service_is_on_the_dashboard_or_excused() -> None:
    named = {name for panel in shown() for name, _ in selectors(panel.expr)}
    assert metrics.BUILD in REGISTRY._collector_to_names
    missing = set()
    for names in REGISTRY._collector_to_names.values():
        ours = {name for name in names if name.startswith("polywand_") and not name.endswith("_created")}
        if ours and not ours & named:
            missing.add(min(ours, key=len))
    assert missing == set(NOT_SHOWN)


def test_the_dashboard_is_what_its_program_builds() -> None:
    subprocess.run([sys.executable, FOLDER / "dashboards" / "build.py", "--check"], check=True)


def test_every_panel_of_the_dashboard_says_what_it_tells() -> None:
    panels = [panel for panel in read(DASHBOARD)["panels"] if panel["type"] != "row"]
    assert len(panels) > 30
    assert all(panel["title"] and panel["description"].endswith(".") for panel in panels)


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_says_what_it_means_for_how_long_and_where_to_read_on(alert: dict) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert alert["for"]
    notes = alert["annotations"]
    assert notes["summary"].endswith((".", "}}."))
    assert len(notes["description"]) > 30
    assert notes["runbook_url"] == f"docs/runbook.md#{alert['alert'].lower()}"


def test_the_runbook_has_a_section_for_every_alert_and_for_no_other() -> None:
    headings = re.findall(r"^### (Polywand\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert headings == [alert["alert"] for alert in alerts()]  # in the same order, too


@pytest.mark.parametrize("name", [alert["alert"] for alert in alerts()])
def test_a_section_of_the_runbook_says_what_it_means_where_to_look_and_what_to_do(name: str) -> None:
    section = RUNBOOK.read_text().partition(f"### {name}\n")[2].partition("\n### ")[0]
    assert all(part in section for part in ("**Means:**", "**Look at:**", "**Do:**"))


def test_every_alert_is_tested_to_fire_and_not_to_fire() -> None:
    fires: dict[str, set[bool]] = {}
    for test in read(RULE_TESTS)["tests"]:
        for query in test["promql_expr_test"]:
            found = re.search(r'alertname="(\w+)"', query["expr"])
            if found:
                fires.setdefault(found[1], set()).add(bool(query["exp_samples"]))
    assert fires == {alert["alert"]: {True, False} for alert in alerts()}


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_prometheus
def test_promtool_finds_no_mistake_in_the_rules_and_their_tests_pass() -> None:
    assert f"{len(rules())} rules found" in run("promtool", "check", "rules", RULES)
    assert "SUCCESS" in run("promtool", "test", "rules", RULE_TESTS)


@needs_prometheus
def test_promtool_finds_no_mistake_in_the_configuration_nor_in_its_variant_with_tls(tmp_path) -> None:
    run("promtool", "check", "config", FOLDER / "prometheus.yml")
    plain = (FOLDER / "prometheus.yml").read_text()
    before, _, variant = plain.partition("  #\n")  # the comment ends with what to put in
    lines = ["  " + line.removeprefix("  # ") for line in variant.splitlines()]
    with_tls = re.sub(r'    static_configs:\n      - targets: \["localhost:9464"\]\n', "\n".join(lines) + "\n", before)
    assert with_tls.count("credentials_file") == 2
    changed = tmp_path / "prometheus.yml"
    changed.write_text(with_tls.replace("rules/polywand.yml", str(RULES)))
    run("promtool", "check", "config", "--syntax-only", changed)


@needs_prometheus
def test_amtool_finds_no_mistake_in_the_configuration_and_alerts_go_where_their_severity_says() -> None:
    config = FOLDER / "alertmanager.yml"
    run("amtool", "check-config", config)
    for severity, receiver in {"critical": "pager", "warning": "team", "info": "nobody"}.items():
        route = run("amtool", "config", "routes", "test", f"--config.file={config}", f"severity={severity}")
        assert route.strip() == receiver
