"""Hostile messages, bytes, files and sequences from a seed: all are answered as the contract says, and leave nothing.

What is played here never changes; `python -m tests.faults.fuzz` plays other seeds, for as long as one likes.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.fuzz.__main__ import DEADLINE_SECONDS, TOOLS, bystander_of
from tests.faults.fuzz.campaign import Campaign
from tests.faults.fuzz.generate import make_case
from tests.faults.fuzz.sizes import SMALL
from tests.faults.models import add_stand_ins
from tests.running import Service, copy_newest, running_service

SEED, CASES, WORKERS = 1, 300, 6


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with an interactor, a detector and a classical tool; networks are not what is tested here."""
    folder = tmp_path_factory.mktemp("fuzz")
    repository = add_stand_ins(copy_newest(folder / "models", "grabcut"))
    with running_service(folder / "log", f"--model-repository={repository}") as service:
        service.wait_ready(*TOOLS)
        yield service


def test_a_case_depends_on_its_seed_and_its_number_alone():
    for number in range(CASES):
        assert make_case(SEED, number, SMALL) == make_case(SEED, number, SMALL)
    assert make_case(SEED, 0, SMALL) != make_case(SEED + 1, 0, SMALL)


def test_hostile_clients_get_typed_errors_and_harm_no_other(victim: Service, tmp_path: Path):
    bystander = bystander_of(victim.target)
    campaign = Campaign(victim.target, SEED, SMALL, "small", WORKERS, DEADLINE_SECONDS, tmp_path)
    findings = campaign.run(iter(range(CASES)), bystander, victim)
    assert not findings.wrong, "\n".join(findings.wrong)
    assert findings.cases.total() == CASES
    assert len({kind for kind, _ in findings.cases}) > 10
    kinds = {answer for _, answer in findings.answers}
    assert kinds >= {
        "image",
        "segmentation",
        "incomplete",
        "forgotten",
        "response",
        "error 3",
        "error 5",
        "error 8",
        "error 9",
    }
    assert bystander.list_seconds
    assert bystander.click_seconds
