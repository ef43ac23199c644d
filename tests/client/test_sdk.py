"""Sessions of the synchronous client on the real service."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

import polywand
from polywand import Client, Point, Segmentation, Session
from polywand.prompts import in_click_order
from tests.client.helpers import FACE, polywand_threads


@pytest.fixture
def session(client: Client, astronaut: NDArray[np.uint8]) -> Iterator[Session]:
    with client.open(astronaut) as session:
        yield session


def covers(outline: Segmentation, x: float, y: float, size: tuple[int, int] = (512, 512)) -> bool:
    return bool(polywand.rasterise(outline.polygons, *size)[int(y), int(x)])


def overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_models_say_what_they_are_and_need(client: Client) -> None:
    models = {model.name: model for model in client.models()}
    click = models["wand_click"]
    assert click.kind == "interactor"
    assert click.ready
    assert click.interactor is not None
    assert click.interactor.min_positive_points == 1
    assert click.interactor.box == "optional"
    assert click.versions[-1].ready
    assert click.labels == ()
    detector = models["nanodet"]
    assert detector.kind == "detector"
    assert detector.interactor is None
    assert [str(label) for label in detector.labels[:2]] == ["person", "bicycle"]
    assert detector.license == "Apache-2.0"


def test_a_click_gives_the_outline_of_what_was_clicked(session: Session) -> None:
    outline = session.prompt("wand_click", positive=[FACE])
    assert covers(outline, *FACE)
    assert outline.model == "wand_click"
    assert outline.version >= 1
    assert outline.timing.inferences >= 1
    exterior = outline.polygons[0].exterior
    assert exterior.dtype == np.float32
    assert exterior.shape[1] == 2
    vertices = np.concatenate([polygon.exterior for polygon in outline.polygons])
    assert outline.box is not None
    np.testing.assert_allclose(outline.box, (*vertices.min(axis=0), *vertices.max(axis=0)))


def test_polygons_at_tolerance_0_are_the_mask_pixel_for_pixel(session: Session) -> None:
    outline = session.prompt("wand_click", positive=[FACE], tolerance=0, mask=True)
    assert outline.mask is not None
    assert outline.mask.shape == (512, 512)
    np.testing.assert_array_equal(polywand.rasterise(outline.polygons, 512, 512), outline.mask)
    assert outline.area == pytest.approx(outline.mask.sum(), rel=0.02)


def test_no_mask_comes_unless_asked_for(session: Session) -> None:
    assert session.prompt("wand_click", positive=[FACE]).mask is None


def test_options_of_the_answer_alone_run_no_network(session: Session) -> None:
    fine = session.prompt("wand_click", positive=[FACE], tolerance=0)
    coarse = session.prompt("wand_click", positive=[FACE], max_points=20)
    assert coarse.timing.inferences == 0
    assert sum(len(part.exterior) + sum(map(len, part.holes)) for part in coarse.polygons) <= 20
    assert coarse.tolerance > fine.tolerance


def test_an_outline_says_how_much_its_simplification_kept(session: Session) -> None:
    exact = session.prompt("wand_click", positive=[FACE], tolerance=0)
    assert exact.iou == pytest.approx(1)
    coarse = session.prompt("wand_click", positive=[FACE], max_points=12)
    ours, theirs = (polywand.rasterise(one.polygons, 512, 512) for one in (coarse, exact))
    assert coarse.iou == pytest.approx(overlap(ours, theirs), abs=0.02)
    assert coarse.iou < session.prompt("wand_click", positive=[FACE]).iou < 1


def test_a_negative_click_takes_away_what_it_hits(session: Session) -> None:
    before = session.prompt("wand_click", positive=[FACE])
    rows, columns = np.nonzero(polywand.rasterise(before.polygons, 512, 512))
    too_much = (columns[-1] + 0.5, rows[-1] + 0.5)  # of the lowest row
    after = session.prompt("wand_click", positive=[FACE], negative=[too_much])
    assert after.timing.inferences >= 1
    assert covers(after, *FACE)
    assert not covers(after, *too_much)


def test_undo_answers_as_before_without_the_network(session: Session) -> None:
    before = session.prompt("wand_click", positive=[FACE])
    session.prompt("wand_click", positive=[FACE, (225, 300)])
    undone = session.prompt("wand_click", positive=[FACE])
    assert undone.timing.inferences == 0
    assert undone.area == before.area


def test_points_may_be_given_in_one_ordered_list(session: Session) -> None:
    lists = session.prompt("wand_click", object_id="lists", positive=[FACE], negative=[(30, 30)])
    points = [Point(*FACE), Point(30, 30, "negative")]
    assert session.prompt("wand_click", object_id="points", points=points).area == lists.area
    with pytest.raises(TypeError, match="not both"):
        session.prompt("wand_click", points=points, positive=[FACE])


def test_points_may_be_arrays(session: Session) -> None:
    listed = session.prompt("wand_click", object_id="list", positive=[FACE])
    assert session.prompt("wand_click", object_id="array", positive=np.array([FACE])).area == listed.area


def test_lists_that_grow_keep_the_order_of_their_clicks() -> None:
    first, second, third = Point(1, 1), Point(2, 2, "negative"), Point(3, 3)
    assert in_click_order([first, third, second], [first, second]) == [first, second, third]
    assert in_click_order([third, second], [first, second]) == [second, third]
    assert in_click_order([first, first], [first]) == [first, first]


def test_a_box_starts_what_needs_one(client: Client, coffee: NDArray[np.uint8]) -> None:
    with client.open(coffee) as session:
        outline = session.prompt("grabcut", box=(120, 40, 480, 340))
    assert outline.box is not None
    x0, y0, x1, y1 = outline.box
    assert 119 <= x0 < x1 <= 481
    assert 39 <= y0 < y1 <= 341


def test_too_little_of_a_prompt_says_what_is_missing(session: Session) -> None:
    with pytest.raises(polywand.IncompletePrompt, match="positive point") as error:
        session.prompt("wand_click", negative=[FACE])
    assert error.value.missing_positive_points == 1
    assert error.value.missing_negative_points == error.value.missing_extreme_points == 0
    assert not error.value.missing_box


def test_a_bad_prompt_names_the_field_and_the_session_lives_on(session: Session) -> None:
    with pytest.raises(polywand.InvalidRequest) as error:
        session.prompt("wand_click", positive=[FACE, (600, 20)])
    assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.violations[0].field == "prompt.points[1]"
    assert "512" in error.value.violations[0].description
    assert session.prompt("wand_click", positive=[FACE]).polygons


def test_an_unknown_model_is_told_by_name(session: Session) -> None:
    with pytest.raises(polywand.InvalidRequest, match="no_such_tool") as error:
        session.prompt("no_such_tool", positive=[FACE])
    assert error.value.code is grpc.StatusCode.NOT_FOUND


def test_a_misspelt_argument_is_an_error_on_this_side(session: Session) -> None:
    with pytest.raises(TypeError, match="postive"):
        session.prompt("wand_click", postive=[FACE])  # type: ignore[call-arg]


def test_images_may_be_paths_bytes_and_arrays(client: Client, astronaut: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "astronaut.png"
    cv2.imwrite(str(path), cv2.cvtColor(astronaut, cv2.COLOR_RGB2BGR))
    areas = []
    for image in (astronaut, path, str(path), path.read_bytes(), np.asfortranarray(astronaut)):
        with client.open(image) as session:
            areas.append(session.prompt("wand_click", positive=[FACE]).area)
    assert len(set(areas)) == 1


def test_grey_arrays_are_images_too(client: Client, astronaut: NDArray[np.uint8]) -> None:
    with client.open(astronaut[:300, :, 1]) as session:
        assert (session.width, session.height) == (512, 300)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), "missing.jpg"]
)
def test_what_is_no_image_is_refused_on_this_side(client: Client, image: polywand.ImageLike) -> None:
    with pytest.raises(polywand.InvalidRequest, match=r"uint8|missing\.jpg cannot be read"):
        client.open(image)


def test_what_the_server_cannot_decode_is_refused_and_leaves_no_thread(client: Client) -> None:
    with pytest.raises(polywand.InvalidRequest) as error:
        client.open(b"not an image")
    assert error.value.violations[0].field == "image.encoded"
    assert not polywand_threads()


def test_a_session_goes_on_with_the_next_image(
    session: Session, astronaut: NDArray[np.uint8], coffee: NDArray[np.uint8]
) -> None:
    session.prompt("wand_click", positive=[FACE])
    session.set_image(coffee)
    assert (session.width, session.height) == (600, 400)
    assert covers(session.prompt("wand_click", positive=[(290, 200)]), 290, 200, (600, 400))


def test_an_image_that_fails_leaves_the_last_one_in_place(session: Session) -> None:
    before = session.prompt("wand_click", positive=[FACE])
    with pytest.raises(polywand.InvalidRequest):
        session.set_image(b"not an image")
    assert session.width == 512
    assert session.prompt("wand_click", positive=[FACE]).area == before.area


def test_several_objects_are_worked_on_by_several_threads(session: Session) -> None:
    clicks = {"face": FACE, "suit": (225, 400), "flag": (60, 250), "shuttle": (400, 150)}
    alone = {
        name: session.prompt("wand_click", object_id=f"{name} alone", positive=[at]) for name, at in clicks.items()
    }
    with ThreadPoolExecutor(4) as threads:
        together = threads.map(
            lambda name: session.prompt("wand_click", object_id=name, positive=[clicks[name]]), clicks
        )
        for name, outline in zip(clicks, together, strict=True):
            ours, theirs = (polywand.rasterise(one.polygons, 512, 512) for one in (outline, alone[name]))
            assert overlap(ours, theirs) > 0.98, name


def test_prompts_of_one_object_from_many_threads_all_get_an_answer_that_is_theirs_or_newer(session: Session) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(
            threads.map(lambda x: session.prompt("wand_click", positive=[(x, 110)]), np.linspace(200, 250, 24))
        )
    assert all(answer.polygons for answer in answers)
    assert len({id(answer) for answer in answers}) + sum(
        answer.skipped for answer in {id(answer): answer for answer in answers}.values()
    ) == len(answers)


def test_closing_a_session_leaves_no_thread_and_fails_what_comes_after(
    client: Client, astronaut: NDArray[np.uint8]
) -> None:
    before = threading.active_count()
    seconds = []
    for _ in range(5):
        session = client.open(astronaut)
        assert polywand_threads()
        started = time.monotonic()
        session.close()
        seconds.append(time.monotonic() - started)
        assert not polywand_threads()
    assert min(seconds) < 1  # as long as it waits for a server that does not end the stream
    with pytest.raises(polywand.Closed, match="closed"):
        session.prompt("wand_click", positive=[FACE])
    session.close()
    deadline = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
