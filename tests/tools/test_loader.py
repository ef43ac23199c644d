"""What Triton has loaded has one owner: it loads, loads again and revives, and takes nothing out that is healthy."""

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from polywand_server.errors import ModelFailedError
from polywand_server.tools import history
from polywand_server.triton.client import DeadProcess, TritonClient
from polywand_server.triton.embedded.server import EmbeddedTriton
from polywand_server.triton.embedded.wheel import assemble, command, environment, find_wheel, socket_url
from polywand_server.triton.failures import ControlRefusedError, ModelDiedError
from tests.running import until
from tests.tools.tending import DIES, RAISES, add_puppet, add_version, starts, tended
from tests.triton.test_embedded import processes

pytestmark = pytest.mark.asyncio(loop_scope="module")

REFUSED = ControlRefusedError("explicit model load / unload is not allowed if polling is enabled")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools") / "models"
    folder.mkdir()
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def triton(repository: Path) -> AsyncIterator[EmbeddedTriton]:
    server = EmbeddedTriton(repository)
    await server.start()
    yield server
    await server.stop(0.1)


@pytest.fixture(autouse=True)
def soon(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let what failed be tried again soon, and leave no model to the next test."""
    monkeypatch.setattr(history, "FIRST_RETRY_SECONDS", 0.3)
    yield
    for folder in repository.iterdir():
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()


async def test_a_first_load_with_a_broken_version_leaves_the_sound_one_in_service(triton, repository):
    folder = add_puppet(repository, "first", 1, 2, broken=[2])
    async with tended(triton.url, repository) as models:
        await until(lambda: models.versions("first").get(1) == "")
        assert "out of tune" in models.versions("first")[2]
        begun = starts(repository, "first", 1)
        tries = starts(repository, "first", 2)
        await until(lambda: starts(repository, "first", 2) > tries)  # again, though nothing has changed
        await models.order("first", 0)
        (folder / "2" / "broken").unlink()
        await until(lambda: models.versions("first") == {1: "", 2: ""})
        assert starts(repository, "first", 1) == begun
        add_version(folder, 3)
        await until(lambda: models.versions("first") == {2: "", 3: ""})
        shutil.rmtree(folder)
        await until(lambda: not models.versions("first"))


async def test_a_version_without_its_file_says_so_and_holds_nothing_up(triton, repository):
    """Triton would wait for such a Python model for ever."""
    folder = add_puppet(repository, "hollow", 1)
    (folder / "2").mkdir()
    (add_puppet(repository, "empty") / "1").mkdir()
    async with tended(triton.url, repository) as models:
        await until(lambda: models.registry.ready)
        assert models.versions("hollow") == {1: "", 2: "its model.py is missing"}
        reasons = {tool.name: tool.reason for tool in models.registry.tools}
        assert reasons["empty"] == "model 'empty': none of its versions that could serve has a model.py"
        add_version(folder, 2)
        await until(lambda: models.versions("hollow") == {1: "", 2: ""})


async def test_where_the_newest_version_alone_is_wanted_and_broken_an_older_one_serves(triton, repository):
    folder = add_puppet(repository, "newest", 1, 2, 3, broken=[2, 3], policy="")
    async with tended(triton.url, repository) as models:
        await until(lambda: models.versions("newest").get(1) == "")
        assert "out of tune" in models.versions("newest")[3]
        (folder / "3" / "broken").unlink()
        await until(lambda: models.versions("newest").get(3) == "" and models.versions("newest").get(1) != "")


async def test_a_model_whose_process_died_is_loaded_again(triton, repository):
    add_puppet(repository, "mortal", 1)
    async with tended(triton.url, repository) as models:
        await models.comes_back("mortal")
        begun = starts(repository, "mortal", 1)
        with pytest.raises(ModelDiedError):
            await models.order("mortal", DIES)
        await models.comes_back("mortal")
        assert starts(repository, "mortal", 1) == begun + 1


async def test_a_model_that_cannot_be_loaded_again_at_first_comes_back_later(triton, repository):
    """A disk that was full, memory that was short: whatever it was, it has passed."""
    folder = add_puppet(repository, "later", 1)
    async with tended(triton.url, repository) as models:
        await models.comes_back("later")
        (folder / "1" / "broken").touch()
        with pytest.raises(ModelDiedError):
            await models.order("later", DIES)
        await until(lambda: "out of tune" in models.versions("later").get(1, ""))
        (folder / "1" / "broken").unlink()
        await models.comes_back("later")


async def test_what_is_healthy_is_not_unloaded_though_a_request_says_that_it_died(triton, repository):
    """Another Triton has come meanwhile, or another service has loaded the model again."""
    add_puppet(repository, "healthy", 1)
    async with tended(triton.url, repository) as models:
        await models.comes_back("healthy")
        begun = starts(repository, "healthy", 1)
        for _ in range(3):
            models.loader.revive(DeadProcess("healthy", None, time.monotonic() - 5))
            await until(lambda: not models.loader.is_busy("healthy"))
        await models.order("healthy", 0)
        assert starts(repository, "healthy", 1) == begun


async def test_two_services_at_one_triton_load_a_dead_model_again_once(triton, repository):
    add_puppet(repository, "shared", 1)
    async with tended(triton.url, repository) as one, tended(triton.url, repository) as other:
        await one.comes_back("shared")
        await until(lambda: other.versions("shared") == {1: ""})
        begun = starts(repository, "shared", 1)
        sent_at = time.monotonic()
        with pytest.raises(ModelDiedError):
            await one.order("shared", DIES)
        await one.comes_back("shared")
        other.loader.revive(DeadProcess("shared", None, sent_at))
        await until(lambda: not other.loader.is_busy("shared"))
        assert starts(repository, "shared", 1) == begun + 1


async def test_models_that_are_not_ours_to_load_are_left_alone(triton, repository, caplog):
    add_puppet(repository, "foreign", 1)
    async with tended(triton.url, None, allowed=False) as models:
        await models.client.load("foreign")
        await until(lambda: models.versions("foreign") == {1: ""})
        begun = starts(repository, "foreign", 1)
        for _ in range(3):
            with pytest.raises(ModelDiedError):
                await models.order("foreign", DIES)
        assert caplog.text.count("may not load models") == 1
        assert starts(repository, "foreign", 1) == begun
        await models.client.unload("foreign")


async def test_where_triton_refuses_to_load_that_is_tried_once_and_told_once(triton, repository, caplog, monkeypatch):
    asked: list[str] = []

    async def refuse(self: TritonClient, name: str, config: str = "") -> None:
        asked.append(name)
        raise REFUSED

    add_puppet(repository, "refused", 1)
    monkeypatch.setattr(TritonClient, "load", refuse)
    monkeypatch.setattr(TritonClient, "unload", refuse)
    async with tended(triton.url, repository) as models:
        await until(lambda: not models.loader.is_active)
        await models.registry.refresh()
        models.loader.revive(DeadProcess("refused", None, time.monotonic()))
        before = list(asked)
        for _ in range(3):
            await models.registry.refresh()
        assert asked == before
        assert caplog.text.count("Triton refuses to load") == 1


async def test_a_dead_model_of_a_triton_without_explicit_control_is_left_alone(tmp_path, caplog):
    add_puppet(tmp_path / "models", "strict", 1)
    with triton_without_control(tmp_path) as url:
        async with tended(url, None, allowed=True) as models:
            await until(lambda: models.registry.ready)
            for _ in range(3):
                with pytest.raises(ModelDiedError):
                    await models.order("strict", DIES)
            await until(lambda: not models.loader.is_busy("strict"))
            assert not models.loader.is_active
    assert caplog.text.count("Triton refuses to load") == 1
    assert starts(tmp_path / "models", "strict", 1) == 1


@contextmanager
def triton_without_control(root: Path) -> Iterator[str]:
    """NVIDIA's tritonserver as other operators run it: it loads all at its start, and nothing later."""
    wheel, scratch = find_wheel(), root / "scratch"
    assemble(wheel, scratch)
    arguments = command(wheel, root / "models", scratch, secrets.token_hex(4), None)
    arguments[arguments.index("--model-control-mode=explicit")] = "--model-control-mode=none"
    process = subprocess.Popen(
        arguments, env=environment(wheel, scratch), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        yield socket_url(scratch)
    finally:
        process.kill()
        process.wait(30)


async def test_an_unload_that_triton_executes_late_is_waited_for(triton, repository, monkeypatch):
    """The folder of a model goes and comes back before that: then it is loaded after the unload, not before."""
    folder = add_puppet(repository, "quick", 1)
    release, order = asyncio.Event(), []
    load, unload = TritonClient.load, TritonClient.unload

    async def late(self: TritonClient, name: str) -> None:
        order.append("unload")
        await release.wait()
        await unload(self, name)
        order.append("unloaded")

    async def noted(self: TritonClient, name: str, config: str = "") -> None:
        if name == "quick":
            order.append("load")
        await load(self, name, config)

    async with tended(triton.url, repository) as models:
        await models.comes_back("quick")
        monkeypatch.setattr(TritonClient, "unload", late)
        monkeypatch.setattr(TritonClient, "load", noted)
        folder.rename(repository.parent / "quick")
        await until(lambda: order == ["unload"])
        (repository.parent / "quick").rename(folder)
        for _ in range(5):
            await models.registry.refresh()
        release.set()
        await until(lambda: "load" in order)
        await models.comes_back("quick")
        assert order == ["unload", "unloaded", "load"]


async def test_folders_that_are_no_models_and_no_versions_are_none(triton, repository, caplog):
    for name in ("notes", "__pycache__/7", ".git/7", "puppet~/7", "1/one"):
        (repository / name).mkdir(parents=True)
    (repository / "README").touch()
    folder = add_puppet(repository, "among", 1)
    for name in ("2~", "3.bak", "__pycache__", "notes", ".git", "04", "x2", "4294967296"):
        (folder / name).mkdir()
    (folder / "5").touch()
    async with tended(triton.url, repository) as models:
        await until(lambda: models.registry.ready)
        assert models.versions("among") == {1: ""}
        listed = {tool.name for tool in models.registry.tools}
        assert listed == {"among"}
        await models.registry.refresh()
    assert "did not load" not in caplog.text
    assert caplog.text.count("among/4294967296 is no version") == 1


async def test_a_repository_that_cannot_be_read_for_a_while_takes_nothing_out_of_service(triton, repository, caplog):
    """It is away, or another folder has its path, as where a network folder is not mounted."""
    add_puppet(repository, "steady", 1)
    away = repository.parent / "away"
    async with tended(triton.url, repository) as models:
        await until(lambda: models.versions("steady") == {1: ""} and models.registry.ready)
        begun = starts(repository, "steady", 1)
        models.published.clear()
        repository.rename(away)
        await until(lambda: "does not list its models" in caplog.text and "cannot be read" in caplog.text)
        await poll_until_settled(models)
        assert models.versions("steady") == {1: ""}
        repository.mkdir()
        await until(lambda: "is it not mounted?" in caplog.text)
        await poll_until_settled(models)
        await models.order("steady", 0)
        assert models.versions("steady") == {1: ""}
        repository.rmdir()
        away.rename(repository)
        await poll_until_settled(models)
        assert models.versions("steady") == {1: ""}
        assert False not in models.published
        assert starts(repository, "steady", 1) == begun


async def test_a_folder_that_has_become_empty_takes_its_model_not_out_of_service(triton, repository):
    folder = add_puppet(repository, "mounted", 1)
    async with tended(triton.url, repository) as models:
        await until(lambda: models.versions("mounted") == {1: ""})
        folder.rename(repository.parent / "mounted")
        folder.mkdir()
        await poll_until_settled(models)
        await models.order("mounted", 0)
        assert models.versions("mounted") == {1: ""}
        folder.rmdir()
        await until(lambda: not models.versions("mounted"))


async def test_a_model_serves_beside_a_broken_version_of_its_part_after_a_restart_too(triton, repository):
    add_puppet(repository, "part", 1, 2, broken=[2])
    call(add_puppet(repository, "caller", 1, 2), "part")
    async with tended(triton.url, repository) as models:
        await until(lambda: serves_the_first(models.versions("caller")))
        restarts = triton.restarts
        os.kill(processes(triton.url)["server"], signal.SIGKILL)
        await until(lambda: triton.restarts > restarts)
        await models.registry.refresh()
        await until(lambda: serves_the_first(models.versions("caller")))


def call(folder: Path, part: str) -> None:
    with (folder / "config.pbtxt").open("a") as config:
        config.write(f'parameters {{ key: "encoder" value: {{ string_value: "{part}" }} }}')


def serves_the_first(versions: dict[int, str]) -> bool:
    return versions.get(1) == "" and versions.get(2, "").startswith("its part 'part' is not ready: ")


async def test_an_error_of_a_model_is_no_death(triton, repository):
    add_puppet(repository, "wrong", 1)
    async with tended(triton.url, repository) as models:
        await models.comes_back("wrong")
        begun = starts(repository, "wrong", 1)
        with pytest.raises(ModelFailedError, match="strings cut"):
            await models.order("wrong", RAISES)
        await poll_until_settled(models)
        assert starts(repository, "wrong", 1) == begun


async def poll_until_settled(models) -> None:
    """Poll Triton for longer than a folder takes to settle."""
    ends = time.monotonic() + 0.4
    while time.monotonic() < ends:
        await models.registry.refresh()
        await asyncio.sleep(0.05)
