"""What the wand is trained on: photos as they are read, prompts as they are made up, crops as the service's."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from polywand_server.geometry.boxes import Box
from polywand_server.images.regions import ProbabilityMap
from polywand_server.interactors.crops import CropSpace, ZoomIn
from polywand_server.interactors.prompt import Label, Point, Prompt
from polywand_server.tools.specs import ZoomInCrop
from polywand_zoo.wand.training import config, dataset, prompts, windows
from polywand_zoo.wand.training.dataset import DatasetError
from polywand_zoo.wand.training.samples import Sample, Samples
from polywand_zoo.wand.training.scenes import Scenes
from tests.zoo.coco_folder import compressed, drawn, write

RECIPE = config.read(config.DEFAULT)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dataset.Dataset:
    return dataset.load([drawn(tmp_path_factory.mktemp("data") / "drawn", count=6, seed=0)])


# Photos and outlines.


def test_all_three_ways_of_coco_to_write_a_mask_give_the_same(tmp_path: Path) -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[10:40, 20:60] = 1
    runs = [10 + 20 * 60, *[30, 30] * 39, 30, 60 * 80 - (59 * 60 + 40)]
    forms = [[[20, 10, 60, 10, 60, 40, 20, 40]], {"size": [60, 80], "counts": runs}, compressed(mask)]
    photo = np.full((60, 80, 3), 90, np.uint8)
    folder = write(tmp_path / "data", {"a.png": photo}, [{"image_id": 1, "segmentation": form} for form in forms])
    read = dataset.load([folder])
    assert len(read.things) == 3
    for thing in read.things:
        np.testing.assert_array_equal(thing.pixels(), mask)
        assert thing.box == (20, 10, 40, 30)
        assert thing.group == "data"


def test_crowds_and_specks_are_left_out(tmp_path: Path) -> None:
    mask, speck = np.zeros((2, 60, 80), np.uint8)
    mask[10:40, 20:60] = 1
    speck[5:15, 5:15] = 1
    annotations = [
        {"image_id": 1, "segmentation": compressed(mask), "iscrowd": 1},
        {"image_id": 1, "segmentation": compressed(speck)},
        {"image_id": 1, "segmentation": compressed(mask), "source": "mine", "kind": "part"},
    ]
    folder = write(tmp_path / "data", {"a.png": np.zeros((60, 80, 3), np.uint8)}, annotations)
    assert [thing.group for thing in dataset.load([folder]).things] == ["mine/part"]


def test_a_photo_that_is_validated_on_is_not_trained_on_under_any_name(tmp_path: Path) -> None:
    random = np.random.default_rng(5)

    def photo() -> np.ndarray:
        return cv2.resize(random.integers(0, 255, (6, 8, 3), dtype=np.uint8), (80, 60), interpolation=cv2.INTER_CUBIC)

    def trained(photos: dict[str, np.ndarray], without: list[Path]) -> list[str]:
        folder = tmp_path / f"training {len(list(tmp_path.iterdir()))}"
        annotations = [
            {"image_id": number, "segmentation": compressed(mask), "source": name}
            for number, name in enumerate(photos, 1)
        ]
        return [thing.group for thing in dataset.load([write(folder, photos, annotations)], without=without).things]

    mask = np.zeros((60, 80), np.uint8)
    mask[10:40, 20:60] = 1
    coco, mine = photo(), photo()
    held_out = [
        write(
            tmp_path / "validation",
            {"val2017_000000000139.png": coco, "IMG_1.png": mine},
            [{"image_id": number, "segmentation": compressed(mask)} for number in (1, 2)],
        )
    ]
    copies = {
        "000000000139.jpg": coco,
        "COCO_val2014_000000000139.png": coco,
        "IMG_1.jpg": mine,  # in another encoding
        "renamed.png": mine,
    }
    others = {"000000000140.png": photo(), "IMG_1.png": photo(), "IMG_2.png": photo()}  # of another camera
    assert trained({**copies, "other.png": others["IMG_2.png"]}, held_out) == ["other.png"]
    assert trained(others, held_out) == list(others)
    (held_out[0] / "images" / "IMG_1.png").unlink()  # listed, and not there: its name has to do
    assert trained(others, held_out) == ["000000000140.png", "IMG_2.png"]
    assert trained(copies, []) == list(copies)


def test_outlines_that_were_drawn_on_another_shape_are_refused_and_on_a_larger_copy_fit(tmp_path: Path) -> None:
    """A camera held upright writes a photo that lies, and EXIF's word to turn it."""
    mask = np.zeros((240, 160), np.uint8)
    mask[60:180, 40:120] = 1
    folder = write(
        tmp_path / "data",
        {"a.png": np.zeros((120, 80, 3), np.uint8)},
        [{"image_id": 1, "segmentation": compressed(mask)}],
    )
    file = folder / "annotations.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["images"][0].update(width=160, height=240)
    file.write_text(json.dumps(content), encoding="utf-8")
    (thing,) = dataset.load([folder]).things
    assert thing.box == (20, 30, 40, 60)
    content["images"][0].update(width=240, height=160)
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"is 80 x 120 pixels, upright .* drawn on 240 x 160"):
        dataset.load([folder])


