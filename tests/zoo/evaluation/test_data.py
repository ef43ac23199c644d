"""Data sets are read as they are released, and what is wrong with a file is said with its name."""

import json

import numpy as np
import pytest
import scipy.io
from pycocotools import mask as coco

from polywand_zoo.evaluation.coco import read_coco, read_ids
from polywand_zoo.evaluation.layouts import read_berkeley, read_davis, read_folders, read_grabcut, read_sbd
from polywand_zoo.evaluation.objects import DataError, load
from tests.zoo.evaluation.pictures import disk, ellipse, save, save_folders

IMAGE, MASK = disk()
OTHER = ellipse(MASK.shape, (230, 150), (30, 20))


def flaws(data) -> list[str]:
    return [str(flaw) for flaw in data.flaws]


def test_the_middle_grey_of_a_grabcut_mask_is_ignored(tmp_path):
    grey = np.where(MASK, 255, 0).astype(np.uint8)
    grey[OTHER] = 128
    save(tmp_path / "data_GT" / "banana1.png", IMAGE)
    save(tmp_path / "boundary_GT" / "banana1.bmp", grey)
    data = read_grabcut(tmp_path)
    (photo,) = map(load, data.subjects)
    assert (data.name, photo.subject.name, data.flaws) == ("GrabCut", "banana1", [])
    np.testing.assert_array_equal(photo.truth.inside, MASK)
    np.testing.assert_array_equal(photo.truth.ignored, OTHER)


def test_berkeley_pairs_names_up_to_the_first_dot(tmp_path):
    save(tmp_path / "images" / "3096.jpg", IMAGE)
    save(tmp_path / "masks" / "3096.extra.png", MASK)
    (photo,) = map(load, read_berkeley(tmp_path).subjects)
    np.testing.assert_array_equal(photo.truth.inside, MASK)
    assert photo.truth.ignored is None


def test_davis_merges_all_that_moves_and_tells_sequences_apart(tmp_path):
    coloured = np.zeros((*MASK.shape, 3), np.uint8)
    coloured[MASK], coloured[OTHER] = (128, 0, 0), (0, 64, 0)
    for frame in ("bmx-trees_00003", "bmx-trees_00071", "car-turn-00012", "b2_7", "000000123"):
        save(tmp_path / "img" / f"{frame}.jpg", IMAGE)
        save(tmp_path / "gt" / f"{frame}.png", coloured)
    data = read_davis(tmp_path)
    assert {subject.name: subject.group for subject in data.subjects} == {
        **{"000000123": "", "b2_7": "b2", "bmx-trees_00003": "bmx-trees", "bmx-trees_00071": "bmx-trees"},
        **{"car-turn-00012": "car-turn"},
    }
    np.testing.assert_array_equal(load(data.subjects[0]).truth.inside, MASK | OTHER)


def test_every_number_of_an_sbd_file_is_an_object(tmp_path):
    instances = np.zeros(MASK.shape, np.uint8)
    instances[MASK], instances[OTHER] = 1, 3
    save(tmp_path / "img" / "2008_000003.jpg", IMAGE)
    (tmp_path / "inst").mkdir()
    content = {"Segmentation": instances, "Boundaries": [0], "Categories": [[15], [0], [2]]}
    scipy.io.savemat(tmp_path / "inst" / "2008_000003.mat", {"GTinst": content})
    (tmp_path / "inst" / "2008_000007.mat").write_bytes(b"this is no MATLAB file")
    save(tmp_path / "img" / "2008_000007.jpg", IMAGE)
    (tmp_path / "val.txt").write_text("2008_000003\n2008_000007\n2008_000009\n")
    data = read_sbd(tmp_path)
    first, second = map(load, data.subjects)
    np.testing.assert_array_equal(first.truth.inside, MASK)
    np.testing.assert_array_equal(second.truth.inside, OTHER)
    damaged, missing = flaws(data)
    assert "2008_000007.mat: the masks cannot be read" in damaged
    assert "2008_000009.jpg: the image is missing" in missing


