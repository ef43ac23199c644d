"""Detection by the synchronous client on the real service."""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import polywand
from polywand import Client, Detections, PolywandError
from polywand.frames import FRAMES_AHEAD
from tests.client.helpers import FACE, polywand_threads
from tests.client.scripted import Script, scripted_server
from tests.running import WAND_VERSION


def test_a_detector_finds_the_person_on_the_photo(client: Client, astronaut: NDArray[np.uint8]) -> None:
    found = client.detect(astronaut)
    assert (found.width, found.height, found.model) == (512, 512, "nanodet")
    best = found[0]
    assert best.label == best.model_label == "person"
    assert best.score == max(one.score for one in found) > 0.4
    assert best.box.x0 < FACE[0] < best.box.x1
    assert found[:1] == (best,)
    assert len(found) == len(list(found))


def test_labels_are_mapped_and_others_dropped(client: Client, astronaut: NDArray[np.uint8]) -> None:
    found = client.detect(astronaut, threshold=0.1, labels={"person": "astronaut"})
    assert {(one.label, one.model_label) for one in found} == {("astronaut", "person")}
    with pytest.raises(polywand.InvalidRequest, match="spaceman"):
        client.detect(astronaut, labels={"spaceman": "astronaut"})


def test_detections_are_as_many_as_asked_for(client: Client, coffee: NDArray[np.uint8]) -> None:
    assert len(client.detect(coffee, threshold=0.05)) > 2
    assert len(client.detect(coffee, threshold=0.05, max_detections=2)) == 2


def test_polygons_outline_what_was_detected(client: Client, astronaut: NDArray[np.uint8]) -> None:
    found = client.detect(
        astronaut, polygons=True, mask=True, interactor="wand_click", interactor_threshold=0.6, tolerance=0
    )
    best = found[0]
    assert best.outline is not None
    assert (best.outline.model, best.outline.version) == ("wand_click", WAND_VERSION)
    assert best.outline.threshold == pytest.approx(0.6)
    assert best.outline.mask is not None
    assert best.outline.mask[FACE[1], FACE[0]]
    assert best.polygons == best.outline.polygons
    np.testing.assert_array_equal(polywand.rasterise(best.polygons, found.width, found.height), best.outline.mask)
    coarse = client.detect(astronaut, polygons=True, max_points=12)[0]
    assert coarse.box == best.box
    assert coarse.outline is not None
    assert coarse.outline.mask is None
    rings = [ring for polygon in coarse.polygons for ring in (polygon.exterior, *polygon.holes)]
    assert 3 <= sum(map(len, rings)) <= 12


def test_without_polygons_there_are_none(client: Client, astronaut: NDArray[np.uint8]) -> None:
    best = client.detect(astronaut)[0]
    assert best.outline is None
    assert best.polygons == ()


def test_the_outline_of_a_detection_is_a_seed_for_clicks(client: Client, astronaut: NDArray[np.uint8]) -> None:
    outline = client.detect(astronaut, polygons=True, tolerance=0)[0].outline
    with client.open(astronaut) as session:
        again = session.prompt("wand_click", seed=outline, tolerance=0)
    assert outline is not None
    assert again.area == pytest.approx(outline.area, rel=0.01)


def test_an_interactor_that_does_not_exist_is_told_by_the_field(client: Client, astronaut: NDArray[np.uint8]) -> None:
    with pytest.raises(polywand.InvalidRequest, match="no_such_tool") as caught:
        client.detect(astronaut, polygons=True, interactor="no_such_tool")
    assert [violation.field for violation in caught.value.violations] == ["polygons.model"]


@pytest.mark.parametrize(
    "option", [{"tolerance": 0.0}, {"max_points": 9}, {"interactor": "wand_click"}, {"interactor_threshold": 0.5}]
)
def test_options_of_outlines_without_outlines_are_the_callers_mistake(
    client: Client, astronaut: NDArray[np.uint8], option: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="polygons=True"):
        client.detect(astronaut, **option)
    with pytest.raises(ValueError, match="polygons=True"):
        next(client.detect_stream([astronaut], **option))


