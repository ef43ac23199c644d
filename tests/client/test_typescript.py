"""The TypeScript client: its own tests, by Node's test runner, and the examples of its page, against real services."""

import json
import re
import tarfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from numpy.typing import NDArray
from PIL import Image

from tests.node import ROOT, run
from tests.running import Service, running_service

CLIENT = ROOT / "clients/typescript"
PAGE = ROOT / "docs/typescript.md"
API = ROOT / "docs/api.md"
# grpcurl is in no registry of packages. `buf curl` reads the same JSON, and asks the server for the contract too.
GRPCURL = """
grpcurl() {
  local data=()
  while [[ $1 == -* ]]; do
    case $1 in -plaintext) shift ;; -max-msg-sz) shift 2 ;; -d) data=(-d "$2-"); shift 2 ;; *) return 2 ;; esac
  done
  buf curl --protocol grpc --http2-prior-knowledge "${data[@]}" "http://$1/$2"
}
set -euo pipefail
"""


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


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A certificate of localhost, its key, and the authority's."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    return tmp_path


def test_what_single_calls_promise_holds(built: Path, puppets: Service, certificates: Path) -> None:
    run_tests(built / "test/calls.test.js", puppets.target, POLYWAND_CERTIFICATES=str(certificates))


def test_what_a_session_promises_holds(built: Path, puppets: Service, puppet_models: Path) -> None:
    run_tests(built / "test/session.test.js", puppets.target, POLYWAND_GATES=str(puppet_models.parent))


def test_a_session_outlives_replicas_that_are_drained_and_killed(built: Path, puppets: Service, tmp_path: Path) -> None:
    with ExitStack() as stack:
        replicas = [
            stack.enter_context(running_service(tmp_path / f"log-{number}", f"--triton-url={puppets.triton}"))
            for number in range(3)
        ]
        for replica in replicas:
            replica.wait_ready("disk")
        told = [{"target": replica.target, "pid": replica.process.pid} for replica in replicas]
        run_tests(built / "test/replicas.test.js", puppets.target, POLYWAND_REPLICAS=json.dumps(told))


def blocks(text: str, kind: str) -> list[str]:
    """The blocks of code of one kind in a page."""
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def photo(tmp_path: Path, astronaut: NDArray[np.uint8]) -> Path:
    path = tmp_path / "photo.jpg"
    Image.fromarray(astronaut).save(path)
    return path


def test_the_pages_examples_run_with_the_packed_client(built: Path, server: Service, photo: Path) -> None:
    project = photo.parent
    packed = run("npm", "pack", "--workspace", "@polywand/client", "--pack-destination", project)
    assert packed.returncode == 0, packed.stderr
    (project / "package.json").write_text('{"type": "module"}')
    (archive,) = project.glob("*.tgz")
    with tarfile.open(archive) as files:
        assert not [name for name in files.getnames() if "/test/" in name]
        files.extractall(project / "unpacked", filter="data")
    # Its dependencies are those of the lock, instead of the registry's newest.
    modules = project / "node_modules"
    (modules / "@polywand").mkdir(parents=True)
    (project / "unpacked/package").rename(modules / "@polywand/client")
    for name in ("@grpc", "@bufbuild", "@types", "undici-types"):
        (modules / name).symlink_to(ROOT / "node_modules" / name)
    examples = blocks(PAGE.read_text(), "ts")
    assert len(examples) == 5
    target = json.dumps(server.target)
    (project / "example.ts").write_text("\n".join(examples).replace('"localhost:50051"', target))
    options = ("--module", "nodenext", "--target", "es2022", "--lib", "es2022,esnext.disposable", "--types", "node")
    compiled = run("tsc", "--strict", *options, "example.ts", cwd=project)
    assert compiled.returncode == 0, compiled.stdout
    done = run("node", "example.js", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "512 x 512"
    assert [re.sub(r"\d+ v", "N v", line) for line in lines[1:3]] == [
        "a wand_click N vertices",
        "b wand_click N vertices",
    ]
    assert any(line.startswith("human 0.") for line in lines)
    _, error, after = done.stdout.partition("NOT_FOUND MODEL_NOT_FOUND")
    assert error
    assert "'wand_click'" in after


def test_the_json_of_the_page_on_the_api_works(server: Service, photo: Path) -> None:
    script = blocks(API.read_text().partition("## Any language")[2], "sh")[0]
    done = run("bash", "-c", GRPCURL + script.replace("localhost:50051", server.target), cwd=photo.parent)
    assert done.returncode == 0, done.stderr
    replies = read_all(done.stdout)
    assert [set(reply) & {"capabilities", "models", "results", "sequence"} for reply in replies] == [
        {"capabilities"}, {"models"}, {"results"}, {"sequence"}, {"sequence"}
    ]  # fmt: skip
    assert ["segmentation" in result for result in replies[2]["results"]] == [True, True]
    assert "segmentation" in replies[4]


def read_all(text: str) -> list[dict[str, Any]]:
    """JSON objects one after another."""
    found, decoder = [], json.JSONDecoder()
    while text := text.strip():
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:]
    return found
