"""Downloads from a server on loopback that does what servers do: cut, hang, change the file, refuse, lie."""

import contextlib
import hashlib
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from polywand_zoo import download as module
from polywand_zoo.download import DownloadError, download
from tests.zoo.fileserver import FileServer, serving

FILE = "weights.pth"
CONTENT = random.Random(0).randbytes(3_000_000)
THIRD = len(CONTENT) // 3
PATIENCE_SECONDS = 0.3  # with a server that hangs


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.01)
    with serving(FileServer(CONTENT)) as file:
        yield file


@contextlib.contextmanager
def no_bar(_start: int, _total: int | None):
    yield lambda _: None


def fetch(server: FileServer, folder: Path, *, sha256: str | None = None, url: str | None = None) -> str:
    """Download into the folder; returns the lines that the user sees."""
    lines: list[str] = []
    url = url or f"{server.url}/{FILE}"
    patience = PATIENCE_SECONDS if server.hang_after is not None else 1
    found = download(url, folder / FILE, sha256=sha256, progress=no_bar, tell=lines.append, timeout_seconds=patience)
    assert found == sum_of((folder / FILE).read_bytes())
    assert sorted(path.name for path in folder.iterdir()) == [f".{FILE}.lock", FILE, f"{FILE}.json"]
    return "\n".join(lines)


def fails(server: FileServer, folder: Path, **options: str) -> str:
    """Return the one sentence of a download that fails."""
    with pytest.raises(DownloadError) as error:
        fetch(server, folder, **options)
    assert not (folder / FILE).exists()
    return str(error.value)


def part(folder: Path) -> Path:
    return folder / f"{FILE}.part"


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_arrives_whole_and_is_not_downloaded_twice(server: FileServer, tmp_path: Path) -> None:
    assert fetch(server, tmp_path, sha256=sum_of(CONTENT)) == ""
    assert fetch(server, tmp_path, sha256=sum_of(CONTENT)) == f"{tmp_path / FILE} is there already"
    assert (tmp_path / FILE).read_bytes() == CONTENT
    assert server.seen == [""]


def test_a_file_that_has_suffered_is_downloaded_again(server: FileServer, tmp_path: Path) -> None:
    fetch(server, tmp_path)
    (tmp_path / FILE).write_bytes(CONTENT[:-1])
    fetch(server, tmp_path)
    assert (tmp_path / FILE).read_bytes() == CONTENT


def test_the_same_file_name_from_elsewhere_is_another_file(server: FileServer, tmp_path: Path) -> None:
    fetch(server, tmp_path)
    server.content = CONTENT[::-1]
    fetch(server, tmp_path, url=f"{server.url}/elsewhere/{FILE}")
    assert (tmp_path / FILE).read_bytes() == CONTENT[::-1]


# What goes on where it was.


def test_a_cut_download_goes_on_where_it_ended(server: FileServer, tmp_path: Path) -> None:
    server.cut_after = [THIRD, THIRD]
    lines = fetch(server, tmp_path)
    assert lines.count("broke off the download") == 2
    assert server.seen == ["", f"bytes={THIRD}-", f"bytes={2 * THIRD}-"]
    assert (tmp_path / FILE).read_bytes() == CONTENT


def test_a_later_command_goes_on_where_an_earlier_one_gave_up(server: FileServer, tmp_path: Path) -> None:
    server.hang_after = THIRD
    why = fails(server, tmp_path)
    assert why == f"{server.url[7:]} sent nothing for 0.3 s; the same command goes on from what has come"
    assert part(tmp_path).read_bytes() == CONTENT[:THIRD]
    server.hang_after = None
    server.seen.clear()
    fetch(server, tmp_path)
    assert server.seen == [f"bytes={THIRD}-"]
    assert (tmp_path / FILE).read_bytes() == CONTENT


@pytest.mark.parametrize(("etag", "modified"), [('"one"', ""), ('W/"one"', "Tue, 01 Jun 2021 10:00:00 GMT")])
def test_a_file_that_changed_meanwhile_is_downloaded_from_its_beginning(
    server: FileServer, tmp_path: Path, etag: str, modified: str
) -> None:
    server.etag, server.modified = etag, modified
    server.hang_after = THIRD
    fails(server, tmp_path)
    server.content, server.hang_after = CONTENT[::-1], None
    server.etag, server.modified = etag.replace("one", "two"), modified.replace("10:", "11:")
    fetch(server, tmp_path)
    assert server.seen[-1] == f"bytes={THIRD}-"
    assert (tmp_path / FILE).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("way", ["no ranges", "no validator"])
def test_where_a_server_cannot_go_on_the_download_begins_anew(server: FileServer, tmp_path: Path, way: str) -> None:
    server.ranges, server.etag = (False, '"one"') if way == "no ranges" else (True, "")
    server.cut_after = [THIRD]
    fetch(server, tmp_path)
    assert (tmp_path / FILE).read_bytes() == CONTENT
    assert len(server.seen) == 2


