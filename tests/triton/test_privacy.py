"""Other users of the machine see nothing of what passes between Triton and its models; cleaners leave it its files."""

import asyncio
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from polywand_server.triton.client import TritonClient
from polywand_server.triton.embedded import launch
from polywand_server.triton.embedded.pools import make_private
from polywand_server.triton.embedded.server import EmbeddedTriton
from tests.running import until
from tests.triton.servers import running_triton

# What another user can do: open each of the files.
STRANGER = """
import os, sys
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
readable = []
for path in sys.argv[1:]:
    try:
        os.close(os.open(path, os.O_RDONLY))
        readable.append(path)
    except PermissionError:
        pass
print(len(sys.argv) - 1, readable)
"""
# Pools are private when they appear, before anything could have changed that.
POLL_S = 0.001


def pools(triton: EmbeddedTriton) -> list[Path]:
    return sorted(launch.SHARED_MEMORY.glob(f"{triton.region_prefix}*"))


def seen_by_a_stranger(paths: list[Path]) -> str:
    command = [sys.executable, "-c", STRANGER, *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_can_read_no_pool_when_the_models_are_ready(repository: Path) -> None:
    async with running_triton(repository) as triton:
        client = TritonClient(triton.url)
        for model in ("puppet", "pick"):
            await client.load(model)
            triton.protect_memory()
        # More than the pool holds: it grows.
        x = np.zeros((4, 1 << 18, 3), np.float32)
        await client.infer("puppet", 0, {"X": x}, ["Y"], timeout_s=60)
        found = pools(triton)
        assert seen_by_a_stranger(found) == f"{len(found)} []"
        assert len(found) >= 2
        await client.close()


async def test_a_pool_is_private_from_its_first_moment(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger that opens one in the moment before its mode is changed could read all that comes later."""
    monkeypatch.setattr(EmbeddedTriton, "protect_memory", lambda _: None)
    async with running_triton(repository) as triton:
        client = TritonClient(triton.url)
        modes = set()
        loading = asyncio.create_task(client.load("puppet"))
        while not loading.done():
            modes |= {oct(path.stat().st_mode & 0o777) for path in pools(triton)}
            await asyncio.sleep(POLL_S)
        await loading
        assert modes == {"0o600"}
        await client.close()


async def test_a_pool_that_is_readable_becomes_private_by_itself(repository: Path) -> None:
    async with running_triton(repository) as triton:
        pool = launch.SHARED_MEMORY / f"{triton.region_prefix}of-a-test"
        pool.touch(0o644)
        pool.chmod(0o644)
        await until(lambda: pool.stat().st_mode & 0o777 == 0o600)


def test_only_files_of_ours_are_made_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/shm is everybody's: a stranger can put a link there that bears the right name."""
    monkeypatch.setattr("polywand_server.triton.embedded.pools.SHARED_MEMORY", tmp_path)
    target = tmp_path / "of another program"
    target.touch()
    target.chmod(0o644)
    (tmp_path / "polywand-00000000-link").symlink_to(target)
    os.mkfifo(tmp_path / "polywand-00000000-fifo", 0o644)
    (tmp_path / "polywand-00000000-folder").mkdir()
    (tmp_path / "polywand-00000000-pool").touch()
    (tmp_path / "polywand-00000000-pool").chmod(0o644)
    assert make_private("polywand-00000000-") == 1
    assert target.stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "polywand-00000000-pool").stat().st_mode & 0o777 == 0o600


async def test_the_folder_of_a_running_server_is_locked_against_cleaners(repository: Path) -> None:
    async with running_triton(repository) as triton:
        folder = os.open(Path(triton.url.removeprefix("unix:")).parent, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nothing holds it any more
    os.close(folder)


async def test_a_server_whose_files_were_removed_is_replaced(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_triton(repository) as triton:
        shutil.rmtree(Path(triton.url.removeprefix("unix:")).parent / "backends" / "onnxruntime")
        await until(lambda: triton.restarts == 1)
        client = TritonClient(triton.url)
        await client.load("pick")
        await client.close()
    assert "has lost files" in caplog.text
