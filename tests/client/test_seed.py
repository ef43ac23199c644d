"""An object that starts from an annotation: a mask, an earlier outline or polygons, with and without clicks."""

import json
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import polywand
from polywand import Client, Polygon, seeds
from polywand.maskfiles import read_mask
from tests.client.helpers import FACE
from tests.client.test_cli import run_polywand
from tests.running import Service

HOLE_CENTRE = (225, 330)


@pytest.fixture
def rough() -> NDArray[np.bool_]:
    """The astronaut as somebody drew her in a hurry, with a hole: bool [512, 512]."""
    mask = np.zeros((512, 512), np.uint8)
    cv2.ellipse(mask, (225, 120), (75, 100), 0, 0, 360, 1, cv2.FILLED)
    cv2.rectangle(mask, (90, 200), (350, 480), 1, cv2.FILLED)
    cv2.circle(mask, HOLE_CENTRE, 30, 0, cv2.FILLED)
    return mask.astype(np.bool_)


def overlap(one: NDArray[np.bool_] | None, other: NDArray[np.bool_]) -> float:
    assert one is not None
    return float((one & other).sum() / (one | other).sum())


# What needs no server


def test_a_mask_travels_as_run_lengths(rough: NDArray[np.bool_]) -> None:
    for mask in (rough, rough.astype(np.uint8), 255 * rough.astype(np.uint8), np.asfortranarray(rough)):
        rle = seeds.to_message(mask[:300]).rle
        assert (rle.width, rle.height) == (512, 300)
        np.testing.assert_array_equal(polywand.decode_rle(rle.counts, rle.width, rle.height), rough[:300])


def test_polygons_travel_as_they_are() -> None:
    exterior = np.array([(0, 0), (9.25, 0), (9.25, 8), (0, 8)], np.float32)
    hole = np.array([(2, 2), (2, 4), (4, 4)], np.float32)
    message = seeds.to_message([Polygon(exterior, (hole,)), exterior + 20, [(1, 2), (3, 4), (5, 7)]]).polygons
    first, second, third = message.polygons
    assert list(first.exterior.coordinates) == exterior.ravel().tolist()
    assert [list(ring.coordinates) for ring in first.holes] == [hole.ravel().tolist()]
    assert list(second.exterior.coordinates) == (exterior + 20).ravel().tolist()
    assert list(third.exterior.coordinates) == [1, 2, 3, 4, 5, 7]


@pytest.mark.parametrize(
    ("seed", "complaint"),
    [
        (np.zeros((4, 5, 3), np.uint8), r"bool or uint8 \[H, W\], not uint8 \[4, 5, 3\]"),
        (np.zeros((4, 2), np.float32), r"bool or uint8 \[H, W\], not float32 \[4, 2\]"),
        (np.zeros((0, 5), np.bool_), r"not bool \[0, 5\]"),
        ([np.zeros((4, 3))], r"\[N, 2\], not \[4, 3\]"),
        ([[1, 2, 3, 4, 5, 6]], r"\[N, 2\], not \[6\]"),
    ],
)
def test_an_array_that_is_no_seed_is_refused(seed: Any, complaint: str) -> None:
    with pytest.raises(polywand.InvalidRequest, match=complaint):
        seeds.to_message(seed)


@pytest.mark.parametrize("seed", ["mask.png", 5, Polygon(np.zeros((3, 2), np.float32))])
def test_what_is_no_seed_at_all_is_a_type_error(seed: Any) -> None:
    with pytest.raises(TypeError, match=type(seed).__name__):
        seeds.to_message(seed)


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("8-bit.png", np.uint8([[0, 1], [255, 0]])),
        ("16-bit.png", np.uint16([[0, 1], [60000, 0]])),
        ("blue.png", np.uint8([[[0, 0, 0], [1, 0, 0]], [[9, 9, 9], [0, 0, 0]]])),
        ("opaque.png", np.uint8([[[0, 0, 0, 255], [1, 0, 0, 255]], [[9, 9, 9, 255], [0, 0, 0, 255]]])),
        ("grey.tif", np.uint8([[0, 1], [255, 0]])),
    ],
)
def test_in_a_file_whatever_is_not_black_is_inside(name: str, pixels: NDArray[Any], tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / name), pixels)
    assert read_mask(tmp_path / name).tolist() == [[False, True], [True, False]]


