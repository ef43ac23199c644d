"""What `buf` finds: `make contract-check` passes, and finds what would break clients of the last release."""

import shutil
from pathlib import Path

import google.rpc
import pytest

from tests.node import ROOT, run

CONTRACT = "proto/polywand/v1/annotation.proto"
RELEASED = "contract/released/polywand/v1/annotation.proto"
AGAINST = ("--against", ".", "--against-config", "contract/released.yaml")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what buf reads, to change, in which the contract is the released one."""
    for folder in ("proto", "contract/released"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for file in ("buf.yaml", "contract/released.yaml"):
        shutil.copy(ROOT / file, tmp_path / file)
    shutil.copy(ROOT / RELEASED, tmp_path / CONTRACT)
    return tmp_path


def replace(copy: Path, old: str, new: str) -> None:
    text = (copy / CONTRACT).read_text()
    assert text.count(old) == 1
    (copy / CONTRACT).write_text(text.replace(old, new))


def test_the_contract_passes_buf_lint() -> None:
    linted = run("buf", "lint")
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_the_contract_breaks_no_client_of_the_last_release() -> None:
    compared = run("buf", "breaking", *AGAINST)
    assert compared.returncode == 0, compared.stdout + compared.stderr


def test_a_field_or_a_value_may_be_added(copy: Path) -> None:
    replace(copy, "  bool provisional = 8;\n", "  bool provisional = 8;\n  // New.\n  string more = 9;\n")
    replace(copy, "  OUTPUT_FORM_BOX = 4;\n", "  OUTPUT_FORM_BOX = 4;\n  // New.\n  OUTPUT_FORM_MORE = 5;\n")
    compared = run("buf", "breaking", *AGAINST, cwd=copy)
    assert compared.returncode == 0, compared.stdout + compared.stderr


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("  bool provisional = 8;\n", "", 'Previously present field "8" with name "provisional"'),
        ("  uint32 skipped = 3;\n", "  uint64 skipped = 3;\n", 'changed type from "uint32" to "uint64"'),
        ("  uint32 skipped = 3;\n", "  uint32 passed_over = 3;\n", 'changed name from "skipped"'),
        ("  OUTPUT_FORM_PNG = 3;\n", "  OUTPUT_FORM_PNG = 9;\n", 'Previously present enum value "3"'),
        ("  rpc Detect(DetectRequest)", "  rpc Find(DetectRequest)", 'Previously present RPC "Detect"'),
        ("  oneof spec {\n", "  oneof needs {\n", 'Previously present oneof "spec"'),
    ],
    ids=["removed", "type", "name", "value", "call", "oneof"],
)
def test_what_would_break_a_client_is_found(copy: Path, old: str, new: str, finding: str) -> None:
    replace(copy, old, new)
    compared = run("buf", "breaking", *AGAINST, cwd=copy)
    assert compared.returncode != 0
    assert finding in compared.stdout


def test_a_field_without_a_comment_is_found(copy: Path) -> None:
    replace(copy, "  bool provisional = 8;\n", "  bool provisional = 8;\n  string more = 9;\n")
    linted = run("buf", "lint", cwd=copy)
    assert linted.returncode != 0
    assert 'Field "more" should have a non-empty comment' in linted.stdout


@pytest.mark.parametrize("file", ["google/rpc/status.proto", "google/rpc/error_details.proto"])
def test_googles_files_are_the_ones_that_python_has(file: str) -> None:
    python = Path(next(iter(google.rpc.__path__))).parents[1] / file
    assert (ROOT / "proto" / file).read_bytes() == python.read_bytes()
