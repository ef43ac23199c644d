"""`segment`: prompts in calls of a bounded size, a result for each, and the image by its digest where it is known."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

import polywand
from polywand import Prompt
from polywand.segmenting import MOST_PROMPTS, UNASKED_PROMPTS
from polywand_contract.v1 import annotation_pb2 as pb
from tests.client.scripted import Script, full_status, scripted_server, status

PIXELS = np.zeros((3, 4, 3), np.uint8)
BOX = (0, 0, 2, 2)

Segment = Callable[..., list[polywand.SegmentResult]]


def segment(target: str, *arguments: Any, **options: Any) -> list[polywand.SegmentResult]:
    with polywand.connect(target, timeout=20) as client:
        return client.segment(*arguments, **options)


def segment_under_asyncio(target: str, *arguments: Any, **options: Any) -> list[polywand.SegmentResult]:
    async def call() -> list[polywand.SegmentResult]:
        async with polywand.aio.connect(target, timeout=20) as client:
            return await client.segment(*arguments, **options)

    return asyncio.run(call())


both = pytest.mark.parametrize("segment", [segment, segment_under_asyncio])


def echo(request: pb.SegmentRequest) -> list[pb.SegmentResult]:
    """Answer every prompt with its object's id, and the left edge of its box as the area."""
    return [
        pb.SegmentResult(
            object_id=prompt.object_id,
            segmentation=pb.Segmentation(model=prompt.model or request.model, shape=pb.Shape(area=prompt.box.x0)),
        )
        for prompt in request.prompts
    ]


def segments(script: Script) -> list[pb.SegmentRequest]:
    return [message for _, message in script.arrivals if isinstance(message, pb.SegmentRequest)]


@both
def test_every_prompt_has_its_result_in_order(segment: Segment) -> None:
    answers = [
        pb.SegmentResult(
            object_id="a",
            segmentation=pb.Segmentation(
                model="m",
                version=2,
                score=0.75,
                score_kind=pb.SCORE_KIND_PREDICTED_IOU,
                shape=pb.Shape(area=4),
                alternatives=[pb.Candidate(score=0.5, shape=pb.Shape(area=9))],
            ),
        ),
        pb.SegmentResult(object_id="b", incomplete=pb.Incomplete(message="one more point", missing_positive_points=1)),
        pb.SegmentResult(object_id="c", error=status(grpc.StatusCode.INVALID_ARGUMENT, "outside")),
    ]
    with scripted_server(Script(segment=lambda _: answers)) as target:
        found, incomplete, failed = segment(target, PIXELS, [Prompt(object_id=name) for name in "abc"])
    outline = found.unwrap()
    assert (outline.model, outline.version, outline.area, outline.width, outline.height) == ("m", 2, 4.0, 4, 3)
    assert (outline.score, outline.score_kind) == (0.75, "predicted_iou")
    assert [(other.area, other.score, other.score_kind) for other in outline.alternatives] == [
        (9.0, 0.5, "predicted_iou")
    ]
    assert [result.object_id for result in (found, incomplete, failed)] == ["a", "b", "c"]
    assert incomplete.outline is failed.outline is None
    with pytest.raises(polywand.IncompletePrompt, match="one more point"):
        incomplete.unwrap()
    with pytest.raises(polywand.InvalidRequest, match="outside"):
        failed.unwrap()