def test_an_image_without_mask_and_a_mask_without_image_are_told(tmp_path):
    save_folders(tmp_path, both=(IMAGE, MASK))
    save(tmp_path / "images" / "lonely.png", IMAGE)
    save(tmp_path / "masks" / "stray.png", MASK)
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    data = read_folders(tmp_path / "images", tmp_path / "masks")
    assert [subject.name for subject in data.subjects] == ["both"]
    assert flaws(data) == [
        f"{tmp_path}/images/lonely.png: no mask of this name in {tmp_path}/masks",
        f"{tmp_path}/masks/stray.png: no image of this name in {tmp_path}/images",
    ]


def test_folders_in_folders_are_sequences(tmp_path):
    save(tmp_path / "images" / "dance" / "00000.jpg", IMAGE)
    save(tmp_path / "masks" / "dance" / "00000.png", MASK)
    (subject,) = read_folders(tmp_path / "images", tmp_path / "masks").subjects
    assert (subject.group, subject.name) == ("dance", "dance/00000")


@pytest.mark.parametrize(
    ("image", "mask", "says"),
    [
        (IMAGE, MASK[:, :-1], r"masks/x.png: the mask is 299 x 200 pixels, and x.png is 300 x 200"),
        (IMAGE, np.zeros_like(MASK), r"masks/x.png: the mask of x is empty"),
    ],
)
def test_what_is_wrong_with_a_mask_is_said(tmp_path, image, mask, says):
    save_folders(tmp_path, x=(image, mask))
    (subject,) = read_folders(tmp_path / "images", tmp_path / "masks").subjects
    with pytest.raises(DataError, match=says):
        load(subject)


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_a_file_that_is_no_image_is_named(tmp_path, folder):
    save_folders(tmp_path, x=(IMAGE, MASK))
    (tmp_path / folder / "x.png").write_bytes(b"rubbish")
    (subject,) = read_folders(tmp_path / "images", tmp_path / "masks").subjects
    with pytest.raises(DataError, match=rf"{folder}/x.png: .*(no|not an) image"):
        load(subject)


def test_another_layout_is_refused(tmp_path):
    with pytest.raises(DataError, match="data_GT: there is no such folder"):
        read_grabcut(tmp_path)


def annotations(*segmentations, **more) -> dict:
    return {
        "images": [{"id": 7, "file_name": "a.png", "width": 300, "height": 200}],
        "categories": [{"id": 2, "name": "disk"}],
        "annotations": [
            {"id": 10 + number, "image_id": 7, "category_id": 2, "segmentation": segmentation, **more}
            for number, segmentation in enumerate(segmentations)
        ],
    }


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_coco_segmentations_of_all_kinds_are_read(tmp_path):
    save(tmp_path / "a.png", IMAGE)
    runs = coco.encode(np.asfortranarray(MASK.astype(np.uint8)))
    compressed = {"size": runs["size"], "counts": runs["counts"].decode()}
    lengths = np.diff(np.flatnonzero(np.diff(MASK.T.ravel(), prepend=False, append=not MASK.T.ravel()[-1])), prepend=0)
    plain = {"size": [200, 300], "counts": lengths.tolist()}
    two_parts = [[10, 10, 20, 10, 20, 30, 10, 30], [50, 50, 70, 50, 70, 60, 50, 60]]
    file = write(tmp_path / "all.json", annotations(compressed, plain, two_parts))
    data = read_coco(file, tmp_path)
    first, second, third = map(load, data.subjects)
    np.testing.assert_array_equal(first.truth.inside, MASK)
    np.testing.assert_array_equal(second.truth.inside, MASK)
    assert third.truth.inside.sum() == 10 * 20 + 20 * 10
    assert (third.subject.name, third.subject.group) == ("annotation 12", "disk")