def test_a_large_photo_is_reduced_together_with_its_masks(tmp_path: Path) -> None:
    photo, mask = np.zeros((768, 1024, 3), np.uint8), np.zeros((768, 1024), np.uint8)
    mask[200:400, 100:500] = 1
    photo[mask > 0] = (255, 0, 0)
    read = dataset.load(
        [write(tmp_path / "data", {"a.png": photo}, [{"image_id": 1, "segmentation": compressed(mask)}])]
    )
    assert read.photos[0].shape == (384, 512, 3)
    np.testing.assert_array_equal(read.photos[0][..., 0] > 127, read.things[0].pixels() > 0)


def test_a_folder_that_is_no_data_set_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no annotations\.json"):
        dataset.load([tmp_path])
    (tmp_path / "annotations.json").write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(DatasetError, match="COCO's format has images and annotations"):
        dataset.load([tmp_path])
    mask = compressed(np.ones((60, 80), np.uint8))
    photo = {"id": 1, "file_name": "gone.jpg", "width": 80, "height": 60}
    content = {"images": [photo], "annotations": [{"id": 1, "image_id": 1, "segmentation": mask}]}
    (tmp_path / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"there is no photo gone\.jpg"):
        dataset.load([tmp_path])
    del photo["file_name"]
    (tmp_path / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DatasetError, match="one of its images has no file_name"):
        dataset.load([tmp_path])


# Scenes.


@pytest.mark.parametrize("method", ["merged", "pasted", "thin", "blob", "region"])
def test_a_made_up_scene_has_its_target_where_its_image_says(photos: dataset.Dataset, method: str) -> None:
    scenes = Scenes(photos, {}, {method: 1.0})
    made = [scenes.draw(np.random.default_rng(seed)) for seed in range(12)]
    expected = {"pasted": {"pasted", "covered"}}.get(method, {method})
    assert {scene.group for scene in made} <= expected | ({"drawn"} if method == "region" else set())
    for scene in made:
        assert scene.image.shape == (*scene.target.shape, 3)
        assert set(np.unique(scene.target)) == {0, 1}


def test_merged_things_are_all_of_their_photo(photos: dataset.Dataset) -> None:
    scene = Scenes(photos, {}, {"merged": 1.0}).draw(np.random.default_rng(0))
    first, second = (
        next(t for t in photos.things if photos.photos[t.photo] is scene.image and t.annotation % 2 == odd)
        for odd in (1, 0)
    )
    np.testing.assert_array_equal(scene.target, first.pixels() | second.pixels())


def test_groups_are_drawn_by_their_size_and_weight(tmp_path: Path) -> None:
    few, many = drawn(tmp_path / "few", count=1, seed=0), drawn(tmp_path / "many", count=32, seed=1)
    scenes = Scenes(dataset.load([few, many]), {"few": 2.0}, {})
    random = np.random.default_rng(0)
    share = np.mean([scenes.thing(random).group == "few" for _ in range(2000)])
    assert share == pytest.approx(2 / (2 + 32**0.6), abs=0.04)


# Samples.


def samples(
    photos: dataset.Dataset, mode: str, count: int = 20, size: int = 96, view: str | None = None
) -> list[Sample]:
    source = Samples(Scenes(photos, {}, {}), {mode: 1.0}, {view: 1.0} if view else RECIPE.views)
    return [source.draw(size, np.random.default_rng((5, seed))) for seed in range(count)]


@pytest.mark.parametrize("mode", ["click", "late", "inside"])
def test_clicks_are_true(photos: dataset.Dataset, mode: str) -> None:
    drawn_samples = samples(photos, mode)
    clicks = [(sample, click) for sample in drawn_samples for click in sample.prompt.clicks]
    assert len(clicks) >= len(drawn_samples)
    for sample, (x, y, positive) in clicks:
        assert sample.target[y, x] == positive