DISC = cv2.circle(np.zeros((64, 64), np.uint8), (30, 34), 15, 1, cv2.FILLED)
OPACITY = 255 * DISC
PHOTO = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
PHOTO[30:34, 28:32] = 0  # black, and of the photo
BLACK = np.zeros((64, 64, 3), np.uint8)
TOP = np.where(np.arange(64)[:, np.newaxis] < 8, 0, 255).astype(np.uint8)  # transparent above
WHITE_ON_BLACK = np.dstack([OPACITY] * 3)


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("cut-out.png", np.dstack([PHOTO, OPACITY])),
        ("cut-out.tif", np.dstack([PHOTO, OPACITY])),
        ("cut-out-16-bit.png", np.dstack([256 * np.uint16(PHOTO), 257 * np.uint16(OPACITY)])),
        ("drawn-in-black.png", np.dstack([BLACK, OPACITY])),
        ("drawn-faintly.png", np.dstack([BLACK + 255, 90 * DISC])),
        ("all-opaque.png", np.dstack([WHITE_ON_BLACK, np.full((64, 64), 255, np.uint8)])),
        ("partly-transparent-mask.png", np.dstack([WHITE_ON_BLACK, np.repeat(TOP, 64, axis=1)])),
        ("no-number.tif", np.where(DISC, 1, np.nan).astype(np.float32)),
        ("below-zero.tif", np.where(DISC, 7, -9999).astype(np.float32)),
    ],
)
def test_in_a_file_what_is_transparent_or_no_number_is_outside(name: str, pixels: NDArray[Any], tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / name), pixels)
    np.testing.assert_array_equal(read_mask(tmp_path / name), DISC > 0)


