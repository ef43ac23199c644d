"""The embedded server's life: it comes back when it dies or hangs, and leaves nothing behind."""

import asyncio
import contextlib
import dataclasses
import fcntl
import importlib.util
import os
import shutil
import signal
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from polywand_server.errors import UnavailableError
from polywand_server.triton.client import TritonClient
from polywand_server.triton.embedded import launch, process
from polywand_server.triton.embedded import server as embedded
from polywand_server.triton.embedded.process import TritonProcess
from polywand_server.triton.embedded.server import EmbeddedTriton, EmbeddedTritonError, State
from polywand_server.triton.embedded.wheel import Wheel, assemble, find_wheel
from polywand_server.triton.failures import ModelDiedError
from tests.running import until
from tests.tools.tending import Tended, tended
from tests.triton.servers import running_triton

SERVICE = """
import asyncio, sys
from pathlib import Path
from polywand_server.triton.embedded import server as embedded
from polywand_server.triton.client import TritonClient
from polywand_server.triton.embedded.server import EmbeddedTriton

async def main():
    triton = EmbeddedTriton(Path(sys.argv[1]))
    await triton.start()
    await TritonClient(triton.url).load("puppet")
    print(triton.url, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture
async def own(repository: Path) -> AsyncIterator[EmbeddedTriton]:
    """A server that may be harmed."""
    async with running_triton(repository) as server:
        yield server


def token(url: str) -> str:
    return Path(url.removeprefix("unix:")).parent.name.removeprefix("polywand-")


def processes(url: str) -> dict[str, int]:
    """Process ids by role: "launcher", "server", "stub" (the last one found)."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if not any(token(url) in argument for argument in arguments):
            continue
        roles = {"tritonserver": "server", "triton_python_backend_stub": "stub"}
        found[roles.get(Path(arguments[0]).name, "launcher")] = int(entry.name)
    return found


def leftovers(url: str) -> list[str]:
    shared = [str(path) for path in Path("/dev/shm").glob(f"polywand-{token(url)}*")]
    scratch = Path(url.removeprefix("unix:")).parent
    return [*processes(url), *shared, *([str(scratch)] if scratch.exists() else [])]


def waits_for(descriptor: int) -> bool:
    """Whether a lock on this file waits for the one that holds it."""
    inode = os.fstat(descriptor).st_ino
    lines = Path("/proc/locks").read_text().splitlines()
    return any("-> FLOCK" in line and f":{inode} " in line for line in lines)


async def run_service(repository: Path) -> tuple[asyncio.subprocess.Process, str]:
    """Start a process that holds an embedded Triton; return it and Triton's address."""
    service = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVICE, str(repository)), stdout=asyncio.subprocess.PIPE
    )
    assert service.stdout is not None
    return service, (await service.stdout.readline()).decode().strip()


async def answers(client: TritonClient) -> bool:
    await client.load("puppet")
    x = np.zeros((1, 1, 3), np.float32)
    return "Y" in await client.infer("puppet", 0, {"X": x}, ["Y"], timeout_s=30.0)


async def test_a_stopped_server_leaves_nothing_behind(repository: Path) -> None:
    triton = EmbeddedTriton(repository)
    assert triton.state is State.STOPPED
    await triton.start()
    assert triton.state is State.READY
    client = TritonClient(triton.url)
    assert await answers(client)
    await client.close()
    assert set(processes(triton.url)) == {"launcher", "server", "stub"}
    await triton.stop()
    assert triton.state is State.STOPPED
    assert leftovers(triton.url) == []
    await triton.stop()


async def test_a_killed_server_is_replaced_under_the_same_address(own: EmbeddedTriton) -> None:
    client = TritonClient(own.url)
    assert await answers(client)
    slow = asyncio.create_task(
        client.infer("puppet", 0, {"X": np.full((1, 1, 3), 5000, np.float32)}, ["Y"], timeout_s=10.0)
    )
    await asyncio.sleep(0.2)
    stub = processes(own.url)["stub"]
    os.kill(processes(own.url)["server"], signal.SIGKILL)
    with pytest.raises(UnavailableError):
        await slow
    await until(lambda: own.restarts == 1)
    assert own.state is State.READY
    assert processes(own.url).get("stub") != stub
    assert await answers(client)
    await client.close()


async def test_a_server_that_hangs_is_replaced(repository: Path) -> None:
    async with running_triton(repository, hang_timeout_s=3.0) as own:
        os.kill(processes(own.url)["server"], signal.SIGSTOP)
        await until(lambda: own.restarts == 1)
        client = TritonClient(own.url)
        assert await answers(client)
        await client.close()