def test_a_stream_outlines_every_frame(client: Client, astronaut: NDArray[np.uint8], coffee: NDArray[np.uint8]) -> None:
    answers = dict(client.detect_stream([astronaut, b"no image", coffee], polygons=True))
    assert isinstance(answers[1], polywand.InvalidRequest)
    for frame in (0, 2):
        found = answers[frame]
        assert isinstance(found, Detections)
        assert all(one.outline is not None for one in found)
        assert found[0].polygons


def test_a_stream_answers_every_frame_in_order_and_bad_ones_with_errors(
    client: Client, astronaut: NDArray[np.uint8], coffee: NDArray[np.uint8]
) -> None:
    frames: list[polywand.ImageLike] = [astronaut, b"no image", coffee, "missing.jpg", astronaut[:, :, :2], astronaut]
    answers = list(client.detect_stream(frames))
    assert [frame for frame, _ in answers] == [0, 1, 2, 3, 4, 5]
    assert [type(result) for _, result in answers] == [
        *(Detections, polywand.InvalidRequest, Detections),
        *(polywand.InvalidRequest, polywand.InvalidRequest, Detections),
    ]
    first, last = answers[0][1], answers[5][1]
    assert isinstance(first, Detections)
    assert isinstance(last, Detections)
    assert first.items == last.items == client.detect(astronaut).items
    decode_error, read_error = answers[1][1], answers[3][1]
    assert isinstance(decode_error, PolywandError)
    assert decode_error.violations
    assert "missing.jpg" in str(read_error)


def test_a_stream_takes_frames_only_a_little_ahead(client: Client, astronaut: NDArray[np.uint8]) -> None:
    taken = itertools.count()
    small = astronaut[::8, ::8]
    stream = client.detect_stream(small for _ in taken)
    for expected in range(3):
        frame, result = next(stream)
        assert frame == expected
        assert isinstance(result, Detections)
    time.sleep(0.5)
    assert 3 <= next(taken) <= 3 + FRAMES_AHEAD
    stream.close()
    assert not polywand_threads()


def test_a_stream_longer_than_all_buffers_ends(client: Client, astronaut: NDArray[np.uint8]) -> None:
    frames: list[polywand.ImageLike] = ["missing.jpg"] * 100
    frames[50] = astronaut
    answers = list(client.detect_stream(frames))
    assert [frame for frame, _ in answers] == list(range(100))
    assert isinstance(answers[50][1], Detections)


def test_an_empty_stream_has_no_answers(client: Client) -> None:
    assert list(client.detect_stream([])) == []


def test_what_the_callers_frames_raise_comes_after_the_answers_before(
    client: Client, astronaut: NDArray[np.uint8]
) -> None:
    def frames() -> Iterator[NDArray[np.uint8]]:
        yield astronaut
        raise RuntimeError("the camera is gone")

    stream = client.detect_stream(frames())
    assert isinstance(next(stream)[1], Detections)
    with pytest.raises(RuntimeError, match="camera"):
        next(stream)


def test_slow_frames_are_no_reason_to_give_a_server_up(astronaut: NDArray[np.uint8]) -> None:
    def frames() -> Iterator[NDArray[np.uint8]]:
        for _ in range(2):
            time.sleep(1.8)
            yield astronaut

    with scripted_server(Script()) as target, polywand.connect(target, timeout=1.5) as impatient:
        assert [type(result) for _, result in impatient.detect_stream(frames())] == [Detections, Detections]


def test_a_range_of_values_is_sent_with_each_frame(client: Client, astronaut: NDArray[np.uint8]) -> None:
    mist = cv2.imencode(".png", astronaut[..., ::-1].astype(np.uint16) * 16 + 20_000)[1].tobytes()
    said = (20_000, 24_080)
    assert client.detect(mist, value_range=said)[0].label == "person"
    for _, found in client.detect_stream([mist, mist], value_range=said):
        assert not isinstance(found, PolywandError)
        assert found[0].score == pytest.approx(client.detect(astronaut)[0].score, abs=0.01)
    with client.open(mist, value_range=said) as session:
        area = session.prompt("wand_click", positive=[FACE]).area
        session.set_image(astronaut)
        assert session.prompt("wand_click", positive=[FACE]).area == pytest.approx(area, rel=0.02)
        with pytest.raises(polywand.InvalidRequest, match="value_range") as caught:
            session.set_image(astronaut, value_range=said)
        assert "8 bits" in str(caught.value)