@pytest.mark.parametrize("mode", ["LA", "P", "L", "RGB", "1"])
def test_transparency_that_is_a_colour_or_beside_grey_counts_as_well(mode: str, tmp_path: Path) -> None:
    grey, path = np.where(DISC, 200, 50).astype(np.uint8), tmp_path / "mask.png"
    if mode == "LA":
        Image.fromarray(np.dstack([grey, OPACITY])).save(path)
    elif mode == "P":
        labels = Image.fromarray(DISC).convert("P")
        labels.putpalette([90, 60, 30, 128, 0, 0])
        labels.save(path, transparency=0)
    elif mode == "1":
        Image.fromarray(DISC > 0).save(path)
    else:
        Image.fromarray(grey).convert(mode).save(path, transparency=50 if mode == "L" else (50, 50, 50))
    np.testing.assert_array_equal(read_mask(path), DISC > 0)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_in_a_file_that_lost_something_black_is_what_is_nearer_to_it(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"lossy{suffix}"
    quality = {".jpg": cv2.IMWRITE_JPEG_QUALITY, ".webp": cv2.IMWRITE_WEBP_QUALITY}[suffix]
    assert cv2.imwrite(str(path), WHITE_ON_BLACK, [quality, 60])
    assert (cv2.imread(str(path)).max(axis=2) > 0).sum() > 1.1 * DISC.sum()  # else this test shows nothing
    assert (read_mask(path) ^ (DISC > 0)).sum() <= 2


# The SDK


def test_every_kind_of_seed_alone_is_answered_with_its_own_outline(
    client: Client, astronaut: NDArray[np.uint8], rough: NDArray[np.bool_]
) -> None:
    with client.open(astronaut) as session:
        from_mask = session.prompt("wand_click", seed=rough, mask=True)
        np.testing.assert_array_equal(from_mask.mask, rough)
        kinds: dict[str, polywand.SeedLike] = {
            "uint8": 255 * rough.astype(np.uint8),
            "segmentation": from_mask,
            "polygons": from_mask.polygons,
        }
        for name, seed in kinds.items():
            outline = session.prompt("wand_click", object_id=name, seed=seed, mask=True)
            assert outline.timing.inferences == 0, name
            assert overlap(outline.mask, rough) > 0.995, name
            assert not polywand.rasterise(outline.polygons, 512, 512)[HOLE_CENTRE[::-1]], name
        triangle = np.array([(100, 100), (400, 120), (250, 400)], np.float32)
        outline = session.prompt("wand_click", object_id="array", seed=[triangle], mask=True)
        assert outline.timing.inferences == 0
        np.testing.assert_array_equal(outline.mask, polywand.rasterise([Polygon(triangle)], 512, 512))
        np.testing.assert_array_equal(outline.polygons[0].exterior, triangle)


def test_a_square_as_a_seed_stays_that_square(client: Client, astronaut: NDArray[np.uint8]) -> None:
    square = np.array([(100, 100), (150, 100), (150, 150), (100, 150)], np.float32)
    mask = polywand.rasterise([Polygon(square)], 512, 512)
    with client.open(astronaut) as session:
        for seed in ([square], [square[::-1]], [square, square], mask):
            found = session.prompt("wand_click", seed=seed, tolerance=0, mask=True)
            assert (found.area, found.box, len(found.polygons)) == (2500, (100, 100, 150, 150), 1)
            np.testing.assert_array_equal(found.mask, mask)


@pytest.mark.parametrize("tolerance", [None, 0, 5])
@pytest.mark.parametrize("kind", ["star", "mask"])
def test_an_annotation_that_is_opened_and_saved_again_and_again_stays_the_same(
    client: Client, astronaut: NDArray[np.uint8], rough: NDArray[np.bool_], kind: str, tolerance: float | None
) -> None:
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    radius = 90 * (1 + 0.3 * np.sin(5 * angle))
    star = np.stack([150 + radius * np.cos(angle), 150 + radius * np.sin(angle)], 1).astype(np.float32)
    rough[500:503, 500:503] = True  # a part that is a speck where a network finds it
    with client.open(astronaut) as session:
        first = session.prompt("wand_click", seed=rough if kind == "mask" else [star], tolerance=tolerance)
        found = first
        for _ in range(30):
            found = session.prompt("wand_click", seed=found, tolerance=tolerance)
            assert found.timing.inferences == 0
        assert len(found.polygons) == (2 if kind == "mask" else 1)
        for before, after in zip(first.polygons, found.polygons, strict=True):
            np.testing.assert_array_equal(before.exterior, after.exterior)
            assert len(before.holes) == len(after.holes)
            assert all(map(np.array_equal, before.holes, after.holes))


def test_a_click_refines_the_seed_and_undo_leads_back_to_it(
    client: Client, astronaut: NDArray[np.uint8], rough: NDArray[np.bool_]
) -> None:
    with client.open(astronaut) as session:
        before = session.prompt("wand_click", seed=rough)
        too_much = (100, 210)  # of the background, in a corner of the seed
        refined = session.prompt("wand_click", seed=rough, negative=[too_much], mask=True)
        assert refined.timing.inferences >= 1
        assert refined.mask is not None
        assert not refined.mask[too_much[::-1]]
        assert refined.mask[FACE[::-1]]
        assert overlap(refined.mask, rough) > 0.5
        undone = session.prompt("wand_click", seed=rough)
        assert undone.timing.inferences == 0
        assert undone.area == before.area


def test_a_seed_of_another_size_is_the_callers_fault(client: Client, astronaut: NDArray[np.uint8]) -> None:
    with client.open(astronaut) as session:
        with pytest.raises(polywand.InvalidRequest) as error:
            session.prompt("wand_click", seed=np.ones((300, 200), np.bool_))
        assert error.value.violations[0].field.startswith("prompt.seed")
        assert session.prompt("wand_click", positive=[FACE]).polygons


async def test_the_asyncio_client_seeds_too(
    server: Service, astronaut: NDArray[np.uint8], rough: NDArray[np.bool_]
) -> None:
    async with polywand.aio.connect(server.target) as client, client.open(astronaut) as session:
        outline = await session.prompt("wand_click", seed=rough, mask=True)
        assert outline.timing.inferences == 0
        assert overlap(outline.mask, rough) > 0.97


# The CLI


@pytest.fixture
def photo(tmp_path: Path, astronaut: NDArray[np.uint8]) -> Path:
    path = tmp_path / "astronaut.png"
    cv2.imwrite(str(path), cv2.cvtColor(astronaut, cv2.COLOR_RGB2BGR))
    return path


@pytest.fixture
def seed_file(tmp_path: Path, rough: NDArray[np.bool_]) -> Path:
    path = tmp_path / "rough.png"
    cv2.imwrite(str(path), 255 * rough.astype(np.uint8))
    return path


def interact(server: Service, photo: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run_polywand("interact", photo, "--model", "wand_click", *arguments, POLYWAND_TARGET=server.target)


def test_the_command_starts_from_a_mask_file(
    server: Service, photo: Path, seed_file: Path, rough: NDArray[np.bool_]
) -> None:
    alone = interact(server, photo, "--seed", seed_file, "--json")
    assert alone.returncode == 0, alone.stderr
    answer = json.loads(alone.stdout)
    assert answer["timing"]["inferences"] == 0
    assert answer["area"] == pytest.approx(rough.sum(), rel=0.03)
    clicked = interact(server, photo, "--seed", seed_file, "--negative", "100,210", "--json")
    assert clicked.returncode == 0, clicked.stderr
    refined = json.loads(clicked.stdout)
    assert refined["timing"]["inferences"] >= 1
    assert refined["area"] != answer["area"]


def test_a_mask_file_of_another_size_is_told_with_both_sizes(server: Service, photo: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.png"
    cv2.imwrite(str(small), np.full((300, 200), 255, np.uint8))
    result = interact(server, photo, "--seed", small)
    assert result.returncode == 1
    assert result.stderr == f"Error: {small} has 200 x 300 pixels, but {photo} has 512 x 512.\n"


def test_a_mask_file_that_cannot_be_read_is_told(server: Service, photo: Path, tmp_path: Path) -> None:
    notes, missing = tmp_path / "notes.txt", tmp_path / "missing.png"
    notes.write_text("these are notes")
    result = interact(server, photo, "--seed", notes)
    assert (result.returncode, result.stderr) == (1, f"Error: {notes} is not an image that OpenCV reads.\n")
    result = interact(server, photo, "--seed", missing)
    assert (result.returncode, result.stderr) == (1, f"Error: {missing} cannot be read: No such file or directory\n")


def test_a_mask_file_that_marks_nothing_is_told(server: Service, photo: Path, tmp_path: Path) -> None:
    clear = tmp_path / "clear.png"
    cv2.imwrite(str(clear), np.zeros((512, 512, 4), np.uint8))
    result = interact(server, photo, "--seed", clear)
    assert result.returncode == 1
    assert result.stderr == f"Error: {clear} is an empty mask: all of it is black or transparent.\n"
