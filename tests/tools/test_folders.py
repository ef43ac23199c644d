"""What a look at a model repository finds, and what it does not conclude from what it cannot read."""

import os
import shutil
from pathlib import Path

import pytest

from polywand_server.tools import folders
from polywand_server.tools.folders import ModelFolder, ModelFolders, scan_repository


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "SETTLING_SECONDS", 0.0)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of two models."""
    root = tmp_path / "models"
    add(root / "one", 1, 2)
    add(root / "two", 1)
    return root


def add(folder: Path, *versions: int) -> None:
    for version in versions:
        (folder / str(version)).mkdir(parents=True)
        (folder / str(version) / "model.onnx").write_text("network")
    (folder / "config.pbtxt").write_text("")


def write(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("another")


async def seen(looked: ModelFolders, *names: str) -> list[ModelFolder | None]:
    await looked.scan()
    return [looked.get(name) for name in names]


def test_models_are_folders_with_a_configuration_or_a_version(repository: Path) -> None:
    (repository / "unfinished").mkdir()
    (repository / "unfinished" / "config.pbtxt").touch()
    (repository / "unconfigured" / "1").mkdir(parents=True)
    for name in ("notes/drafts", "__pycache__/1", ".git/1", "two~/1", "lost+found", "one/2~", "one/03", "one/notes"):
        (repository / name).mkdir(parents=True)
    (repository / "README").touch()
    scan = scan_repository(repository)
    assert {name: sorted(model.versions) for name, model in scan.models.items()} == {
        "one": [1, 2],
        "two": [1],
        "unfinished": [],
        "unconfigured": [1],
    }


async def test_a_change_of_any_file_shows_and_of_what_python_keeps_beside_does_not(repository: Path) -> None:
    looked = ModelFolders(repository)
    (before,) = await seen(looked, "one")
    write(repository / "one" / "1" / "__pycache__" / "model.pyc")
    assert await seen(looked, "one") == [before]
    write(repository / "one" / "1" / "model.onnx")
    assert await seen(looked, "one") != [before]


def unmount_all(root: Path) -> None:
    root.rename(root.parent / "away")


def unmount_all_and_leave_the_place(root: Path) -> None:
    root.rename(root.parent / "away")
    root.mkdir()
    (root / "NOT MOUNTED").touch()


def become_a_file(root: Path) -> None:
    root.rename(root.parent / "away")
    root.touch()


def unmount_a_model(root: Path) -> None:
    shutil.rmtree(root / "one")
    (root / "one").mkdir()


def unmount_its_versions(root: Path) -> None:
    for version in ("1", "2"):
        shutil.rmtree(root / "one" / version)


def unmount_what_a_link_leads_to(root: Path) -> None:
    shutil.rmtree(root / "one")
    (root / "one").symlink_to(root.parent / "nowhere")


def unmount_what_a_versions_link_leads_to(root: Path) -> None:
    shutil.rmtree(root / "one" / "2")
    (root / "one" / "2").symlink_to(root.parent / "nowhere")


@pytest.mark.parametrize(
    "harm",
    [
        unmount_all,
        unmount_all_and_leave_the_place,
        become_a_file,
        unmount_a_model,
        unmount_its_versions,
        unmount_what_a_link_leads_to,
        unmount_what_a_versions_link_leads_to,
    ],
)
async def test_what_cannot_be_read_is_neither_gone_nor_changed(repository: Path, caplog, harm) -> None:
    looked = ModelFolders(repository)
    before = await seen(looked, "one")
    harm(repository)
    assert (await seen(looked, "one"))[0] in (before[0], None)
    assert not looked.is_deleted("one")
    assert not looked.is_missing("one")
    await looked.scan()
    assert len(caplog.records) == 1  # however often it looks


@pytest.mark.parametrize("place", ["", "one", "one/2"])
async def test_a_disk_with_errors_is_neither_gone_nor_changed(repository: Path, monkeypatch, place: str) -> None:
    looked = ModelFolders(repository)
    before = await seen(looked, "one", "two")
    scandir = os.scandir

    def fail(path: os.PathLike[str]) -> object:
        if Path(path) == repository / place:
            raise OSError(5, "Input/output error")
        return scandir(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", fail)
        one, two = await seen(looked, "one", "two")
        assert not looked.is_deleted("one")
        assert (one, two) == (tuple(before) if place else (None, None))
        fresh = ModelFolders(repository)
        await fresh.scan()
        assert not fresh.is_missing("one")  # so that it is loaded all the same
    assert await seen(looked, "one", "two") == before


async def test_a_folder_that_was_deleted_is_gone_and_so_is_the_last_one(repository: Path) -> None:
    looked = ModelFolders(repository)
    await looked.scan()
    for name in ("one", "two"):
        shutil.rmtree(repository / name)
        await looked.scan()
        assert looked.is_deleted(name)


async def test_a_repository_that_was_exchanged_for_another_one_is_believed(repository: Path) -> None:
    looked = ModelFolders(repository)
    await looked.scan()
    unmount_all(repository)
    add(repository / "three", 1)
    await looked.scan()
    assert looked.is_deleted("one")
    assert looked.get("three")