def test_coco_is_restricted_to_a_list_of_ids(tmp_path):
    square = [[10, 10, 20, 10, 20, 30, 10, 30]]
    file = write(tmp_path / "all.json", annotations(square, square, square))
    data = read_coco(file, tmp_path, read_ids(write(tmp_path / "ids.json", [12, 10])))
    assert [subject.name for subject in data.subjects] == ["annotation 10", "annotation 12"]
    (tmp_path / "ids.txt").write_text("11\n99\n")
    with pytest.raises(DataError, match="no annotations with the ids 99"):
        read_coco(file, tmp_path, read_ids(tmp_path / "ids.txt"))


def test_crowds_are_left_out_and_damaged_segmentations_named(tmp_path):
    save(tmp_path / "a.png", IMAGE)
    crowds = annotations({"size": [200, 300], "counts": [0, 60000]}, iscrowd=1)
    assert flaws(read_coco(write(tmp_path / "crowds.json", crowds), tmp_path)) == [
        f"{tmp_path}/crowds.json: annotation 10 is a crowd, and not one object"
    ]
    (subject,) = read_coco(write(tmp_path / "bad.json", annotations([[1, 2]])), tmp_path).subjects
    with pytest.raises(DataError, match=r"bad\.json: the segmentation of annotation 10 cannot be read"):
        load(subject)


def test_an_image_without_a_file_name_is_named(tmp_path):
    content = annotations([[0, 0, 50, 0, 50, 50]])
    del content["images"][0]["file_name"]
    number = content["images"][0]["id"]
    assert flaws(read_coco(write(tmp_path / "nameless.json", content), tmp_path)) == [
        f"{tmp_path}/nameless.json: image {number}, of annotation 10, has no file_name"
    ]


SQUARE = [10, 10, 40, 10, 40, 40, 10, 40]


def test_parts_that_overlap_are_united(tmp_path):
    save(tmp_path / "a.png", IMAGE)
    over_it = [20, 20, 60, 20, 60, 60, 20, 60]
    runs = coco.frPyObjects([SQUARE], 200, 300)[0]
    as_runs = {"size": runs["size"], "counts": runs["counts"].decode()}
    content = annotations([SQUARE, over_it], [SQUARE, SQUARE], [as_runs, over_it], SQUARE)
    both, twice, mixed, bare = map(load, read_coco(write(tmp_path / "x.json", content), tmp_path).subjects)
    assert both.truth.inside.sum() == 30 * 30 + 40 * 40 - 20 * 20
    np.testing.assert_array_equal(mixed.truth.inside, both.truth.inside)
    assert twice.truth.inside.sum() == bare.truth.inside.sum() == 30 * 30


NAN, INFINITY = float("nan"), float("inf")
RUNS = {"size": [200, 300], "counts": [0, 60000]}


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        ([[*SQUARE[:-1], NAN]], "a coordinate is no number"),
        ([[*SQUARE[:-1], INFINITY]], "a coordinate is no number"),
        ([[*SQUARE[:-1], None]], "a coordinate is no number"),
        ([[*SQUARE[:-1], "40"]], "a coordinate is no number"),
        ([[*SQUARE[:-1], 10**400]], "a coordinate is no number"),
        ([[[10, 10], [40, 10], [40]]], "a coordinate is no number"),
        ([SQUARE, "polygon"], "a coordinate is no number"),
        ([SQUARE, 7], "a coordinate is no number"),
        ([[*SQUARE[:-1], 1e300]], "far outside the photo of 300 x 200 pixels"),
        ([[*SQUARE[:-1], -(2**62)]], "far outside the photo of 300 x 200 pixels"),
        ([[0, 0, 4000, 0] * 2000], "runs to and fro over more than 4194304 pixels"),
        ([SQUARE[:-1]], "an odd number of coordinates"),
        ([SQUARE[:4]], "fewer than three points"),
        ([SQUARE, []], "fewer than three points"),
        ("o0", "neither polygons nor run lengths"),
        (17, "neither polygons nor run lengths"),
        ({"size": [200, 300]}, "neither run lengths nor compressed ones"),
        (RUNS | {"counts": [0, NAN]}, "neither run lengths nor compressed ones"),
        (RUNS | {"counts": [-60000, 120000]}, "neither run lengths nor compressed ones"),
        (RUNS | {"counts": [0, 2**70]}, "neither run lengths nor compressed ones"),
        (RUNS | {"counts": [0, 59999]}, "of 59999 pixels, and the photo of 300 x 200"),
        (RUNS | {"counts": "é"}, "neither run lengths nor compressed ones"),
        (RUNS | {"counts": "garbage"}, "not those of a mask of 300 x 200 pixels"),
        (RUNS | {"counts": "o" * 50}, "not those of a mask of 300 x 200 pixels"),
        (RUNS | {"size": [300, 200]}, "of 200 x 300 pixels, and the photo of 300 x 200"),
        (RUNS | {"size": [200]}, r"is not \[height, width\]"),
        (RUNS | {"size": 7}, r"is not \[height, width\]"),
    ],
)
def test_a_segmentation_that_says_nothing_is_told_before_a_library_in_c_gets_it(tmp_path, segmentation, says):
    save(tmp_path / "a.png", IMAGE)
    file = write(tmp_path / "x.json", annotations(segmentation, [SQUARE]))
    wrong, right = read_coco(file, tmp_path).subjects
    with pytest.raises(DataError, match=rf"x\.json: the segmentation of annotation 10 cannot be read: .*{says}"):
        load(wrong)
    assert load(right).truth.inside.any()


