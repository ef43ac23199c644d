"""The log of a start: what it says, and what it does not."""

import re
from pathlib import Path

from tests.running import Service, running_service, wait_for
from tests.tools.tending import add_puppet

READY = re.compile(r"\bready\b", re.IGNORECASE)


def lines_of_a_start(service: Service) -> list[str]:
    wait_for(lambda: " polywand_server.server: ready\n" in service.log.read_text(), 60, service)
    return service.log.read_text().splitlines()


def test_a_healthy_start_logs_no_warning_and_says_ready_once(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    add_puppet(repository, "one", 1)
    add_puppet(repository, "two", 1, 2)
    with running_service(tmp_path / "log", f"--model-repository={repository}") as service:
        lines = lines_of_a_start(service)
    assert [line for line in lines if " INFO " not in line] == []
    assert [line.split(": ", 1)[1] for line in lines if READY.search(line)] == ["ready"]
    said = "\n".join(lines)
    assert "waiting: still loading" in said
    assert "tool two serves with versions 1 and 2" in said


def test_a_start_with_a_broken_model_says_once_which_and_why(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    add_puppet(repository, "sound", 1)
    add_puppet(repository, "broken", 1, broken=[1])
    with running_service(tmp_path / "log", f"--model-repository={repository}") as service:
        # The service is ready once the model was tried; what that means for its tool is logged a poll later.
        wait_for(lambda: "tool broken does not serve" in service.log.read_text(), 60, service)
        lines = lines_of_a_start(service)
    own = [line for line in lines if " INFO " not in line and " polywand_server." in line]
    tries = [line for line in own if "model broken did not load, next try in " in line]
    (tool,) = (line for line in own if "tool broken does not serve: " in line)
    assert sorted(own) == sorted([*tries, tool])
    assert tries[0] == own[0]
    assert "next try in 2 s" in tries[0]
    assert all("out of tune" in line for line in own)
