"""What the service's process imports."""

import subprocess
import sys

import pytest

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