@pytest.mark.parametrize("size", [(None, None), (0, 0), (-1, 200), ("200", "300"), (2**31, 2**31), (NAN, 3)])
def test_an_image_without_a_size_is_told(tmp_path, size):
    save(tmp_path / "a.png", IMAGE)
    content = annotations([SQUARE])
    content["images"][0]["height"], content["images"][0]["width"] = size
    (subject,) = read_coco(write(tmp_path / "x.json", content), tmp_path).subjects
    with pytest.raises(DataError, match=r"annotation 10 cannot be read: .* (no size of a photo|no height or no width)"):
        load(subject)


def test_run_lengths_tell_the_size_where_the_image_does_not(tmp_path):
    save(tmp_path / "a.png", IMAGE)
    content = annotations(RUNS)
    del content["images"][0]["height"], content["images"][0]["width"]
    (photo,) = map(load, read_coco(write(tmp_path / "x.json", content), tmp_path).subjects)
    assert photo.truth.inside.all()


@pytest.mark.parametrize(
    "name",
    [
        "sub/b ü.png",
        "images/sub/b ü.png",
        "data/images/sub/b ü.png",
        "/home/somebody/data/images/sub/b ü.png",
        "sub\\b ü.png",
        "C:\\data\\images\\sub\\b ü.png",
        "./sub/../sub/b ü.png",
        "sub/b%20%C3%BC.png",
        "file:///data/sub/b%20%C3%BC.png",
        "https://host:8080/data/upload/1/b%20%C3%BC.png?token=7",
        "/data/upload/1/b ü.png",
        "/data/local-files/?d=sub/b%20%C3%BC.png",
        "sub/b u\N{COMBINING DIAERESIS}.png",
    ],
)
def test_photos_are_found_by_names_as_other_tools_write_them(tmp_path, name):
    save(tmp_path / "images" / "sub" / "b ü.png", IMAGE)
    save(tmp_path / "images" / "b ü.png", IMAGE)  # for those that name no folder
    content = annotations([SQUARE])
    content["images"][0]["file_name"] = name
    (subject,) = read_coco(write(tmp_path / "x.json", content), tmp_path / "images").subjects
    assert subject.image.is_file()
    assert ("sub" in subject.image.parts) == ("upload" not in name)


def test_a_name_that_is_there_as_it_stands_comes_first(tmp_path):
    for name in ("a.png", "images/a.png", "b%20c.png", "b c.png", "d\\e.png", "e.png"):
        save(tmp_path / name, IMAGE)
    for name in ("images/a.png", "b%20c.png", "d\\e.png"):
        content = annotations([SQUARE])
        content["images"][0]["file_name"] = name
        (subject,) = read_coco(write(tmp_path / "x.json", content), tmp_path).subjects
        assert subject.image == tmp_path / name