@pytest.mark.parametrize(("view", "is_cut"), [("whole", False), ("object", False), ("near", True), ("part", True)])
def test_what_is_seen_of_a_photo_may_cut_the_object_as_the_service_does(
    photos: dataset.Dataset, view: str, is_cut: bool
) -> None:
    def touches_an_edge(target: NDArray[np.uint8]) -> bool:
        return bool(target[0].any() or target[-1].any() or target[:, 0].any() or target[:, -1].any())

    assert any(touches_an_edge(sample.target) for sample in samples(photos, "click", view=view)) == is_cut


def test_a_late_sample_stands_on_an_earlier_answer_and_many_clicks(photos: dataset.Dataset) -> None:
    late = samples(photos, "late")
    assert sum(sample.maps[prompts.PREVIOUS].any() for sample in late) > 0.7 * len(late)  # some answers found nothing
    assert max(len(sample.prompt.clicks) for sample in late) >= 8
    assert not any(sample.maps[prompts.PREVIOUS].any() for sample in samples(photos, "click"))


def test_exact_extreme_points_bound_the_target(photos: dataset.Dataset) -> None:
    target = samples(photos, "extreme", count=1)[0].target
    left, top, right, bottom = windows.mask_box(target)
    exact = [prompts.extreme_points(target, np.random.default_rng(seed)).extremes for seed in range(30)]
    bounds = {
        (min(x for x, _ in found), min(y for _, y in found), max(x for x, _ in found), max(y for _, y in found))
        for found in exact
    }
    assert (left, top, right - 1, bottom - 1) in bounds


def test_a_box_holds_its_target_up_to_a_slip(photos: dataset.Dataset) -> None:
    for sample in samples(photos, "box"):
        inside = sample.target[sample.maps[prompts.BOX] > 0].sum()
        assert inside > 0.9 * sample.target.sum()
        assert not sample.prompt.clicks


def test_a_correction_goes_to_the_larger_error() -> None:
    target, answer = np.zeros((2, 60, 60), np.uint8)
    target[10:50, 10:40] = 1
    answer[10:30, 10:40] = 1  # the lower half is missing
    answer[2:6, 2:6] = 1  # and a speck is too much
    found = [prompts.correction(target, answer, np.random.default_rng(seed)) for seed in range(40)]
    right = [click for click in found if click is not None and click[2] and click[1] >= 30]
    assert len(right) >= 30
    assert prompts.correction(target, target, np.random.default_rng(1)) is None


def test_the_same_seed_gives_the_same_sample(photos: dataset.Dataset) -> None:
    source = Samples(Scenes(photos, RECIPE.weights, RECIPE.scenes), RECIPE.modes, RECIPE.views)
    first, again, other = (source.draw(64, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.maps, again.maps)
    assert not np.array_equal(first.image, other.image)


# Windows.


@pytest.mark.parametrize("seed", range(20))
def test_windows_are_the_crops_of_the_service(seed: int) -> None:
    spec = ZoomInCrop(
        policy="zoom_in",
        expansion=windows.EXPANSION,
        min_fraction=windows.MIN_FRACTION,
        max_aspect=windows.MAX_ASPECT,
        click_margin=windows.CLICK_MARGIN,
        whole_image_above=windows.WHOLE_ABOVE,
        box_margin=windows.BOX_MARGIN,
    )
    random = np.random.default_rng(seed)
    mask: NDArray[np.float32] = np.zeros((384, 384), np.float32)
    centre, axes = random.integers(50, 330, 2), random.integers(5, 120, 2)
    cv2.ellipse(mask, [int(v) for v in centre], [int(v) for v in axes], random.uniform(0, 180), 0, 360, 1.0, -1)
    points = [(float(x), float(y)) for x, y in random.uniform(0, 384, (2, 2))]
    policy, space = ZoomIn(spec), CropSpace(384, 384, (384, 384), 0.5)

    clicked = Prompt("wand", 1, "one", tuple(Point(x, y, Label.POSITIVE) for x, y in points))
    closer = policy.around_mask(space, clicked, ProbabilityMap(space.whole(384), mask))
    shape = (384, 384)
    ours = windows.around(
        windows.mask_box(mask), shape, windows.EXPANSION, windows.MIN_FRACTION * 384, np.array(points)
    )
    assert ours == windows.Window(closer.left, closer.top, closer.left + closer.width, closer.top + closer.height)

    box = (*np.sort(random.uniform(0, 384, 2)), *np.sort(random.uniform(0, 384, 2)))
    edges = (box[0], box[2], box[1], box[3])
    boxed = policy.around_box(space, Box(*edges))
    ours = windows.around(edges, shape, 1 + 2 * windows.BOX_MARGIN, windows.SMALLEST)
    assert ours == windows.Window(boxed.left, boxed.top, boxed.left + boxed.width, boxed.top + boxed.height)