async def test_a_model_process_that_was_only_slow_gives_no_request_the_answer_of_another(
    tmp_path: Path, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Triton calls it dead after a second or two without a sign of life, and forgets what it still computes."""
    shutil.copytree(repository / "puppet", tmp_path / "puppet")
    async with (
        running_triton(tmp_path) as own,
        tended(own.url, tmp_path, end_processes=own.end_model_processes) as models,
    ):
        await is_only_slow(own, models, caplog)


async def is_only_slow(own: EmbeddedTriton, models: Tended, caplog: pytest.LogCaptureFixture) -> None:
    client = models.client
    assert await answers(client)

    async def echo(number: int) -> int:
        x = np.full((1, 1, 3), number, np.float32)
        return int((await client.infer("puppet", 0, {"X": x}, ["Y"], timeout_s=60.0))["Y"].flat[0])

    slow = processes(own.url)["stub"]
    computed = asyncio.create_task(echo(3000))
    waiting = [asyncio.create_task(echo(number)) for number in (20, 21)]
    await asyncio.sleep(0.2)
    os.kill(slow, signal.SIGSTOP)
    with pytest.raises(ModelDiedError):
        await computed
    with contextlib.suppress(ProcessLookupError):
        os.kill(slow, signal.SIGCONT)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    await until(lambda: not models.loader.is_busy("puppet"))
    for asked, outcome in zip((20, 21), outcomes, strict=True):
        assert outcome == asked or isinstance(outcome, UnavailableError)
    assert [await echo(number) for number in range(30, 40)] == list(range(30, 40))
    assert own.restarts == 0
    assert processes(own.url)["stub"] != slow
    assert (
        caplog.text.count("loading it again") == 1
    )  # the requests that waited behind it did not bring the model down again


async def test_only_the_processes_of_the_model_and_of_this_server_are_ended(
    own: EmbeddedTriton, repository: Path
) -> None:
    client = TritonClient(own.url)
    await client.load("queue")
    async with running_triton(repository) as other:
        elsewhere = TritonClient(other.url)
        assert await answers(elsewhere)
        assert await answers(client)
        own.end_model_processes("puppet", None)
        x = {"X": np.zeros((1, 1, 3), np.float32)}
        with pytest.raises(ModelDiedError):
            await client.infer("puppet", 0, x, ["Y"], timeout_s=30.0)
        assert await answers(elsewhere)
        # A process that was ended would fail this one: the first to notice.
        assert "Y" in await client.infer("queue", 0, x, ["Y"], timeout_s=30.0)
        await elsewhere.close()
    await client.close()


async def test_a_server_whose_launcher_is_killed_is_replaced(own: EmbeddedTriton) -> None:
    server = processes(own.url)["server"]
    os.kill(processes(own.url)["launcher"], signal.SIGKILL)
    await until(lambda: own.restarts == 1)
    assert processes(own.url)["server"] != server
    await own.stop()
    assert leftovers(own.url) == []


async def test_a_service_that_is_killed_leaves_nothing_behind(repository: Path) -> None:
    service, url = await run_service(repository)
    assert set(processes(url)) == {"launcher", "server", "stub"}
    service.kill()
    await until(lambda: leftovers(url) == [])
    await service.wait()


async def test_what_a_killed_launcher_and_service_left_is_removed_at_the_next_start(repository: Path) -> None:
    service, url = await run_service(repository)
    launcher = processes(url)["launcher"]
    # Tests that run beside this one start servers, too: the lock keeps their sweeps away until this test has checked.
    with (launch.SHARED_MEMORY / f"polywand-{token(url)}.lock").open() as lock:
        locked = asyncio.get_running_loop().run_in_executor(None, fcntl.flock, lock, fcntl.LOCK_SH)
        await until(lambda: waits_for(lock.fileno()))
        service.send_signal(signal.SIGSTOP)
        os.kill(launcher, signal.SIGKILL)
        service.kill()
        await service.wait()
        await until(lambda: not processes(url))
        await asyncio.wait_for(locked, 60.0)
        assert leftovers(url)
    async with running_triton(repository):
        await until(lambda: leftovers(url) == [])


async def test_a_running_server_survives_the_sweep_of_another_start(own: EmbeddedTriton, repository: Path) -> None:
    client = TritonClient(own.url)
    assert await answers(client)
    async with running_triton(repository) as other:
        assert other.url != own.url
        assert await answers(client)
    assert own.restarts == 0
    await client.close()


async def test_empty_directories_of_killed_servers_go_when_no_server_lives(tmp_path: Path) -> None:
    alive, environments = tmp_path / "proc" / "7", tmp_path / "tmp"
    for folder in (
        alive,
        environments / "python_env_a",
        environments / "python_env_b" / "in use",
        environments / "other",
    ):
        folder.mkdir(parents=True)
    (alive / "comm").write_text("tritonserver\n")
    launch.remove_environments(tmp_path / "proc", environments)
    assert len(list(environments.iterdir())) == 3
    (alive / "comm").write_text("something else\n")
    launch.remove_environments(tmp_path / "proc", environments)
    assert sorted(path.name for path in environments.iterdir()) == ["other", "python_env_b"]


async def test_a_start_that_fails_says_why_with_the_last_lines(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = tmp_path / "tritonserver"
    server.write_text("#!/bin/sh\necho out of tune\nexit 3\n")
    server.chmod(0o700)
    wheel = dataclasses.replace(find_wheel(), server=server)
    monkeypatch.setattr(embedded, "find_wheel", lambda: wheel)
    triton = EmbeddedTriton(repository)
    with pytest.raises(EmbeddedTritonError, match="exited with status 3; its last lines:\nout of tune"):
        await triton.start()
    assert triton.state is State.STOPPED
    assert leftovers(triton.url) == []


async def test_a_repository_with_a_blank_in_its_path_is_served(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / "puppet", tmp_path / "my models" / "puppet")
    async with running_triton(tmp_path / "my models") as server:
        client = TritonClient(server.url)
        await client.load("puppet")
        x = np.zeros((1, 2, 3), np.float32)
        np.testing.assert_array_equal((await client.infer("puppet", 0, {"X": x}, ["Y"], timeout_s=10))["Y"], x)
        await client.close()


async def test_a_missing_repository_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedTritonError, match="nowhere is not a folder"):
        await EmbeddedTriton(tmp_path / "nowhere").start()


async def test_without_the_wheel_the_error_tells_what_to_do(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EmbeddedTritonError, match=r"install polywand\[embedded\], or give --triton-url"):
        await EmbeddedTriton(repository).start()


async def test_a_start_that_is_cancelled_leaves_nothing_behind(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def not_yet(self: TritonClient, timeout_s: float) -> bool:
        return False

    monkeypatch.setattr(TritonClient, "server_ready", not_yet)  # so that it has not started before it is cancelled
    triton = EmbeddedTriton(repository)
    starting = asyncio.create_task(triton.start())
    await until(lambda: "server" in processes(triton.url))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert leftovers(triton.url) == []


async def test_a_start_that_is_cancelled_while_files_are_copied_leaves_nothing_behind(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copying, go_on = threading.Event(), threading.Event()

    def slow(wheel: Wheel, scratch: Path) -> list[Path]:
        copying.set()
        assert go_on.wait(60)
        return assemble(wheel, scratch)

    monkeypatch.setattr(process, "assemble", slow)
    triton = EmbeddedTriton(repository)
    starting = asyncio.create_task(triton.start())
    await until(copying.is_set)
    starting.cancel()
    await asyncio.sleep(0.1)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert leftovers(triton.url) == []


async def test_a_start_whose_probe_fails_is_no_start(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: TritonClient, timeout_s: float) -> bool:
        raise MemoryError

    monkeypatch.setattr(TritonClient, "server_ready", fail)
    triton = EmbeddedTriton(repository)
    with pytest.raises(MemoryError):
        await triton.start()
    assert triton.state is State.STOPPED
    assert leftovers(triton.url) == []


async def test_an_unexpected_end_of_the_monitoring_is_reported(
    own: EmbeddedTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise Triton would never be started again, and no log would tell."""

    async def fail(self: TritonProcess) -> None:
        raise PermissionError("not yours")

    watching = asyncio.create_task(own.supervised())
    with monkeypatch.context() as patched:
        patched.setattr(TritonProcess, "kill", fail)
        os.kill(processes(own.url)["server"], signal.SIGKILL)
        with pytest.raises(PermissionError):
            await asyncio.wait_for(watching, 60)


@pytest.mark.parametrize("lost", ["grpc:0", "backends/python/triton_python_backend_stub", "."])
async def test_a_server_whose_files_are_cleaned_away_is_replaced(own: EmbeddedTriton, lost: str) -> None:
    path = Path(own.url.removeprefix("unix:")).parent / lost
    assert path.exists()
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    await until(lambda: own.restarts == 1)
    client = TritonClient(own.url)
    assert await answers(client)
    await client.close()


def test_a_launch_is_not_taken_for_a_dead_one_while_it_takes_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another launch may clean up at any moment, and the folder of this one is there before its lock is."""
    token = "0f0f0f0f"
    scratch = tmp_path / launch.scratch_name(token)
    scratch.mkdir()
    lock = fcntl.flock

    def sweep_and_lock(descriptor: int, how: int) -> None:
        if how == fcntl.LOCK_EX:
            launch.sweep(tmp_path)
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", sweep_and_lock)
    descriptor = launch.lock(token)
    try:
        launch.sweep(tmp_path)
        assert scratch.exists()
    finally:
        os.close(descriptor)
        launch.remove(token, scratch)
