"""The Helm chart, rendered by a real helm: HELM, or the one in PATH. No API server takes part."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", exc_type=ImportError)
HELM = os.environ.get("HELM") or shutil.which("helm")
CHART = Path(__file__).parents[2] / "deploy/helm/polywand"
VALUES = sorted(CHART.glob("ci/*-values.yaml"))
pytestmark = pytest.mark.skipif(HELM is None, reason="helm is not here")


def _helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(HELM), "template", "test", str(CHART), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def _render(*arguments: str) -> list[dict[str, Any]]:
    result = _helm(*arguments)
    assert result.returncode == 0, result.stderr
    return [document for document in yaml.safe_load_all(result.stdout) if document]


def _deployment(*arguments: str) -> dict[str, Any]:
    return next(document for document in _render(*arguments) if document["kind"] == "Deployment")


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_no_container_has_rights_or_a_token_of_the_cluster(values: Path) -> None:
    pod = _deployment("-f", str(values))["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_all_selectors_find_the_pods(values: Path) -> None:
    documents = _render("-f", str(values))
    labels = _deployment("-f", str(values))["spec"]["template"]["metadata"]["labels"]
    selectors = [
        d["spec"]["selector"] for d in documents if d["kind"] in ("Service", "PodDisruptionBudget", "Deployment")
    ]
    assert len(selectors) == 4
    for selector in selectors:
        assert selector.get("matchLabels", selector).items() <= labels.items()


def test_the_grace_is_delay_and_drain_and_ten_seconds() -> None:
    pod = _deployment("--set", "insecure=true,drain.delaySeconds=7,drain.seconds=40")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 57


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("replicas=2", "insecure: true"),
        ("insecure=true,replica=3", "replica"),
        ("insecure=true,triton.mode=external", "triton.url"),
        ("insecure=true,triton.url=a:1", "triton.mode external"),
        ("insecure=true,triton.mode=sidecar", "modelsClaim"),
        ("insecure=true,triton.mode=beside", "mode"),
        ("insecure=true,keda.enabled=true", "keda.prometheusUrl"),
        ("insecure=true,networkPolicy.enabled=true", "networkPolicy.clients"),
        ("insecure=true,drain.seconds=-1", "drain"),
    ],
)
def test_wrong_values_are_refused_by_name(values: str, message: str) -> None:
    result = _helm("--set", values)
    assert result.returncode != 0
    assert message in result.stderr


def test_the_charts_rules_are_the_deployed_ones() -> None:
    rule = next(d for d in _render("-f", str(CHART / "ci/sidecar-values.yaml")) if d["kind"] == "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((CHART.parents[1] / "monitoring/rules/polywand.yml").read_text())
