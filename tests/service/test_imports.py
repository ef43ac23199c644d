"""What the service's process imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import polywand_server

PROGRAM = "import sys; import {module}; print(*(name for name in sys.modules if name.partition('.')[0] in {others}))"


def imported(module: str, *others: str) -> list[str]:
    """Import a module in a process of its own; return the modules of other packages that are there then."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module=module, others=others)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return ran.stdout.split()


@pytest.mark.parametrize("module", ["polywand_server.server", "polywand_server.cli"])
def test_the_service_imports_neither_sdk_nor_zoo(module: str) -> None:
    assert imported(module, "polywand", "polywand_zoo") == []


@pytest.mark.parametrize("module", ["polywand_contract.v1.annotation_pb2_grpc", "polywand_contract.raster"])
def test_the_contract_imports_neither_service_nor_sdk(module: str) -> None:
    assert imported(module, "polywand", "polywand_server", "polywand_zoo", "polywand_common", "polywand_pictures") == []


@pytest.mark.parametrize("module", ["polywand_common.console", "polywand_common.proxies", "polywand_common.texts"])
def test_what_command_lines_share_imports_neither_service_nor_sdk(module: str) -> None:
    assert imported(module, "polywand", "polywand_server", "polywand_zoo") == []


# Top to bottom as in docs/design.md: each imports only what is below it.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("options",),
    ("budgets",),
    ("server",),
    ("ports",),
    ("wiring", "jobs"),
    ("rpc",),
    ("session", "detectors"),
    ("interactors",),
    ("tools", "geometry"),
    ("images",),
    ("lanes", "workers"),
    ("triton", "admission"),
    ("auth",),
    ("ops",),
    ("auth",),
    ("errors", "config", "timing", "caller"),
    ("principal",),
)
MOST_IMPORTS = 12  # of the service's own modules; but wiring puts all together
SERVICE = Path(polywand_server.__file__).parent


def own_imports() -> dict[str, set[str]]:
    """Return what each module of the service imports of the others: paths such as "rpc/detect"."""
    files = [file for file in SERVICE.rglob("*.py") if "backends" not in file.parts]
    modules = {file.relative_to(SERVICE).with_suffix("").as_posix(): file for file in files}
    found: dict[str, set[str]] = {}
    for name, file in modules.items():
        found[name] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("polywand_server."):
                package = node.module.removeprefix("polywand_server.").replace(".", "/")
                inner = {f"{package}/{alias.name}" for alias in node.names} & modules.keys()
                found[name] |= inner or {package}
            elif isinstance(node, ast.ImportFrom) and node.module == "polywand_server":
                found[name] |= {alias.name for alias in node.names} & modules.keys()
    return found


def test_imports_run_one_way_down_the_house() -> None:
    floor = {package: number for number, packages in enumerate(FLOORS) for package in packages}
    up = [
        f"{module} imports {other}"
        for module, others in own_imports().items()
        for other in others
        if module != "__init__"
        and module.partition("/")[0] != other.partition("/")[0]
        and floor[module.partition("/")[0]] >= floor[other.partition("/")[0]]
    ]
    assert up == []


def test_no_module_but_the_wiring_imports_more_than_twelve_others() -> None:
    assert [name for name, others in own_imports().items() if len(others) > MOST_IMPORTS] == ["wiring"]
