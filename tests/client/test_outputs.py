"""Overlays: where they go, and that no input and no older file is lost for them."""

import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

from polywand import files, outputs, overlay
from polywand.errors import InvalidRequest, PolywandError
from polywand.files import Source


def sources(*names: str | Path) -> list[Source]:
    return [Source(name) for name in names]


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"the photo")
    return photo


@pytest.mark.parametrize(
    "spelling",
    ["photo.png", "./photo.png", "sub/../photo.png", "soft.png", "soft2.png", "hard.png", "linked/photo.png"],
)
def test_an_output_is_no_input_however_it_is_spelt(photo: Path, spelling: str) -> None:
    Path("soft.png").symlink_to("photo.png")
    Path("soft2.png").symlink_to("soft.png")
    Path("hard.png").hardlink_to(photo)
    Path("linked").symlink_to(".")
    with pytest.raises(click.UsageError, match="would overwrite"):
        outputs.pictures(spelling, sources("photo.png"))
    with pytest.raises(click.UsageError, match="would overwrite"):
        outputs.pictures("photo.png", sources(spelling))
    with pytest.raises(click.UsageError, match="would overwrite"):
        outputs.pictures(spelling, sources("other.png"), [photo])  # a seed, say


def test_an_output_is_not_the_input_of_an_open_file(photo: Path) -> None:
    with photo.open("rb") as file, pytest.raises(click.UsageError, match="would overwrite"):
        outputs.pictures("photo.png", sources(f"/proc/self/fd/{file.fileno()}"))


def test_a_link_that_leads_nowhere_yet_may_lead_to_an_input(photo: Path) -> None:
    Path("dangling.png").symlink_to("missing.png")
    with pytest.raises(click.UsageError, match="would overwrite"):
        outputs.pictures("dangling.png", sources("missing.png"))


def test_an_overlay_in_the_folder_of_its_inputs_spares_them(photo: Path) -> None:
    with pytest.raises(click.UsageError, match="would overwrite"):
        outputs.pictures("./", sources("photo.jpg", "sub/other.jpg"), [photo])
    assert outputs.pictures("./", sources("other.jpg")) == [Path("other.png")]


@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("x/a.jpg", "y/a.jpg"), ("a.jpg", "a.jpg"), ("-", "stdin.jpg")])
def test_two_images_do_not_share_an_overlay(photo: Path, names: tuple[str, str]) -> None:
    with pytest.raises(click.UsageError, match="same name"):
        outputs.pictures("outs/", sources(*names))
    assert not Path("outs").exists()


@pytest.mark.parametrize("name", ["outs/", "outs", "new/outs/", "sub", "dir.png"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_folder_is_one_for_any_number_of_images(photo: Path, name: str, count: int) -> None:
    Path("dir.png").mkdir()
    images = ["a.jpg", "in/b.jpg"][:count]
    assert outputs.pictures(name, sources(*images)) == [Path(name) / "a.png", Path(name) / "b.png"][:count]
    assert Path(name).is_dir()


def test_a_picture_is_one_image_s(photo: Path) -> None:
    assert outputs.pictures("out.jpg", sources("a.jpg")) == [Path("out.jpg")]
    with pytest.raises(click.UsageError, match="one picture, but there are 2 images"):
        outputs.pictures("out.jpg", sources("a.jpg", "b.jpg"))
    with pytest.raises(click.UsageError, match="does not have the suffix of a picture"):
        outputs.pictures("out.mp3", sources("a.jpg"))


def test_a_folder_that_cannot_be_made_is_told(photo: Path) -> None:
    with pytest.raises(click.ClickException, match=r"photo\.png/x cannot be made"):
        outputs.pictures("photo.png/x/", sources("a.jpg"))


def test_a_name_made_from_an_images_replaces_nothing_beside_it(photo: Path) -> None:
    with pytest.raises(click.UsageError, match=r"'photo\.png' exists already, beside the images"):
        outputs.pictures("./", sources("photo.jpg"))  # photo.png may be another photo
    Path("sub/photo.png").touch()
    assert outputs.pictures("sub", sources("photo.jpg")) == [Path("sub/photo.png")]
    assert outputs.pictures("photo.png", sources("photo.jpg")) == [Path("photo.png")]


def test_an_empty_name_is_no_folder(photo: Path) -> None:
    with pytest.raises(click.UsageError, match="empty"):
        outputs.pictures("", sources("a.jpg"))


# Writing


def test_a_full_disk_leaves_the_old_file(photo: Path) -> None:
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); from pathlib import Path; "
        "from polywand import files; files.write(Path('photo.png'), b'x' * 99999)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=photo.parent
    )
    assert "photo.png cannot be written: File too large" in done.stderr
    assert photo.read_bytes() == b"the photo"
    assert sorted(path.name for path in photo.parent.iterdir()) == ["photo.png", "sub"]


def test_what_is_written_keeps_permissions_and_links(photo: Path) -> None:
    photo.chmod(0o640)
    Path("link.png").symlink_to("photo.png")
    files.write(Path("link.png"), b"new")
    assert (photo.read_bytes(), photo.stat().st_mode & 0o777) == (b"new", 0o640)
    assert Path("link.png").is_symlink()
    mask = os.umask(0o027)
    try:
        files.write(Path("fresh.png"), b"new")
    finally:
        os.umask(mask)
    assert Path("fresh.png").stat().st_mode & 0o777 == 0o640


def test_a_device_is_written_to(photo: Path) -> None:
    Path("null.png").symlink_to("/dev/null")
    files.write(Path("null.png"), b"new")
    assert Path("/dev/null").is_char_device()
    Path("full.png").symlink_to("/dev/full")
    with pytest.raises(PolywandError, match=r"full\.png cannot be written: No space left"):
        files.write(Path("full.png"), b"new")


def test_a_picture_too_large_for_its_format_is_told() -> None:
    with pytest.raises(InvalidRequest, match=r"17000 x 1 pixels cannot be written as \.webp"):
        overlay.encode(np.zeros((1, 17000, 3), np.uint8), ".webp")


# Reading


def test_a_pipe_is_read_once() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"bytes")
    os.close(writer)
    source = Source(f"/dev/fd/{reader}")
    assert (source.read(), source.read()) == (b"bytes", b"bytes")
    os.close(reader)


def test_a_file_too_large_to_send_is_not_read(tmp_path: Path) -> None:
    large = tmp_path / "large.tif"
    with large.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(InvalidRequest, match=r"large\.tif has 1,000,000,000,000 bytes: at most 267,386,880 are sent"):
        files.read(large)


def test_a_name_that_is_not_utf_8_can_be_printed(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as error:
        files.read(tmp_path / os.fsdecode(b"bad\xff\n.jpg"))
    assert "bad\ufffd\\n.jpg cannot be read" in str(error.value)