def test_a_server_that_always_cuts_and_cannot_go_on_is_given_up(server: FileServer, tmp_path: Path) -> None:
    server.ranges, server.cut_after = False, [THIRD, THIRD - 1, THIRD, THIRD - 1, THIRD, THIRD]
    assert "broke off the download" in fails(server, tmp_path)


def test_a_file_of_unknown_size_arrives(server: FileServer, tmp_path: Path) -> None:
    server.sized = False
    fetch(server, tmp_path)
    assert (tmp_path / FILE).read_bytes() == CONTENT


def test_a_part_that_is_whole_already_is_taken(server: FileServer, tmp_path: Path) -> None:
    server.hang_after = THIRD
    fails(server, tmp_path)
    part(tmp_path).write_bytes(CONTENT)  # as if the command had been killed just before the end
    server.hang_after = None
    fetch(server, tmp_path)
    assert server.seen[-1] == f"bytes={len(CONTENT)}-"


def test_a_part_that_is_longer_than_the_file_is_dropped(server: FileServer, tmp_path: Path) -> None:
    server.hang_after = THIRD
    fails(server, tmp_path)
    part(tmp_path).write_bytes(CONTENT + b"more")
    server.hang_after = None
    fetch(server, tmp_path)
    assert (tmp_path / FILE).read_bytes() == CONTENT


# What is refused, in one sentence.


def test_a_missing_file_is_told(server: FileServer, tmp_path: Path) -> None:
    server.status = 404
    assert fails(server, tmp_path) == f"{server.url}/{FILE} does not exist (404)"
    assert len(server.seen) == 1


def test_a_server_that_refuses_is_told(server: FileServer, tmp_path: Path) -> None:
    server.status = 403
    assert fails(server, tmp_path) == f"{server.url}/{FILE} cannot be downloaded: the server answers 403 Forbidden"


def test_a_server_in_trouble_is_asked_again(server: FileServer, tmp_path: Path) -> None:
    server.status = 503
    assert fails(server, tmp_path) == f"{server.url[7:]} answers 503 Service Unavailable"
    assert len(server.seen) == 3


def test_a_refused_connection_is_told(server: FileServer, tmp_path: Path) -> None:
    refusing = "http://127.0.0.1:9/weights.pth"  # the discard service, which is not running here
    assert fails(server, tmp_path, url=refusing) == "127.0.0.1:9 cannot be reached ([Errno 111] Connection refused)"


def test_a_server_that_says_nothing_is_not_waited_for(server: FileServer, tmp_path: Path) -> None:
    server.hang_after = 0
    assert fails(server, tmp_path) == f"{server.url[7:]} sent nothing for 0.3 s"


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_no_checkpoint(server: FileServer, tmp_path: Path, kind: str) -> None:
    server.kind, server.content = kind, b"\n<!DOCTYPE html><html><body>Sign in to download</body></html>"
    why = f"{server.url}/{FILE} is a web page, not a file: open it in a browser, and download what it offers there"
    assert fails(server, tmp_path) == why
    assert [path.name for path in tmp_path.iterdir()] == [f".{FILE}.lock"]


def test_a_wrong_sum_is_told_and_the_file_deleted(server: FileServer, tmp_path: Path) -> None:
    why = fails(server, tmp_path, sha256="0" * 64)
    assert why == f"{server.url}/{FILE} has SHA-256 {sum_of(CONTENT)}, not {'0' * 64} as it should: it was deleted"
    assert [path.name for path in tmp_path.iterdir()] == [f".{FILE}.lock"]


def test_too_little_space_is_told_before_it_is_filled(server: FileServer, tmp_path: Path) -> None:
    server.claim = 1 << 60
    why = fails(server, tmp_path)
    assert why.startswith(f"{tmp_path} has ")
    assert why.endswith(f" MB free, and the download needs {(1 << 60) / 1e6:.1f} MB more")


def test_a_write_that_fails_is_told(server: FileServer, tmp_path: Path) -> None:
    def allow_small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    program = "from polywand_zoo.cli import main; main()"
    arguments = ["pull", "hrnet18s", "--url", f"{server.url}/{FILE}", "--cache", str(tmp_path / "cache")]
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--repository", str(tmp_path / "models")],
        preexec_fn=allow_small_files_only,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.endswith(f"Error: {tmp_path / 'cache' / FILE} cannot be written: File too large\n")
    assert not (tmp_path / "models").exists()


def test_a_file_that_another_command_is_downloading_is_left_to_it(server: FileServer, tmp_path: Path) -> None:
    @contextlib.contextmanager
    def meanwhile(_start: int, _total: int | None):
        assert fails(server, tmp_path) == f"{tmp_path / FILE} is being downloaded by another command"
        yield lambda _: None

    url = f"{server.url}/{FILE}"
    download(url, tmp_path / FILE, sha256=None, progress=meanwhile, tell=print, timeout_seconds=1)
    assert (tmp_path / FILE).read_bytes() == CONTENT
