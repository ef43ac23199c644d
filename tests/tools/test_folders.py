"""What a scan of a model repository finds, and what it does not conclude from what it cannot read."""

import os
import shutil
from pathlib import Path

import pytest

from polywand_server.tools.folders import ModelFolder, ModelFolders, scan_repository


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


async def seen(folders: ModelFolders, *names: str) -> list[ModelFolder | None]:
    await folders.scan()
    return [folders.get(name) for name in names]


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
    folders = ModelFolders(repository, settling_seconds=0.0)
    (before,) = await seen(folders, "one")
    write(repository / "one" / "1" / "__pycache__" / "model.pyc")
    assert await seen(folders, "one") == [before]
    write(repository / "one" / "1" / "model.onnx")
    assert await seen(folders, "one") != [before]


def unmount_all(root: Path) -> None:
    root.rename(root.parent / "away")


def unmount_all_and_leave_the_mount_point(root: Path) -> None:
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
        unmount_all_and_leave_the_mount_point,
        become_a_file,
        unmount_a_model,
        unmount_its_versions,
        unmount_what_a_link_leads_to,
        unmount_what_a_versions_link_leads_to,
    ],
)
async def test_what_cannot_be_read_is_neither_gone_nor_changed(repository: Path, caplog, harm) -> None:
    folders = ModelFolders(repository, settling_seconds=0.0)
    before = await seen(folders, "one")
    harm(repository)
    assert (await seen(folders, "one"))[0] in (before[0], None)
    assert not folders.is_deleted("one")
    assert not folders.is_missing("one")
    await folders.scan()
    assert len(caplog.records) == 1  # however often it scans


@pytest.mark.parametrize("folder", ["", "one", "one/2"])
async def test_a_disk_with_errors_is_neither_gone_nor_changed(repository: Path, monkeypatch, folder: str) -> None:
    folders = ModelFolders(repository, settling_seconds=0.0)
    before = await seen(folders, "one", "two")
    scandir = os.scandir

    def fail(path: os.PathLike[str]) -> object:
        if Path(path) == repository / folder:
            raise OSError(5, "Input/output error")
        return scandir(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", fail)
        one, two = await seen(folders, "one", "two")
        assert not folders.is_deleted("one")
        assert (one, two) == (tuple(before) if folder else (None, None))
        fresh = ModelFolders(repository, settling_seconds=0.0)
        await fresh.scan()
        assert not fresh.is_missing("one")  # so that it is loaded all the same
    assert await seen(folders, "one", "two") == before


async def test_a_folder_that_was_deleted_is_gone_and_so_is_the_last_one(repository: Path) -> None:
    folders = ModelFolders(repository, settling_seconds=0.0)
    await folders.scan()
    for name in ("one", "two"):
        shutil.rmtree(repository / name)
        await folders.scan()
        assert folders.is_deleted(name)


async def test_a_repository_that_was_exchanged_for_another_one_is_believed(repository: Path) -> None:
    folders = ModelFolders(repository, settling_seconds=0.0)
    await folders.scan()
    unmount_all(repository)
    add(repository / "three", 1)
    await folders.scan()
    assert folders.is_deleted("one")
    assert folders.get("three")
