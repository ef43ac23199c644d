"""`polywand-zoo pull`, as a user calls it, from a server on loopback that does what servers do."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from polywand_zoo import cli
from polywand_zoo.published.architectures import ARCHITECTURES
from polywand_zoo.published.catalogue import CATALOGUE
from tests.running import running_service
from tests.zoo.fileserver import FileServer, serving
from tests.zoo.golden import RITM_CONFIG

FILE = "coco_lvis_h18s_itermask.pth"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a file as RITM's authors write it, with an untrained hrnet18s."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("authors") / FILE
    torch.save({"state_dict": OrderedDict(ARCHITECTURES["hrnet18s"]().state_dict()), "config": RITM_CONFIG}, path)
    return path.read_bytes()


@pytest.fixture
def server(checkpoint: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(FileServer(checkpoint)) as file:
        yield file


def pull(server: FileServer, folder: Path, *options: str) -> Result:
    arguments = [
        "--url",
        f"{server.url}/{FILE}",
        "--cache",
        str(folder / "cache"),
        "--timeout",
        "1",
        "--bfloat16",
        "off",
    ]
    return CliRunner().invoke(
        cli.main, ["pull", "hrnet18s", *arguments, "--repository", str(folder / "models"), *options]
    )


def cached(folder: Path) -> Path:
    return folder / "cache" / FILE


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def refused(result: Result, folder: Path) -> str:
    """Return the one sentence; nothing may be in the repository."""
    assert result.exit_code == 1, result.output
    assert not (folder / "models").exists()
    return result.output.splitlines()[-1].removeprefix("Error: ")


def test_a_checkpoint_is_downloaded_checked_and_imported(server: FileServer, tmp_path: Path) -> None:
    result = pull(server, tmp_path, "--sha256", sha256(server.content).upper())
    assert result.exit_code == 0, result.output
    said = result.output.splitlines()
    assert f"downloaded: {cached(tmp_path)}, SHA-256 {sha256(server.content)}, as expected" in said
    assert said[-1] == f"{tmp_path}/models/hrnet18s/1: version 1, a new model"
    assert cached(tmp_path).read_bytes() == server.content
    again = pull(server, tmp_path)
    assert f"{cached(tmp_path)} is there already" in again.output
    assert again.output.endswith("version 2, a further version of a model, whose configuration stays\n")
    assert len(server.seen) == 1


def test_a_running_service_shows_what_was_pulled(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with running_service(tmp_path / "log", f"--model-repository={tmp_path / 'models'}") as service:
        assert pull(server, tmp_path).exit_code == 0
        service.wait_ready("hrnet18s", seconds=30)


def test_the_authors_release_is_what_is_pulled_by_default(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The catalogue's own addresses lead out of this machine, where a test has no business.
    published = CATALOGUE["hrnet18s"]
    assert published.url(None) == f"{published.release}/{FILE}"
    monkeypatch.setattr(cli, "CATALOGUE", {"hrnet18s": replace(published, release=server.url)})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    result = CliRunner().invoke(cli.main, ["pull", "hrnet18s", "--repository", str(tmp_path / "models")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "xdg" / "polywand" / "checkpoints" / FILE).read_bytes() == server.content


@pytest.mark.parametrize("published", CATALOGUE.values(), ids=list(CATALOGUE))
def test_every_checkpoint_has_an_address_or_a_page_to_get_it_from(published) -> None:
    for file in published.checkpoints:
        if published.release:
            assert published.url(file) == f"{published.release}/{file}"
            assert published.url(file).startswith("https://")
        else:
            result = CliRunner().invoke(cli.main, ["pull", published.name, "--file", file])
            assert result.exit_code == 1
            assert published.page in result.output
            assert "--url" in result.output


def test_a_sum_that_is_none_is_told(server: FileServer, tmp_path: Path) -> None:
    result = pull(server, tmp_path, "--sha256", "12ab")
    assert result.exit_code == 2
    assert "a SHA-256 has 64 hexadecimal digits" in result.output


def test_what_is_no_address_is_told(server: FileServer, tmp_path: Path) -> None:
    for address in ("ftp://host/weights.pth", "http://[::/weights.pth", "weights.pth"):
        why = refused(pull(server, tmp_path, "--url", address), tmp_path)
        assert why == f"{address} is no address of the web: it has to begin with https:// or http:// and a host"


def test_a_version_that_is_taken_is_told_before_the_download(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "models" / "hrnet18s" / "3").mkdir(parents=True)
    (tmp_path / "models" / "hrnet18s" / "config.pbtxt").touch()
    result = pull(server, tmp_path, "--version", "3")
    assert result.output == f"Error: {tmp_path}/models/hrnet18s has a version 3 already\n"
    assert server.seen == []


def test_what_is_no_checkpoint_is_refused_as_import_refuses_it(server: FileServer, tmp_path: Path) -> None:
    server.content = b"\xff\xd8\xff\xe0 JFIF"
    why = refused(pull(server, tmp_path), tmp_path)
    assert why == f"{cached(tmp_path)} is no checkpoint, or it is cut off or damaged: PyTorch cannot read it"
