"""The locks hold what pyproject.toml requires, and the audit fails when it must."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripts import locks
from scripts.locks import Advisory, LockError, Pin

PILLOW = Pin("pillow", "13.0.0", "", ("0" * 64,))


@pytest.fixture
def nothing_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """No source of advisories answers."""
    monkeypatch.setattr(locks, "run_pip_audit", lambda lock, count: ([], "nothing answered"))


@pytest.fixture
def pip_audit_prints(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have pip-audit print the text that is passed."""

    def prints(text: str) -> None:
        answer = subprocess.CompletedProcess([], 1, stdout=text, stderr="")
        monkeypatch.setattr(locks.subprocess, "run", lambda *arguments, **options: answer)

    return prints


def test_the_locks_hold_what_pyproject_requires() -> None:
    held = {lock: locks.read_lock(locks.LOCKS / f"{lock}.txt") for lock in locks.EXTRAS}
    assert list(locks.disagreements(locks.read_pyproject(), held)) == []


def pyproject_requiring(*dependencies: str) -> dict[str, Any]:
    """A pyproject.toml, read, whose extras are empty."""
    extras: dict[str, list[str]] = {extra: [] for named in locks.EXTRAS.values() for extra in named}
    project = {"name": "polywand", "dependencies": list(dependencies), "optional-dependencies": extras}
    return {"project": project, "dependency-groups": {"tools": []}}


def test_a_requirement_that_a_lock_does_not_meet_is_named() -> None:
    held = {"zoo": [PILLOW], "serve": [PILLOW]}
    said = list(locks.disagreements(pyproject_requiring("pillow>=14", "shapely"), held))
    assert "locks/serve.txt has pillow 13.0.0, but pyproject.toml requires pillow>=14" in said
    assert "locks/serve.txt has no shapely" in said


def test_a_pin_without_a_hash_is_named() -> None:
    held = {"zoo": [Pin("pillow", "13.0.0", "", ())]}
    assert list(locks.disagreements(pyproject_requiring(), held)) == ["locks/zoo.txt has pillow without a hash"]


def test_locks_that_hold_different_versions_are_named() -> None:
    held = {"zoo": [PILLOW], "serve": [Pin("pillow", "13.1.0", "", PILLOW.hashes)]}
    said = list(locks.disagreements(pyproject_requiring(), held))
    assert said == ["locks/serve.txt has pillow 13.1.0, but locks/zoo.txt does not"]


@pytest.mark.parametrize("lock", locks.EXTRAS)
def test_a_lock_has_pins_and_hashes_and_no_addresses(lock: str) -> None:
    path = locks.LOCKS / f"{lock}.txt"
    header, *lines = path.read_text().splitlines(keepends=True)
    assert "".join(lines) == "".join(f"{pin}\n" for pin in locks.read_lock(path))
    assert "://" not in header


def test_a_lock_is_read_as_it_was_written(tmp_path: Path) -> None:
    pins = [PILLOW, Pin("tifffile", "2026.3.3", 'python_version == "3.11"', ("1" * 64, "2" * 64))]
    path = tmp_path / "lock.txt"
    path.write_text(locks.HEADER + "".join(f"{pin}\n" for pin in pins))
    assert locks.read_lock(path) == pins


@pytest.mark.usefixtures("nothing_published")
def test_the_audit_passes_and_says_how_far_it_went() -> None:
    assert locks.audit().endswith("nothing answered")


@pytest.mark.usefixtures("nothing_published")
def test_a_locked_version_with_an_advisory_fails_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "read_lock", lambda path: [Pin("protobuf", "6.33.4", "", ())])
    with pytest.raises(LockError, match=r"protobuf 6\.33\.4, locked: CVE-2026-0994"):
        locks.audit()


@pytest.mark.usefixtures("nothing_published")
def test_a_range_that_admits_a_version_with_an_advisory_fails_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    pyproject = locks.read_pyproject()
    pyproject["project"]["dependencies"].append("starlette>=0.40,<2")
    monkeypatch.setattr(locks, "read_pyproject", lambda: pyproject)
    with pytest.raises(LockError, match=r"starlette<2,>=0\.40 in pyproject\.toml: CVE-2026-54283"):
        locks.audit()


def test_what_pip_audit_finds_fails_the_audit(pip_audit_prints: Callable[[str], None]) -> None:
    found = {"id": "PYSEC-2099-1", "fix_versions": ["14"], "aliases": ["CVE-2099-1"], "description": ""}
    pip_audit_prints(json.dumps({"dependencies": [{"name": "Pillow", "version": "13.0.0", "vulns": [found]}]}))
    with pytest.raises(LockError, match="pillow: PYSEC-2099-1"):
        locks.audit()


def test_what_pip_audit_finds_may_be_an_exception_by_any_of_its_names(
    pip_audit_prints: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    advisories, exceptions = locks.read_advisories()
    monkeypatch.setattr(locks, "read_advisories", lambda: (advisories, exceptions | {("pillow", "CVE-2099-1")}))
    found = {"id": "PYSEC-2099-1", "fix_versions": [], "aliases": ["CVE-2099-1"], "description": ""}
    pip_audit_prints(json.dumps({"dependencies": [{"name": "Pillow", "version": "13.0.0", "vulns": [found]}]}))
    assert "1 of " in locks.audit()


@pytest.mark.parametrize(
    "printed",
    ["", json.dumps({"dependencies": [{"name": "pillow", "skip_reason": "Dependency not found on PyPI"}]})],
    ids=["no connection", "it knows none of them"],
)
def test_an_audit_without_a_source_passes_and_says_so(printed: str, pip_audit_prints: Callable[[str], None]) -> None:
    pip_audit_prints(printed)
    assert "no answer from any source of advisories" in locks.audit()


def test_every_exception_is_for_an_advisory_that_applies() -> None:
    advisories, exceptions = locks.read_advisories()
    pins, required = locks.read_lock(locks.LOCKS / "zoo.txt"), locks.required_by(locks.read_pyproject(), "zoo")
    applies = [*locks.known_vulnerable(advisories, pins), *locks.allowed_by_ranges(advisories, required)]
    assert {(advisory.package, advisory.id) for advisory, where in applies} == exceptions


def test_an_advisory_concerns_the_versions_before_its_repair() -> None:
    advisory = Advisory("pillow", "CVE-0", fixed="12.3.0")
    assert [advisory.affects(version) for version in ("12.2.0", "12.3.0", "13.0.0")] == [True, False, False]
