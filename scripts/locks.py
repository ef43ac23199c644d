"""Write, check and audit the locks of versions.

    python scripts/locks.py write [OPTION ...]  resolve with uv; locked versions stay, unless --upgrade[-package NAME]
    python scripts/locks.py check               fail if pyproject.toml, the locks and this environment disagree
    python scripts/locks.py audit               fail if an advisory affects a locked version or a range's lower end

A lock lists every distribution that one target of the Makefile installs, with the hashes of its wheels for CPython 3.11
and 3.12 on x86-64 Linux; versions are the same in all locks. Source distributions are left out, so that no code runs at
installation. torch is left out, too: its build, 200 MB for CPUs or several GB for CUDA, depends on the machine, so pip
chooses it by its range in pyproject.toml; the dependencies of the CPU build are locked.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LOCKS = ROOT / "locks"
ADVISORIES = LOCKS / "advisories.toml"
EXTRAS = {
    "zoo": ("dev", "zoo"),
    "dev": ("dev",),
    "serve": ("embedded",),
    "tools": (),
}  # extras of each lock; none: without the project
GROUP = "tools"  # in every lock
WIDEST = "zoo"  # resolved first; the others are subsets
UNLOCKED = "torch"
PYTHONS = ("3.11", "3.12")
INTERPRETERS = {"py3", "cp311", "cp312"}
HEADER = "# Written by `make lock` from pyproject.toml; do not edit.\n"
AUDIT_SECONDS = 300


class LockError(Exception):
    """Locks, pyproject.toml or advisories disagree; one line for each finding."""


@dataclass(frozen=True, slots=True)
class Pin:
    """One line of a lock: a distribution's name, its version, where it applies ("" for everywhere), its hashes."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        marker = f" ; {self.marker}" if self.marker else ""
        return f"{self.name}=={self.version}{marker}" + "".join(
            f" \\\n    --hash=sha256:{hash_}" for hash_ in self.hashes
        )


@dataclass(frozen=True, slots=True)
class Advisory:
    """A known vulnerability of a distribution; `fixed` is the first version without it, None if there is none."""

    package: str
    id: str
    fixed: str | None = None
    what: str = ""

    def affects(self, version: str) -> bool:
        """Return whether a version has it."""
        return self.fixed is None or Version(version) < Version(self.fixed)


def read_lock(path: Path) -> list[Pin]:
    """Read a lock, or any file of pinned requirements."""
    pins = []
    for line in path.read_text().replace("\\\n", " ").splitlines():
        text, *hashes = re.split(r"\s+--hash=sha256:", line.split(" #")[0].strip())
        if not text or text.startswith("#"):
            continue
        requirement = Requirement(text)
        pinned = re.fullmatch(r"==([^*,]+)", str(requirement.specifier))
        if pinned is None:
            raise LockError(f"{path.name}: {text} is not pinned")
        marker = str(requirement.marker or "")
        pins.append(Pin(canonicalize_name(requirement.name), pinned[1], marker, tuple(h.strip() for h in hashes)))
    return pins


def write_locks(options: list[str]) -> None:
    """Resolve with uv and write all locks."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        widest = work / f"{WIDEST}.txt"  # uv keeps the versions in its output file
        if (LOCKS / widest.name).exists():
            widest.write_text((LOCKS / widest.name).read_text())
        _resolve(WIDEST, widest, *options)
        _resolve(WIDEST, work / "pylock.toml", f"--constraint={widest}", "--format=pylock.toml")
        hashes = _wheel_hashes(work / "pylock.toml")
        for lock in EXTRAS:
            if lock != WIDEST:
                _resolve(lock, work / f"{lock}.txt", f"--constraint={widest}")
            lines = [
                Pin(pin.name, pin.version, _short_marker(pin.marker), hashes[pin.name, pin.version])
                for pin in read_lock(work / f"{lock}.txt")
            ]
            (LOCKS / f"{lock}.txt").write_text(HEADER + "".join(f"{line}\n" for line in lines))


def _resolve(lock: str, output: Path, *options: str) -> None:
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", f"--group={GROUP}", f"--output-file={output}"]
    if EXTRAS[lock]:
        command += ["pyproject.toml", *(f"--extra={extra}" for extra in EXTRAS[lock])]
    command += ["--universal", f"--python-version={PYTHONS[0]}", "--fork-strategy=fewest", "--only-binary=:all:"]
    command += [f"--no-emit-package={UNLOCKED}", "--no-annotate", "--no-header", "--no-emit-index-url"]
    subprocess.run([*command, *options], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def _wheel_hashes(pylock: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return, by name and version, the hashes of the wheels for CPython 3.11 and 3.12 on x86-64 Linux."""
    return {
        (package["name"], package["version"]): tuple(
            sorted(
                wheel["hashes"]["sha256"]
                for wheel in package["wheels"]
                if _is_supported(wheel.get("name") or wheel["url"].rsplit("/", 1)[1])
            )
        )
        for package in tomllib.loads(pylock.read_text())["packages"]
    }