def test_two_images_that_come_to_one_file_are_told(tmp_path):
    """Of two folders one is not here, and its photo is not the other's."""
    save(tmp_path / "a.png", IMAGE)
    content = annotations([SQUARE], [SQUARE])
    content["images"] = [content["images"][0] | {"id": number, "file_name": f"{number}/a.png"} for number in (7, 8)]
    content["annotations"][1]["image_id"] = 8
    data = read_coco(write(tmp_path / "x.json", content), tmp_path)
    assert flaws(data) == [
        f"{tmp_path}/x.json: images 7 and 8, of annotation {number}, both come to {tmp_path}/a.png"
        for number in (10, 11)
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_id": 9}, "annotation 10 is of image 9, which is not listed"),
        ({"image_id": [7]}, "annotation 10 is of image [7], which is not listed"),
        ({"image_id": None}, "annotation 10 is of image None, which is not listed"),
        ({"segmentation": None}, "annotation 10 has no segmentation"),
        ({"segmentation": []}, "annotation 10 has no segmentation"),
        ({"id": None}, "the annotation at position 1 has no usable id"),
        ({"id": [1]}, "the annotation at position 1 has no usable id"),
        ({"id": 11}, "annotation 11 is there twice, and the first one counts"),
    ],
)
def test_an_annotation_that_cannot_be_used_is_told_and_the_others_are_read(tmp_path, change, says):
    content = annotations([SQUARE], [SQUARE], [SQUARE])
    content["annotations"][0] |= change
    content["annotations"].append("no annotation")
    data = read_coco(write(tmp_path / "x.json", content), tmp_path)
    assert len(data.subjects) == 2
    assert flaws(data) == [
        f"{tmp_path}/x.json: {says}",
        f"{tmp_path}/x.json: the annotation at position 4 has no usable id",
    ]


@pytest.mark.parametrize("number", [7, 7.0, "7"])
def test_ids_are_the_same_as_numbers_and_as_text(tmp_path, number):
    content = annotations([SQUARE])
    content["annotations"][0] |= {"image_id": number, "category_id": str(2)}
    (subject,) = read_coco(write(tmp_path / "x.json", content), tmp_path).subjects
    assert subject.group == "disk"


@pytest.mark.parametrize(
    ("name", "says"), [("a\0.png", "that no file can have"), ("\ud800.png", "that no file can have")]
)
def test_a_name_that_no_file_can_have_is_told(tmp_path, name, says):
    content = annotations([SQUARE])
    content["images"][0]["file_name"] = name
    assert flaws(read_coco(write(tmp_path / "x.json", content), tmp_path)) == [
        f"{tmp_path}/x.json: image 7, of annotation 10, has a file_name {says}"
    ]


def test_two_images_of_one_id_are_told_and_one_that_is_listed_twice_is_none(tmp_path):
    content = annotations([SQUARE])
    content["images"].append(dict(content["images"][0]))
    assert flaws(read_coco(write(tmp_path / "x.json", content), tmp_path)) == []
    content["images"].append(content["images"][0] | {"file_name": "b.png"})
    assert flaws(read_coco(write(tmp_path / "x.json", content), tmp_path)) == [
        f"{tmp_path}/x.json: image 7, of annotation 10, is listed twice"
    ]


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"images": 3}', '{"images": [{}], "annotations": []}'])
def test_other_json_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=r"x\.json"):
        read_coco(tmp_path / "x.json", tmp_path)


def test_a_part_of_a_data_set_is_evenly_spread(tmp_path):
    square = [[10, 10, 20, 10, 20, 30, 10, 30]]
    data = read_coco(write(tmp_path / "all.json", annotations(*[square] * 10)), tmp_path)
    assert [subject.name for subject in data.spread(3).subjects] == ["annotation 10", "annotation 13", "annotation 16"]
    assert data.spread(10).subjects == data.subjects
