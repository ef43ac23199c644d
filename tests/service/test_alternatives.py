"""Scores, and the other answers of models that have several to one prompt."""

import shutil
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from google.rpc import code_pb2

from polywand_contract.v1 import annotation_pb2 as pb
from tests.interactors import SCORES, add_interactor
from tests.puppets import SEVERAL
from tests.running import wait_for
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

SIDE = 256
CLICK = (80, 80, POSITIVE)
FAR = (180, 160, POSITIVE)
BRIGHT, WHITE, BLUE = (255, 255, 254), (255, 255, 255), (0, 0, 255)
ALL = [pb.OUTPUT_FORM_POLYGONS, pb.OUTPUT_FORM_RLE, pb.OUTPUT_FORM_PNG]
# Radii of the answers to a first click, the surest first, and their scores in a dark image.
RADII, DARK_SCORES = [16, 32, 8], [0.45, 0.35, 0.25]


def picture(value: int = 0, first: tuple[int, int, int] | None = None, side: int = SIDE) -> pb.Image:
    """An image of one grey, whose first pixel may have another colour."""
    pixels = np.full((side, side, 3), value, np.uint8)
    if first is not None:
        pixels[: side // SIDE, : side // SIDE] = first
    return raw_image(pixels)


@pytest.fixture
def stream(puppet_stub) -> Iterator[InteractStream]:
    with InteractStream(puppet_stub) as opened:
        opened.ask(picture())
        yield opened


def radius(shape: pb.Shape) -> float:
    return float(np.sqrt(shape.area / np.pi))


def answers(reply: pb.InteractResponse) -> list[pb.Segmentation | pb.Candidate]:
    """The answer and its alternatives: messages with a shape and a score."""
    assert reply.HasField("segmentation"), reply
    return [reply.segmentation, *reply.segmentation.alternatives]


def radii(reply: pb.InteractResponse) -> list[float]:
    return [radius(answer.shape) for answer in answers(reply)]


def scores(reply: pb.InteractResponse) -> list[float]:
    return [answer.score for answer in answers(reply)]


# Scores


def test_without_a_score_of_the_models_own_it_is_the_mean_probability_of_the_mask(stream):
    found = stream.ask(prompt("disk", CLICK)).segmentation
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    probabilities = 1 / (1 + np.exp(np.hypot(columns - 80, rows - 80) - 8))
    assert found.score_kind == pb.SCORE_KIND_MEAN_PROBABILITY
    assert found.score == pytest.approx(probabilities[probabilities > 0.5].mean(), abs=1e-3)
    surer = stream.ask(prompt("disk", CLICK, threshold=0.9))
    assert surer.segmentation.score == pytest.approx(probabilities[probabilities > 0.9].mean(), abs=1e-3)
    assert surer.timing.inferences == 0
    assert not found.alternatives


def test_the_score_of_an_empty_mask_is_0(stream):
    found = stream.ask(prompt("nothing", CLICK)).segmentation
    assert not found.shape.HasField("box")
    assert (found.score, found.score_kind) == (0, pb.SCORE_KIND_MEAN_PROBABILITY)


@pytest.mark.parametrize("tool", ["keeper", "several"])
def test_the_score_of_a_seed_alone_is_1_whatever_the_tool(stream, tool):
    ring = pb.Ring(coordinates=[40, 40, 120, 40, 120, 120, 40, 120])
    seed = pb.SeedMask(polygons=pb.PolygonSet(polygons=[pb.Polygon(exterior=ring)]))
    found = stream.ask(pb.Prompt(model=tool, seed=seed)).segmentation
    assert (found.score, found.score_kind) == (1, pb.SCORE_KIND_SEED)
    assert found.shape.area == 80 * 80
    assert not found.alternatives


# Alternatives


def test_the_answer_with_the_highest_score_comes_first_and_the_others_follow_the_surest_first(stream):
    reply = stream.ask(prompt("several", CLICK))
    assert radii(reply) == pytest.approx(RADII, rel=0.03)
    assert scores(reply) == pytest.approx(DARK_SCORES)
    assert reply.segmentation.score_kind == pb.SCORE_KIND_PREDICTED_IOU
    assert reply.timing.inferences == 1


def test_scores_are_brought_into_0_to_1(stream):
    stream.ask(picture(0, WHITE))
    reply = stream.ask(prompt("several", CLICK))
    assert radii(reply) == pytest.approx([8, 16, 32], rel=0.03)
    assert scores(reply) == pytest.approx([0.75, 0.05, 0], abs=1e-4)
    stream.ask(picture(255))
    assert scores(stream.ask(prompt("several", CLICK)))[0] == 1


def test_output_options_apply_to_every_alternative_and_a_change_of_them_infers_nothing(stream):
    stream.ask(prompt("several", CLICK))
    reply = stream.ask(prompt("several", CLICK, forms=ALL, tolerance=0))
    assert reply.timing.inferences == 0
    assert radii(reply) == pytest.approx(RADII, rel=0.03)
    assert scores(reply) == pytest.approx(DARK_SCORES)
    for answer in answers(reply):
        assert answer.shape.polygons
        assert answer.shape.rle.counts
        assert answer.shape.png
        assert answer.shape.tolerance == 0
    boxes = stream.ask(prompt("several", CLICK, forms=[pb.OUTPUT_FORM_BOX]))
    assert boxes.timing.inferences == 0
    assert not any(answer.shape.polygons for answer in answers(boxes))
    assert radii(boxes) == pytest.approx(RADII, rel=0.03)


def test_the_next_click_continues_from_the_chosen_answer_alone(stream):
    stream.ask(prompt("several", CLICK))
    two = stream.ask(prompt("several", CLICK, FAR))
    both = [np.hypot(16, count) for count in (2 * 16, 2 * 32, 2 * 8)]  # of areas that add up: nothing overlaps
    assert two.timing.inferences == 1
    assert radii(two) == pytest.approx(both, rel=0.03)
    assert [len(answer.shape.polygons) for answer in answers(two)] == [2, 2, 2]
    back = stream.ask(prompt("several", CLICK))
    assert back.timing.inferences == 0
    assert radii(back) == pytest.approx(RADII, rel=0.03)
    cold = stream.ask(prompt("several", CLICK, FAR, object_id="all at once"))
    assert cold.timing.inferences == 2
    assert cold.segmentation == two.segmentation


def test_with_flip_averaging_scores_are_averaged_too(stream):
    stream.ask(picture(0, WHITE))  # white on the left: the mirror image has other scores
    reply = stream.ask(prompt("several_flipped", CLICK))
    assert scores(reply) == pytest.approx([0.5, 0.25, 0.125], abs=1e-3)
    assert radii(reply) == pytest.approx([8, 16, 32], rel=0.03)


def test_of_several_looks_the_one_with_the_highest_score_stands(stream):
    """And not the one with the most probable pixels, which this model has where it is dark."""
    pixels = np.full((4 * SIDE, 4 * SIDE, 3), 20, np.uint8)
    pixels[256:768, 256:768] = 200
    stream.ask(raw_image(pixels))
    near = stream.ask(prompt("several_looks", (512, 512, POSITIVE)))
    assert near.timing.inferences == 2
    assert radii(near) == pytest.approx([2 * size for size in RADII], rel=0.03)
    assert scores(near) == pytest.approx([score * (1 + 200 / 255) for score in DARK_SCORES], rel=0.01)


def test_an_alternative_that_exceeds_a_limit_is_left_out(stream):
    stream.ask(picture(0, BLUE))  # the second best answer has more parts than a shape may have
    reply = stream.ask(prompt("several", CLICK))
    assert radii(reply) == pytest.approx([16, 8], rel=0.03)
    assert scores(reply) == pytest.approx([0.45, 0.25], abs=1e-3)


def test_alternatives_count_in_the_memory_of_masks(puppets, puppet_stub):
    memory = "polywand_mask_memory_bytes"
    one_map = SIDE * SIDE * 4
    with InteractStream(puppet_stub) as stream:
        wait_for(lambda: puppets.metric(memory) == 0, 60, puppets)
        stream.ask(picture())
        stream.ask(prompt("several", CLICK))
        assert 3 * one_map < puppets.metric(memory) < 3.5 * one_map


def test_outlines_of_detections_are_the_best_answers(puppet_stub):
    image = picture(0, side=4 * SIDE)  # on which "finder" finds four boxes
    request = pb.DetectRequest(model="finder", image=image, polygons=pb.PolygonOptions(model="several"))
    # In one batch as soon as no prompt is expected any more.
    wait_for(lambda: puppet_stub.Detect(request).timing.inferences == 2, 60)
    response = puppet_stub.Detect(request)
    assert len(response.detections) == 4
    for found in response.detections:  # the puppet draws around the box's last corner
        assert found.shape.box.x1 - min(found.box.x1, 4 * SIDE) == pytest.approx(4 * 16, abs=5)


def test_a_call_of_many_prompts_has_the_alternatives_of_each(puppet_stub, stream):
    prompts = [prompt("several", CLICK), prompt("several", FAR, forms=ALL), prompt("disk", CLICK)]
    results = puppet_stub.Segment(pb.SegmentRequest(image=picture(), prompts=prompts)).results
    assert [len(result.segmentation.alternatives) for result in results] == [2, 2, 0]
    assert [result.segmentation for result in results] == [stream.ask(message).segmentation for message in prompts]


def test_scores_that_are_no_numbers_are_the_models_failure(stream):
    reply = stream.ask(prompt("unscored", CLICK))
    assert reply.error.code == code_pb2.INTERNAL
    assert "model 'unscored' answered SCORES that are not one number for each of its LOGITS" in reply.error.message


WRONG: Mapping[str, tuple[int, str, str]] = {
    "missing": (3, "", "LOGITS has 3 answers, and there is no tensor SCORES"),
    "fewer": (3, SCORES % 2, "SCORES has to be FP32 with dims [ 3 ]"),
    "of_any_number": (-1, SCORES % -1, "LOGITS has to have a fixed number of answers as its first dim, from 1 to 8"),
    "many": (9, SCORES % 9, "from 1 to 8"),
    "integers": (3, SCORES.replace("FP32", "INT32") % 3, "SCORES has to be FP32"),
}


def test_a_model_whose_scores_do_not_fit_its_answers_is_listed_with_the_reason(puppets, puppet_stub, puppet_models):
    folders = {name: puppet_models / f"wrong_{name}" for name in WRONG}

    def reasons() -> dict[str, str]:
        listed = puppet_stub.ListModels(pb.ListModelsRequest()).models
        return {model.name: model.state_message for model in listed if model.state != pb.MODEL_STATE_READY}

    try:
        for name, (count, outputs, _) in WRONG.items():
            add_interactor(puppet_models, folders[name].name, SEVERAL, answers=count, outputs=outputs)
        for name, (_, _, why) in WRONG.items():
            wait_for(lambda name=name, why=why: why in reasons().get(folders[name].name, ""), 60, puppets)
    finally:
        for folder in folders.values():
            shutil.rmtree(folder)


def test_one_answer_with_a_score_of_its_own_has_that(puppets, puppet_stub, puppet_models, stream):
    code = SEVERAL.replace("np.stack(values)", "np.stack(values)[:, :1]").replace(
        '"PREV_MASK", "STATE"', '"IMAGE", "IMAGE"'
    )
    code = code.replace("before > 0.5", "False").replace("state + 1", "np.ones(1)").replace(', "STATE_OUT": counts', "")
    try:
        add_interactor(puppet_models, "scored", code, outputs=SCORES % 1)
        puppets.wait_ready("scored")
        found = stream.ask(prompt("scored", CLICK)).segmentation
        assert radius(found.shape) == pytest.approx(8, rel=0.03)
        assert (found.score_kind, len(found.alternatives)) == (pb.SCORE_KIND_PREDICTED_IOU, 0)
        assert found.score == pytest.approx(0.25, abs=1e-3)
    finally:
        shutil.rmtree(puppet_models / "scored")