def _is_supported(wheel: str) -> bool:
    return any(
        (tag.interpreter in INTERPRETERS or tag.abi == "abi3")
        and (tag.platform == "any" or ("linux" in tag.platform and tag.platform.endswith("x86_64")))
        and "musl" not in tag.platform
        for tag in parse_wheel_filename(unquote(wheel))[3]
    )


def _short_marker(marker: str) -> str:
    """Return an equivalent marker for the locked Pythons; "" if it applies to both."""
    holds = [python for python in PYTHONS if _applies(marker, python)]
    return "" if len(holds) == len(PYTHONS) else " or ".join(f'python_version == "{python}"' for python in holds)


def _applies(marker: str, python: str) -> bool:
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "extra": "",
    }
    return not marker or Marker(marker).evaluate(environment)


def required_by(pyproject: dict[str, Any], lock: str) -> list[Requirement]:
    """Return what pyproject.toml, parsed, requires in a lock directly, without dependencies of dependencies."""
    texts = list(pyproject["dependency-groups"][GROUP])
    project = pyproject["project"]
    if EXTRAS[lock]:
        texts += project["dependencies"]
    extras = list(EXTRAS[lock])
    for extra in extras:  # grows if an extra includes another one
        for text in project["optional-dependencies"][extra]:
            if Requirement(text).name == project["name"]:
                extras += Requirement(text).extras
            else:
                texts.append(text)
    return [Requirement(text) for text in texts]


def disagreements(pyproject: dict[str, Any], locks: dict[str, list[Pin]]) -> Iterator[str]:
    """Yield where locks lack what pyproject.toml requires, or have different versions."""
    widest = {(pin.name, pin.version) for pin in locks[WIDEST]}
    for lock, pins in locks.items():
        for requirement in required_by(pyproject, lock):
            name = canonicalize_name(requirement.name)
            versions = [pin.version for pin in pins if pin.name == name]
            if name != UNLOCKED and not versions:
                yield f"locks/{lock}.txt has no {requirement.name}"
            for version in versions:
                if not requirement.specifier.contains(version, prereleases=True):
                    yield f"locks/{lock}.txt has {name} {version}, but pyproject.toml requires {requirement}"
        for pin in pins:
            if not pin.hashes:
                yield f"locks/{lock}.txt has {pin.name} without a hash"
            if (pin.name, pin.version) not in widest:
                yield f"locks/{lock}.txt has {pin.name} {pin.version}, but locks/{WIDEST}.txt does not"


