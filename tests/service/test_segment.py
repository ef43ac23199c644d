"""What Segment promises: many prompts on one image, each with an answer of its own, as on a stream."""

import asyncio
import signal

import grpc
import numpy as np
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1.annotation_pb2_grpc import AnnotationServiceStub
from polywand_server.interactors.prompt import Incomplete
from polywand_server.rpc import segment
from polywand_server.rpc.segment import _Results
from tests.interactors import COUNTER, DISK, STATE, STATE_OUT, Gate, add_interactor
from tests.puppets import BATCH, add_upper_half, journal
from tests.running import outage, running_service, wait_for
from tests.streams import EXTREME, NEGATIVE, POSITIVE, InteractStream, departure, prompt, raw_image

BOTH = [pb.OUTPUT_FORM_POLYGONS, pb.OUTPUT_FORM_RLE]
CLICK = (220, 130, POSITIVE)


def request(pixels, *prompts: pb.Prompt, **options) -> pb.SegmentRequest:
    return pb.SegmentRequest(image=raw_image(pixels), prompts=prompts, **options)


def outcomes(response: pb.SegmentResponse) -> list[str]:
    return [result.WhichOneof("result") for result in response.results]


def field_of(status: status_pb2.Status) -> str:
    """The field that an error names."""
    found = error_details_pb2.BadRequest()
    assert any(detail.Unpack(found) for detail in status.details), status
    return found.field_violations[0].field


def boxes(count: int, side: int = 512) -> list[tuple[int, int, int, int]]:
    """Boxes of different places and sizes, inside an image of this size."""
    numbers = np.random.default_rng(5)
    found = []
    for _ in range(count):
        width, height = numbers.integers(40, 200, 2)
        x, y = numbers.integers(0, side - width), numbers.integers(0, side - height)
        found.append((int(x), int(y), int(x + width), int(y + height)))
    return found


def wait_for_batches(stub, pixels, model: str) -> None:
    """Wait until prompts of streams are no longer expected; until then, each inference is of one prompt."""
    pair = [prompt(model, box=box) for box in boxes(2)]
    wait_for(lambda: stub.Segment(request(pixels, *pair)).timing.inferences == 1, 30)


def on_a_stream(stub, pixels, *prompts: pb.Prompt) -> list[pb.InteractResponse]:
    """The answers to the same prompts, one after another, of objects of their own."""
    with InteractStream(stub) as stream:
        stream.ask(raw_image(pixels))
        replies = []
        for number, asked in enumerate(prompts):
            own = pb.Prompt()
            own.CopyFrom(asked)
            own.object_id = str(number)
            replies.append(stream.ask(own))
        return replies


# On the shipped models


def test_the_answers_are_those_of_a_stream_whatever_else_is_in_the_call(stub, astronaut):
    extreme = [(20, 300, EXTREME), (250, 10, EXTREME), (430, 300, EXTREME), (250, 500, EXTREME)]
    wanted = [
        *(prompt("wand_box", box=box, forms=BOTH) for box in boxes(9)),
        prompt("wand_click", CLICK, forms=BOTH),
        prompt("wand_click", CLICK, (480, 60, NEGATIVE), forms=BOTH, tolerance=0),
        prompt("wand_click", (150, 400, POSITIVE), box=(10, 10, 500, 500), forms=BOTH),
        prompt("wand_extreme", *extreme, forms=BOTH),
        prompt("grabcut", box=(100, 20, 300, 250), forms=BOTH),
    ]
    seeded = prompt("wand_click", (300, 300, NEGATIVE), forms=BOTH)
    seeded.seed.rle.CopyFrom(on_a_stream(stub, astronaut, wanted[-2])[0].segmentation.shape.rle)
    wanted.append(seeded)
    response = stub.Segment(request(astronaut, *wanted))
    assert outcomes(response) == ["segmentation"] * len(wanted)
    for result, reply in zip(response.results, on_a_stream(stub, astronaut, *wanted), strict=True):
        assert result.segmentation == reply.segmentation
        assert result.segmentation.shape.polygons


def test_boxes_of_one_model_share_inferences_and_the_call_counts_them_once(stub, astronaut):
    """Those of wand_box and of wand_click too, since both are tools of the same model."""
    wait_for_batches(stub, astronaut, "wand_box")
    wanted = [prompt(("wand_box", "wand_click")[number % 2], box=box) for number, box in enumerate(boxes(16))]
    response = stub.Segment(request(astronaut, *wanted))
    assert outcomes(response) == ["segmentation"] * 16
    assert response.timing.inferences == 2
    assert response.timing.receive_time.seconds > 0
    assert response.timing.triton_us > 0


