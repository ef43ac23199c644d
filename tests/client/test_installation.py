"""What `pip install polywand` brings is enough for the SDK; what the extras add is enough for the command line."""

import os
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import pytest
from packaging.requirements import Requirement

from tests.running import Service

ROOT = Path(__file__).parent.parent.parent
SOURCES = ("clients/python", "common", "contract", "pictures", "service", "zoo")
Run: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]


def required(*extras: str) -> set[str]:
    """Return the distributions that polywand with these extras requires, and those that they require."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = project["dependencies"] + [text for extra in extras for text in project["optional-dependencies"][extra]]
    found: set[str] = set()
    while texts:
        requirement = Requirement(texts.pop())
        if requirement.name not in found and (not requirement.marker or requirement.marker.evaluate({"extra": ""})):
            found.add(requirement.name)
            texts += metadata.requires(requirement.name) or []
    return found


def environment(place: Path, *extras: str) -> Run:
    """Make an environment with these distributions alone, as links to this one's; return how to run its Python."""
    venv.create(place, symlinks=True, with_pip=False)
    (site,) = place.glob("lib/python*/site-packages")
    for name in required(*extras):
        for file in metadata.files(name) or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                (site / file).symlink_to(Path(str(file.locate())))
    (site / "polywand-0.dist-info").mkdir()
    (site / "polywand-0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: polywand\nVersion: 0\n")
    (site / "polywand.pth").write_text("".join(f"{ROOT / source}\n" for source in SOURCES))

    def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("POLYWAND_", "PYTHON"))}
        command = [str(place / "bin/python"), *map(str, arguments)]
        return subprocess.run(
            command, env=clean | variables, cwd=place, capture_output=True, text=True, timeout=60, check=False
        )

    return run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return environment(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def with_cli(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return environment(tmp_path_factory.mktemp("cli"), "cli")


@pytest.fixture(scope="module")
def with_overlay(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return environment(tmp_path_factory.mktemp("overlay"), "cli", "overlay")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), np.full((64, 96, 3), 90, np.uint8))
    return path


def test_the_sdk_needs_six_distributions() -> None:
    assert required() == {
        *("googleapis-common-protos", "grpcio", "grpcio-status", "numpy", "protobuf"),
        "typing-extensions",  # of grpcio
    }


def test_the_sdk_works_with_what_it_requires(base: Run, puppets: Service, photo: Path) -> None:
    program = """
import sys, numpy as np, polywand
with polywand.connect(sys.argv[1]) as client:
    print(any(model.name == "leaning" for model in client.models()))
    print(len(client.detect(np.zeros((64, 96, 3), np.uint8), model="finder")) > 0)
    with client.open(sys.argv[2]) as session:
        outline = session.prompt("leaning", positive=[(20, 20)])
        print(polywand.rasterise(outline.polygons, 96, 64).shape)
"""
    ran = base("-c", program, puppets.target, photo)
    assert (ran.stdout.split("\n")[:-1], ran.stderr) == (["True", "True", "(64, 96)"], "")


def test_without_click_the_command_says_what_to_install(base: Run) -> None:
    for arguments in (["models"], ["--help"], []):
        ran = base("-m", "polywand", *arguments)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ran.stderr == "Error: polywand needs click: pip install 'polywand[cli]'\n"


@pytest.mark.parametrize(("command", "extra"), [("server", "server"), ("zoo", "zoo")])
def test_without_their_extras_the_other_commands_say_what_to_install(base: Run, command: str, extra: str) -> None:
    ran = base("-c", f"from polywand_common import entry; entry.{command}()")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert re.fullmatch(rf"Error: polywand-{command} needs \w+: pip install 'polywand\[{extra}\]'\n", ran.stderr)


def test_every_entry_point_is_there() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == {"polywand", "polywand-server", "polywand-zoo"}
    for name, value in scripts.items():
        assert callable(metadata.EntryPoint(name, value, "console_scripts").load())


def test_the_command_needs_no_opencv(with_cli: Run, puppets: Service, photo: Path) -> None:
    for arguments in (["models"], ["detect", photo, "--model=finder", "--json"]):
        ran = with_cli("-m", "polywand", *arguments, POLYWAND_TARGET=puppets.target)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout


@pytest.mark.parametrize("option", ["--overlay", "--seed"])
def test_without_opencv_an_option_says_what_to_install(with_cli: Run, photo: Path, option: str) -> None:
    ran = with_cli("-m", "polywand", "interact", photo, option, "x.png", POLYWAND_TARGET="localhost:1")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"Error: {option} needs cv2, PIL, simplejpeg: pip install 'polywand[overlay]'\n"


def test_with_opencv_answers_are_drawn_and_seeds_read(with_overlay: Run, puppets: Service, photo: Path) -> None:
    out = photo.with_name("out.png")
    ran = with_overlay(
        *("-m", "polywand", "interact", photo, "--model=keeper", "--positive=20,20", "--seed", photo),
        *("--overlay", out),
        POLYWAND_TARGET=puppets.target,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert cv2.imread(str(out)).shape == (64, 96, 3)


def test_import_polywand_loads_no_more_than_it_needs() -> None:
    program = "import sys, polywand; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert "grpc" in loaded
    assert loaded.isdisjoint({"click", "cv2", "PIL", "polywand_pictures", "polywand_server", "polywand_zoo"})