def unlocked_versions(pins: list[Pin]) -> Iterator[str]:
    """Yield distributions that are installed here in another version than the locked one."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    locked = {pin.name: pin.version for pin in pins if _applies(pin.marker, python)}
    for distribution in metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        if name in locked and Version(distribution.version) != Version(locked[name]):
            yield f"{name} {distribution.version} is installed, but {locked[name]} is locked"


def known_vulnerable(advisories: list[Advisory], pins: list[Pin]) -> Iterator[tuple[Advisory, str]]:
    """Yield each advisory that affects a locked version, and the version."""
    for advisory in advisories:
        for pin in pins:
            if pin.name == advisory.package and advisory.affects(pin.version):
                yield advisory, f"{pin.name} {pin.version}, locked"


def allowed_by_ranges(advisories: list[Advisory], required: list[Requirement]) -> Iterator[tuple[Advisory, str]]:
    """Yield each advisory that affects the lower end of a range, and the range."""
    for requirement in required:
        ends = [
            clause.version
            for clause in requirement.specifier
            if clause.operator in (">=", "==") and "*" not in clause.version
        ]
        for advisory in advisories:
            if canonicalize_name(requirement.name) == advisory.package and any(advisory.affects(end) for end in ends):
                yield advisory, f"{requirement} in pyproject.toml"


def run_pip_audit(lock: Path, count: int) -> tuple[list[tuple[Advisory, set[str]]], str]:
    """Check a lock with pip-audit, which queries pip's package index.

    Returns the advisories with all their ids, and a line that says for how many distributions it had an answer.
    """
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--require-hashes", "--disable-pip"]
    try:
        ran = subprocess.run(
            [*command, "--format=json", "--progress-spinner=off", "--aliases=on"],
            capture_output=True,
            text=True,
            timeout=AUDIT_SECONDS,
            check=False,
        )
        answers = [answer for answer in json.loads(ran.stdout)["dependencies"] if "vulns" in answer]
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        answers = []
    if not answers:
        return [], "pip-audit got no answer from any source of advisories, so only locks/advisories.toml was used"
    found = [
        (Advisory(canonicalize_name(answer["name"]), vulnerability["id"], what=f"in {answer['version']}"), names)
        for answer in answers
        for vulnerability in answer["vulns"]
        if (names := {vulnerability["id"], *vulnerability["aliases"]})
    ]
    return found, f"pip-audit had an answer for {len(answers)} of {count} locked distributions"


def check() -> str:
    """Return a summary. Raises LockError if pyproject.toml, the locks and this environment disagree."""
    locks = {lock: read_lock(LOCKS / f"{lock}.txt") for lock in EXTRAS}
    if wrong := [*disagreements(read_pyproject(), locks), *unlocked_versions(locks[WIDEST])]:
        raise LockError("\n".join([*wrong, "Run `make lock`; if only this environment differs, `make clean`."]))
    return f"the locks match pyproject.toml: {len(locks[WIDEST])} distributions"


def audit() -> str:
    """Return a summary. Raises LockError if an advisory affects a locked version or a range's lower end."""
    pins, required = read_lock(LOCKS / f"{WIDEST}.txt"), required_by(read_pyproject(), WIDEST)
    advisories, exceptions = read_advisories()
    found = [
        f"{where}: {advisory.id}, {advisory.what}; fixed in {advisory.fixed or 'no release'}"
        for advisory, where in [*known_vulnerable(advisories, pins), *allowed_by_ranges(advisories, required)]
        if (advisory.package, advisory.id) not in exceptions
    ]
    answers, extent = run_pip_audit(LOCKS / f"{WIDEST}.txt", len(pins))
    found += [
        f"{advisory.package}: {advisory.id}, {advisory.what}"
        for advisory, names in answers
        if not any((advisory.package, name) in exceptions for name in names)
    ]
    if found:
        raise LockError(
            "\n".join(
                [
                    *dict.fromkeys(found),
                    "Lock a later version, or add an exception with its reason to locks/advisories.toml.",
                ]
            )
        )
    return f"no advisory for a locked version, apart from {len(exceptions)} known exceptions; {extent}"


def read_advisories() -> tuple[list[Advisory], set[tuple[str, str]]]:
    """Read the advisories in locks/advisories.toml, and the exceptions as package and id."""
    content = tomllib.loads(ADVISORIES.read_text())
    advisories = [Advisory(**entry) for entry in content["advisories"]]
    return advisories, {(entry["package"], id_) for entry in content["exceptions"] for id_ in entry["ids"]}


def read_pyproject() -> dict[str, Any]:
    """Read pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def main(arguments: list[str]) -> None:
    """Run one of the commands."""
    match arguments:
        case ["write", *options]:
            write_locks(options)
        case ["check"]:
            print(f"locks: {check()}")
        case ["audit"]:
            print(f"audit: {audit()}")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except LockError as error:
        sys.exit(str(error))
