"""The TypeScript client: its own tests, by Node's test runner, and the examples of its page, against real services."""

import json
import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.node import ROOT, run
from tests.running import Service, running_service

CLIENT = ROOT / "clients/typescript"


@pytest.fixture(scope="module")
def built() -> Path:
    """The client, compiled."""
    compiled = run("tsc", "-p", CLIENT)
    assert compiled.returncode == 0, compiled.stdout
    return CLIENT / "build"


def run_tests(file: Path, target: str, **more: str) -> None:
    tested = run("node", "--test", file, seconds=240, POLYWAND_TARGET=target, **more)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    passed = re.search(r"^# pass (\d+)$|^ℹ pass (\d+)$", tested.stdout, re.MULTILINE)
    assert passed is not None, tested.stdout
    assert int(passed[1] or passed[2]) > 0, tested.stdout


@pytest.mark.parametrize("name", ["calls", "session"])
def test_what_the_client_promises_holds(name: str, built: Path, puppets: Service, puppet_models: Path) -> None:
    run_tests(built / f"test/{name}.test.js", puppets.target, POLYWAND_GATES=str(puppet_models.parent))


def test_a_session_outlives_replicas_that_are_drained_and_killed(
    built: Path, puppets: Service, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        replicas = [
            stack.enter_context(running_service(tmp_path / f"log-{number}", f"--triton-url={puppets.triton}"))
            for number in range(3)
        ]
        for replica in replicas:
            replica.wait_ready("disk")
        told = [{"target": replica.target, "pid": replica.process.pid} for replica in replicas]
        run_tests(built / "test/replicas.test.js", puppets.target, POLYWAND_REPLICAS=json.dumps(told))