# On puppets


def test_sixty_four_boxes_are_answered_in_their_order(puppet_stub, astronaut):
    wanted = boxes(64)
    prompts = [prompt("upper_half", box=box, object_id=f"object {number}") for number, box in enumerate(wanted)]
    response = puppet_stub.Segment(request(astronaut, *prompts))
    assert (response.image.width, response.image.height) == (512, 512)
    assert [result.object_id for result in response.results] == [f"object {number}" for number in range(64)]
    for (x0, y0, x1, y1), result in zip(wanted, response.results, strict=True):
        box = result.segmentation.shape.box
        assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((x0, y0, x1, (y0 + y1) / 2), abs=4)


def test_prompts_that_wait_for_a_model_go_together_and_a_single_one_goes_alone(puppet_stub, puppet_models, astronaut):
    wait_for_batches(puppet_stub, astronaut, "upper_half")
    written = journal(puppet_models, "upper_half")
    written.unlink()
    several = [prompt("upper_half", box=box) for box in boxes(2 * BATCH + 1)]
    response = puppet_stub.Segment(request(astronaut, *several))
    assert [int(line.split()[0]) for line in written.read_text().splitlines()] == [BATCH, BATCH, 1]
    assert response.timing.inferences == 3
    written.unlink()
    alone = puppet_stub.Segment(request(astronaut, several[0]))
    assert written.read_text().split()[0] == "1"
    assert alone.results[0].segmentation == response.results[0].segmentation


def test_two_prompts_with_the_same_id_are_two_objects(puppet_stub, astronaut):
    """The model counts the passes of an object; what it says of one must not be taken for the other."""
    same = [prompt("counter", (200, 200, POSITIVE), object_id="same", mask=True) for _ in range(2)]
    other = prompt("counter", (200, 200, POSITIVE), (300, 300, POSITIVE), object_id="same", mask=True)
    response = puppet_stub.Segment(request(astronaut, *same, other))
    first, second, third = (result.segmentation for result in response.results)
    assert first == second
    assert third.shape.area > 2 * first.shape.area
    assert [reply.segmentation for reply in on_a_stream(puppet_stub, astronaut, same[0], other)] == [first, third]


def test_what_a_prompt_leaves_out_it_has_of_the_call(puppet_stub, astronaut):
    output = pb.OutputOptions(forms=[pb.OUTPUT_FORM_RLE], threshold=0.6)
    mine = prompt("disk", CLICK, threshold=0.7)
    plain = prompt("", CLICK)
    response = puppet_stub.Segment(request(astronaut, plain, mine, model="keeper", version=1, output=output))
    called, own = (result.segmentation for result in response.results)
    assert (called.model, called.version, called.threshold) == ("keeper", 1, pytest.approx(0.6))
    assert called.shape.rle.counts
    assert (own.model, own.threshold) == ("disk", pytest.approx(0.7))
    assert not own.shape.HasField("rle")


def test_a_prompt_that_needs_more_says_what(puppet_stub, astronaut):
    response = puppet_stub.Segment(request(astronaut, prompt("disk"), prompt("disk", CLICK)))
    assert outcomes(response) == ["incomplete", "segmentation"]
    assert response.results[0].incomplete.missing_positive_points == 1


NAN = float("nan")
BAD_PROMPTS = [
    (prompt("disk", CLICK, (5, 513, POSITIVE)), code_pb2.INVALID_ARGUMENT, "prompts[1].points[1]"),
    (prompt("disk", (NAN, 5, POSITIVE)), code_pb2.INVALID_ARGUMENT, "prompts[1].points[0]"),
    (prompt("disk", (5, 5, 0)), code_pb2.INVALID_ARGUMENT, "prompts[1].points[0].label"),
    (prompt("disk", box=(9, 9, 3, 12)), code_pb2.INVALID_ARGUMENT, "prompts[1].box"),
    (prompt("disk", box=(9, 9, 600, 12)), code_pb2.INVALID_ARGUMENT, "prompts[1].box"),
    (prompt("no_box", CLICK, box=(9, 9, 30, 12)), code_pb2.INVALID_ARGUMENT, "prompts[1].box"),
    (prompt("disk", CLICK, threshold=2), code_pb2.INVALID_ARGUMENT, "prompts[1].output.threshold"),
    (prompt("disk", CLICK, object_id="x" * 129), code_pb2.INVALID_ARGUMENT, "prompts[1].object_id"),
    (prompt("no_such", CLICK), code_pb2.NOT_FOUND, "prompts[1].model"),
    (prompt("disk", CLICK, version=9), code_pb2.NOT_FOUND, "prompts[1].version"),
    (prompt("", CLICK, version=1), code_pb2.INVALID_ARGUMENT, "prompts[1].version"),
    (prompt("nanodet", CLICK), code_pb2.FAILED_PRECONDITION, "prompts[1].model"),
    (
        pb.Prompt(model="keeper", seed=pb.SeedMask(rle=pb.RleMask(counts="1", width=5, height=5))),
        code_pb2.INVALID_ARGUMENT,
        "prompts[1].seed.rle",
    ),
]