@both
def test_prompts_are_boxes_or_whole_prompts_and_options_are_those_of_the_call(segment: Segment) -> None:
    seed = np.ones((3, 4), bool)
    prompts: list[Any] = [
        BOX,
        np.array([1, 1, 3, 3]),
        Prompt(points=[(1, 2, "negative"), (2, 1, 1), (0.5, 0.5, 0), (3, 2), (1, 1, "extreme")], object_id="cup"),
        Prompt(box=BOX, seed=seed, model="other", version=3),
    ]
    script = Script(segment=echo)
    with scripted_server(script) as target:
        options = {"threshold": 0.25, "tolerance": 0, "max_points": 9, "polygons": False, "mask": True, "png": True}
        segment(target, PIXELS, prompts, roi=(0, 0, 4, 3), model="m", version=2, **options)
    (request,) = segments(script)
    assert (request.model, request.version, request.roi.x1) == ("m", 2, 4)
    assert (request.output.threshold, request.output.tolerance, request.output.max_points) == (0.25, 0, 9)
    assert list(request.output.forms) == [pb.OUTPUT_FORM_RLE, pb.OUTPUT_FORM_PNG]
    first, second, third, fourth = request.prompts
    assert (first.box, second.box.x1) == (pb.Box(x0=0, y0=0, x1=2, y1=2), 3)
    assert [point.label for point in third.points] == [
        *(pb.POINT_LABEL_NEGATIVE, pb.POINT_LABEL_POSITIVE, pb.POINT_LABEL_NEGATIVE),
        *(pb.POINT_LABEL_POSITIVE, pb.POINT_LABEL_EXTREME),
    ]
    assert (third.object_id, third.HasField("box"), third.HasField("output")) == ("cup", False, False)
    assert (fourth.model, fourth.version, fourth.seed.rle.width) == ("other", 3, 4)


def test_points_may_be_an_array_of_three_columns() -> None:
    points = np.array([[1, 2, 1], [2, 1, 0]], np.float32)
    assert [point.label for point in polywand.prompts.to_message(Prompt(points=points)).points] == [
        pb.POINT_LABEL_POSITIVE,
        pb.POINT_LABEL_NEGATIVE,
    ]


@both
@pytest.mark.parametrize(("limit", "sizes"), [(0, [64, 64, 22]), (1000, [64, 64, 22]), (60, [60, 60, 30])])
def test_many_prompts_are_several_calls_with_one_image(segment: Segment, limit: int, sizes: list[int]) -> None:
    script = Script(segment=echo)
    script.info.limits.segment_prompts = limit
    boxes = np.array([(x, 0, x + 1, 1) for x in range(150)])
    with scripted_server(script) as target:
        results = segment(target, PIXELS, boxes)
    assert [result.unwrap().area for result in results] == list(range(150))
    assert [len(request.prompts) for request in segments(script)] == sizes
    assert script.sources == ["raw", "digest", "digest"]


def test_prompts_with_large_seeds_are_fewer_in_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polywand.segmenting.MOST_BYTES", 3000)
    seed = [np.random.default_rng(1).random((100, 2))]  # 800 bytes
    script = Script(segment=echo)
    with scripted_server(script) as target:
        assert len(segment(target, PIXELS, [Prompt(seed=seed, object_id=str(n)) for n in range(5)])) == 5
    assert [len(request.prompts) for request in segments(script)] == [3, 2]


def test_the_limit_of_a_server_is_asked_for_once_and_only_for_many_prompts() -> None:
    script = Script(segment=echo)
    with scripted_server(script) as target, polywand.connect(target) as client:
        client.segment(PIXELS, [BOX] * UNASKED_PROMPTS)
        assert [type(message) for _, message in script.arrivals] == [pb.SegmentRequest]
        for _ in range(2):
            client.segment(PIXELS, [BOX] * (UNASKED_PROMPTS + 1))
    kinds = [type(message) for _, message in script.arrivals]
    assert kinds == [pb.SegmentRequest, pb.GetServerInfoRequest, pb.SegmentRequest, pb.SegmentRequest]


@both
def test_no_prompts_need_no_call(segment: Segment) -> None:
    script = Script()
    with scripted_server(script) as target:
        assert segment(target, PIXELS, np.empty((0, 4))) == []
    assert script.arrivals == []


@both
def test_an_error_of_the_first_call_is_raised(segment: Segment) -> None:
    error = status(grpc.StatusCode.INVALID_ARGUMENT, "not an image")
    with (
        scripted_server(Script(segment=lambda _: error)) as target,
        pytest.raises(polywand.InvalidRequest, match="not an image"),
    ):
        segment(target, b"photo", [BOX] * 100)


