"""The memory of a container, and what the service takes of it."""

from pathlib import Path

import pytest

from polywand_server.budgets import OWN_BYTES, TRITON_BYTES, budgets, total
from polywand_server.config import Limits, Settings
from polywand_server.ops.container import usable_memory
from tests.running import running_service

GIBIBYTE, MEBIBYTE = 1 << 30, 1 << 20


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/", {"memory.max": f"{GIBIBYTE}\n"}),  # version 2, in a container
        ("0::/pod/polywand", {"pod/polywand/memory.max": "max\n", "pod/memory.max": f"{GIBIBYTE}\n"}),
        ("4:memory:/docker/12\n0::/", {"memory/docker/12/memory.limit_in_bytes": f"{GIBIBYTE}\n"}),  # version 1
        ("4:cpu,memory:/docker/12", {"memory/memory.limit_in_bytes": f"{GIBIBYTE}\n"}),
        ("0::/a", {"a/memory.max": f"{GIBIBYTE}\n", "memory.max": f"{2 * GIBIBYTE}\n"}),
    ],
)
def test_the_smallest_limit_of_the_control_groups_counts(tmp_path, membership, files):
    own = lay_out(tmp_path, {**files, "own": membership}) / "own"
    memory = usable_memory(tmp_path, own)
    assert (memory.nbytes, memory.of) == (GIBIBYTE, "the container")


@pytest.mark.parametrize(
    "files",
    [{}, {"memory.max": "max\n"}, {"memory.max": "nonsense"}, {"memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}],
)
def test_without_a_limit_it_is_the_machines(tmp_path, files):
    own = lay_out(tmp_path, {**files, "own": "4:memory:/\n0::/"}) / "own"
    assert usable_memory(tmp_path, own).of == "the machine"
    assert usable_memory(tmp_path, tmp_path / "none").of == "the machine"


@pytest.mark.parametrize("gibibytes", [1.5, 2, 4, 8, 12])
@pytest.mark.parametrize("has_triton", [True, False])
def test_all_budgets_together_leave_room_for_the_service_and_its_triton(gibibytes, has_triton):
    usable = int(gibibytes * GIBIBYTE)
    own = OWN_BYTES + TRITON_BYTES * has_triton
    given = budgets(usable, GIBIBYTE, has_triton=has_triton)
    limits = Limits(
        images_bytes=given.images_bytes,
        decoder_bytes=given.decoder_bytes,
        memory_bytes=given.memory_bytes,
        bodies_bytes=given.bodies_bytes,
        reply_bytes=given.reply_bytes,
    )
    taken = total(Settings(limits=limits, shared_memory_bytes=given.shared_memory_bytes))
    assert taken <= max(usable - own, usable * 0.3)
    assert given.kept_images_bytes < given.images_bytes


def test_with_much_memory_they_are_the_defaults_and_small_shared_memory_bounds_its_own():
    given, limits = budgets(64 * GIBIBYTE, 64 * MEBIBYTE, has_triton=True), Limits()
    assert given.images_bytes == limits.images_bytes
    assert given.kept_images_bytes == limits.kept_images_bytes
    assert given.memory_bytes == limits.memory_bytes
    assert given.shared_memory_bytes == 32 * MEBIBYTE
    assert budgets(GIBIBYTE, 0, has_triton=True).shared_memory_bytes == 0


def test_the_log_says_what_memory_there_is_and_what_is_too_much(tmp_path):
    options = "--triton-url=127.0.0.1:9", "--images-mebibytes=100000000"
    with running_service(tmp_path / "log", *options) as service:
        log = service.log.read_text()
    assert "MiB; at most 100000000 for images" in log
    assert "the service may be killed" in log