@pytest.mark.parametrize(("bad", "code", "field"), BAD_PROMPTS, ids=[field for _, _, field in BAD_PROMPTS])
def test_an_invalid_prompt_has_its_own_error_that_names_its_field(puppet_stub, astronaut, bad, code, field):
    good = prompt("disk", CLICK)
    response = puppet_stub.Segment(request(astronaut, good, bad, good))
    assert outcomes(response) == ["segmentation", "error", "segmentation"]
    assert response.results[1].error.code == code
    assert field_of(response.results[1].error) == field
    assert response.results[0].segmentation == response.results[2].segmentation


def test_a_model_that_the_call_names_wrongly_is_told_as_the_calls(puppet_stub, astronaut):
    response = puppet_stub.Segment(request(astronaut, prompt("", CLICK), prompt("disk", CLICK), model="no_such"))
    assert outcomes(response) == ["error", "segmentation"]
    assert field_of(response.results[0].error) == "model"


NO_IMAGE = pb.SegmentRequest(prompts=[prompt("disk", CLICK)])
BAD_CALLS = {
    "no image": (NO_IMAGE, "INVALID_ARGUMENT", "image", "needed"),
    "no prompts": (pb.SegmentRequest(), "INVALID_ARGUMENT", "prompts", "at least one"),
    "too many": (
        pb.SegmentRequest(prompts=[prompt("disk")] * 1001),
        "RESOURCE_EXHAUSTED",
        "prompts",
        "1001 prompts; this server takes at most 1000",
    ),
    "a version without a model": (
        pb.SegmentRequest(prompts=[prompt("disk", CLICK)], version=1),
        "INVALID_ARGUMENT",
        "version",
        "name of a model",
    ),
    "a long name": (
        pb.SegmentRequest(prompts=[prompt("", CLICK)], model="x" * 300),
        "INVALID_ARGUMENT",
        "model",
        "256",
    ),
    "invalid options": (
        pb.SegmentRequest(prompts=[prompt("disk", CLICK)], output=pb.OutputOptions(tolerance=-1)),
        "INVALID_ARGUMENT",
        "output.tolerance",
        "1000 pixels",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_an_invalid_call_fails_as_a_whole_before_its_image_is_read(puppets, puppet_stub, case):
    call, code, field, words = BAD_CALLS[case]
    if field != "image":
        call.image.encoded = b"I am no image at all"
    with pytest.raises(grpc.RpcError) as caught:
        puppet_stub.Segment(call)
    assert caught.value.code() is grpc.StatusCode[code]
    assert field_of(rpc_status.from_call(caught.value)) == field
    assert words in caught.value.details()


def test_an_image_that_cannot_be_read_fails_the_call(puppet_stub):
    for count in (1, 2):
        call = pb.SegmentRequest(image=pb.Image(encoded=b"no image"), prompts=[prompt("disk", CLICK)] * count)
        with pytest.raises(grpc.RpcError) as caught:
            puppet_stub.Segment(call)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field_of(rpc_status.from_call(caught.value)) == "image.encoded"


class AtOnce:
    """The lane of answers that are small."""

    async def compute_if(self, is_long, work):
        assert not is_long
        return work()


def test_an_answer_beyond_the_most_bytes_of_a_call_is_refused_and_smaller_ones_still_fit(monkeypatch):
    """The limit is small here: a real one takes many seconds to reach."""
    call = pb.SegmentRequest(prompts=[prompt("disk", object_id=name) for name in "abcd"])
    small, large = Incomplete(positive=1), Incomplete(positive=1, negative=2, extreme=3)

    async def write_all() -> list[pb.SegmentResult]:
        results = _Results(call, AtOnce())
        written = [await results.write(number, (small, large, large, small)[number]) for number in range(4)]
        return list(pb.SegmentResponse.FromString(b"".join(written)).results)

    sizes = [len(result.SerializeToString()) for result in asyncio.run(write_all())]
    monkeypatch.setattr(segment, "MAX_ANSWER_BYTES", 2 * sizes[0] + sizes[1] + 8)  # beside two bytes of field each
    results = asyncio.run(write_all())
    assert [result.WhichOneof("result") for result in results] == ["incomplete", "incomplete", "error", "incomplete"]
    assert [result.object_id for result in results] == ["a", "b", "c", "d"]
    assert results[2].error.code == code_pb2.RESOURCE_EXHAUSTED
    assert field_of(results[2].error) == "prompts[2]"


# What goes wrong on the way


def test_a_model_that_fails_costs_only_its_own_prompts(puppet_stub, astronaut):
    wait_for_batches(puppet_stub, astronaut, "upper_half")
    names = ["disk", "broken", "upper_half", "short", "mortal", "doomed", "disk"]
    wanted = [prompt(name, box=(50, 60, 200, 210)) for name in names]
    for asked in wanted:
        asked.points.add(x=100, y=100, label=POSITIVE)
    response = puppet_stub.Segment(request(astronaut, *wanted, prompt("short", box=(50, 60, 200, 210))))
    failed = [None, "INTERNAL", None, "INTERNAL", "UNAVAILABLE", "UNAVAILABLE", None, "INTERNAL"]
    codes = [result.error.code if result.HasField("error") else None for result in response.results]
    assert codes == [code and grpc.StatusCode[code].value[0] for code in failed]
    assert "model 'short' answered LOGITS of 1 objects for 2" in response.results[3].error.message
    assert response.results[7].error.message == response.results[3].error.message


def test_a_model_that_hangs_holds_up_no_other_and_its_prompts_have_a_deadline(tmp_path, astronaut):
    repository = tmp_path / "models"
    add_interactor(repository, "disk", DISK)
    add_interactor(repository, "counter", COUNTER, inputs=STATE, outputs=STATE_OUT)
    options = ("--prompt-timeout-seconds=1", f"--model-repository={repository}")
    with running_service(tmp_path / "log", *options) as service, grpc.insecure_channel(service.target) as channel:
        service.wait_ready("disk", "counter")
        stub = AnnotationServiceStub(channel)
        with Gate(repository, "counter"):
            wanted = [prompt(name, CLICK) for name in ("counter", "disk", "counter", *["disk"] * 20)]
            response = stub.Segment(request(astronaut, *wanted))
        assert outcomes(response) == ["error", "segmentation", "error", *["segmentation"] * 20]
        assert {result.error.code for result in response.results if result.HasField("error")} == {
            grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        }
        assert "longer than 1 s" in response.results[0].error.message
        assert service.metric('polywand_prompts_total{model="disk",outcome="segmentation"}') == 21
        assert service.metric('polywand_prompts_total{model="counter",outcome="error"}') == 2


def test_a_client_that_goes_away_takes_all_its_prompts_with_it(puppets, puppet_stub, puppet_models, astronaut):
    for count in (1, 30):
        with Gate(puppet_models, "upper_half") as gate:
            wanted = [prompt("upper_half", box=box) for box in boxes(count)]
            call = puppet_stub.Segment.future(request(astronaut, *wanted))
            gate.wait_until_begun()
            call.cancel()
            gate.wait_until_cancelled()


def test_the_image_of_a_call_is_released_with_it_whether_or_not_it_failed(puppet_stub):
    """The service has room for a few of these images only."""
    pixels = np.zeros((1000, 1000, 3), np.uint8)
    for number in range(30):
        names = (("disk", "broken"), ("broken",), ("disk",), ("broken", "broken"))[number % 4]
        response = puppet_stub.Segment(request(pixels, *[prompt(name, CLICK) for name in names]))
        assert len(response.results) == len(names)


def test_many_prompts_give_way_to_clicks(puppet_stub, puppet_models, astronaut):
    """A click that comes while the first of many inferences runs is answered after at most one more of them."""
    with Gate(puppet_models, "upper_half") as gate, InteractStream(puppet_stub) as stream:
        stream.ask(raw_image(astronaut))
        wanted = [prompt("upper_half", box=box) for box in boxes(40)]
        many = puppet_stub.Segment.future(request(astronaut, *wanted))
        gate.wait_until_begun()
        sent = stream.send(prompt("upper_half", box=(10, 10, 100, 100)))
        stream.wait_until_read()
        gate.let_through(2)
        reply = stream.receive()
        assert reply.sequence == sent
        assert reply.segmentation.shape.polygons
        assert gate.begun <= 3
        assert not many.done()
        gate.let_through(100)
        response = many.result(60)
    assert outcomes(response) == ["segmentation"] * 40
    assert departure(reply.timing) < departure(response.timing)


def test_a_call_of_one_prompt_does_not_wait_behind_calls_of_many(puppets, puppet_stub, puppet_models, astronaut):
    with Gate(puppet_models, "upper_half") as gate:
        wanted = [prompt("upper_half", box=box) for box in boxes(40)]
        bulk = [puppet_stub.Segment.future(request(astronaut, *wanted)) for _ in range(8)]
        gate.wait_until_begun()
        with grpc.insecure_channel(puppets.target, options=[("grpc.use_local_subchannel_pool", 1)]) as own:
            click = AnnotationServiceStub(own).Segment(request(astronaut, prompt("disk", CLICK)), timeout=60)
        assert outcomes(click) == ["segmentation"]
        assert not any(call.done() for call in bulk)
    assert all(outcomes(call.result(60)) == ["segmentation"] * 40 for call in bulk)


def test_calls_of_many_prompts_share_their_turns_with_frames(puppet_stub, puppet_models, astronaut):
    with Gate(puppet_models, "upper_half") as gate:
        wanted = [prompt("upper_half", box=box) for box in boxes(100)]
        bulk = [puppet_stub.Segment.future(request(astronaut, *wanted)) for _ in range(2)]
        gate.wait_until_begun()
        frame = puppet_stub.Detect.future(pb.DetectRequest(model="finder", image=raw_image(astronaut)))
        while not frame.done():
            gate.let_through(1)
            wait_for(lambda: frame.done() or gate.begun > 0, 5)
        assert frame.result().detections
        assert not any(call.done() for call in bulk)
        gate.let_through(1000)
        for call in bulk:
            assert outcomes(call.result(60)) == ["segmentation"] * 100


def test_a_drain_waits_for_all_prompts_of_a_call(tmp_path, astronaut):
    repository = tmp_path / "models"
    add_upper_half(repository, "upper_half")
    with (
        running_service(tmp_path / "log", f"--model-repository={repository}") as service,
        grpc.insecure_channel(service.target) as channel,
        Gate(repository, "upper_half") as gate,
    ):
        service.wait_ready("upper_half")
        wanted = [prompt("upper_half", box=box) for box in boxes(30)]
        call = AnnotationServiceStub(channel).Segment.future(request(astronaut, *wanted))
        gate.wait_until_begun()
        service.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "draining" in service.log.read_text(), 30, service)
        gate.let_through(1000)
        assert outcomes(call.result(60)) == ["segmentation"] * 30
        assert service.process.wait(30) == 0


def test_without_triton_prompts_are_unavailable_and_with_the_next_one_they_are_answered(tmp_path, astronaut):
    repository = tmp_path / "models"
    add_interactor(repository, "disk", DISK)
    with (
        running_service(tmp_path / "log", f"--model-repository={repository}") as service,
        grpc.insecure_channel(service.target) as channel,
    ):
        service.wait_ready("disk")
        stub, call = AnnotationServiceStub(channel), request(astronaut, *[prompt("disk", CLICK)] * 3)
        with outage(service):
            response = stub.Segment(call)
            assert {result.error.code for result in response.results} == {grpc.StatusCode.UNAVAILABLE.value[0]}
            assert all(
                detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)
                for result in response.results
                for detail in result.error.details[:1]
            )
        wait_for(lambda: outcomes(stub.Segment(call)) == ["segmentation"] * 3, 60, service)


def test_prompts_are_counted_by_model_and_outcome_as_on_a_stream(puppets, puppet_stub, astronaut):
    def counted(model: str, outcome: str) -> float:
        return puppets.metric(f'polywand_prompts_total{{model="{model}",outcome="{outcome}"}}')

    cases = [("disk", "segmentation"), ("disk", "incomplete"), ("broken", "error"), ("unknown", "error")]
    before = [counted(*case) for case in cases]
    wanted = [prompt("disk", CLICK), prompt("disk"), prompt("broken", CLICK), prompt("no_such", CLICK)]
    puppet_stub.Segment(request(astronaut, *wanted, prompt("disk", (NAN, 1, POSITIVE))))
    assert [counted(*case) for case in cases] == [number + 1 for number in before]
    assert counted("disk", "error") >= 1