@both
def test_results_are_not_lost_when_a_later_call_fails(segment: Segment) -> None:
    calls = itertools.count()
    error = status(grpc.StatusCode.INTERNAL, "the model failed")
    with scripted_server(Script(segment=lambda request: error if next(calls) else echo(request))) as target:
        results = segment(target, PIXELS, [Prompt(box=BOX, object_id=str(n)) for n in range(150)])
    assert [result.object_id for result in results] == [str(n) for n in range(150)]
    assert all(result.outline is not None for result in results[:MOST_PROMPTS])
    assert all(isinstance(result.error, polywand.ServerError) for result in results[MOST_PROMPTS:])


@both
def test_a_server_that_answers_too_few_is_told(segment: Segment) -> None:
    with scripted_server(Script()) as target, pytest.raises(polywand.ServerError, match="0 results for 1 prompts"):
        segment(target, PIXELS, [BOX])


@both
def test_a_full_server_is_asked_again(segment: Segment) -> None:
    script = Script(detect=lambda count: full_status(0.01) if count < 2 else None, segment=echo)
    with scripted_server(script) as target:
        assert len(segment(target, PIXELS, [BOX])) == 1
    assert script.sources == ["raw"] * 3


@pytest.mark.parametrize(
    ("prompts", "field", "complaint"),
    [
        (BOX, "prompts[0]", "0 is not 4 finite numbers"),
        ([BOX, (1, 2, 3)], "prompts[1]", "4 finite numbers"),
        ([Prompt(), Prompt(box=(1, 2))], "prompts[1].box", "4 finite numbers"),
        ([Prompt(points=[(1, 2, 3)])], "prompts[0].points", "positive (1), negative (0) or extreme"),
        ([Prompt(points=[(1, 2, "no")])], "prompts[0].points", "positive (1), negative (0) or extreme"),
        ([Prompt(object_id="o" * 129)], "prompts[0].object_id", "at most 128"),
        ([Prompt(version=2)], "prompts[0].version", "of which model"),
        (Prompt(), "prompts", "a list of Prompt or of boxes"),
        ("prompts", "prompts", "a list of Prompt or of boxes"),
        (5, "prompts", "a list of Prompt or of boxes"),
    ],
)
def test_a_wrong_prompt_is_told_by_its_number_before_anything_is_sent(prompts: Any, field: str, complaint: str) -> None:
    script = Script(segment=echo)
    with scripted_server(script) as target, pytest.raises(polywand.InvalidRequest) as caught:
        segment(target, PIXELS, prompts)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert complaint in str(caught.value)
    assert script.arrivals == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("roi", (1, 2)), ("version", 2), ("threshold", 1), ("tolerance", -1), ("mask", "yes"), ("polygons", None)],
)
def test_a_wrong_option_is_told_by_its_name(name: str, value: Any) -> None:
    with polywand.connect("localhost:1") as client, pytest.raises(polywand.InvalidRequest) as caught:
        client.segment(PIXELS, [BOX], **{name: value})
    assert [violation.field for violation in caught.value.violations] == [name]


# Images by digest


async def test_what_was_sent_once_is_named_by_its_digest_by_all_unary_calls() -> None:
    script = Script(segment=echo)
    with scripted_server(script) as target, polywand.connect(target) as client:
        client.detect(PIXELS)
        client.segment(PIXELS, [BOX])
        client.detect(PIXELS)
        client.detect(PIXELS + 1)
        assert script.sources == ["raw", "digest", "digest", "raw"]
        script.arrivals.clear()
        async with polywand.aio.connect(target) as other:
            await other.segment(PIXELS, [BOX])
            await other.detect(PIXELS)
    assert script.sources == ["raw", "digest"]


async def test_what_the_server_does_not_hold_any_more_is_sent_again() -> None:
    script = Script(segment=echo)
    with scripted_server(script) as target, polywand.connect(target) as client:
        client.segment(PIXELS, [BOX])
        script.holds.clear()
        assert client.segment(PIXELS, [BOX])[0].outline is not None
        client.detect(PIXELS)
        assert script.sources == ["raw", "digest", "raw", "digest"]
        async with polywand.aio.connect(target) as other:
            await other.segment(PIXELS, [BOX])
            script.holds.clear()
            script.arrivals.clear()
            assert len(await other.detect(PIXELS)) == 0
    assert script.sources == ["digest", "raw"]
