"""Quotas: what a principal may have over all of its connections, what it is told beyond, and what others notice."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

import polywand
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1.annotation_pb2_grpc import AnnotationServiceStub
from polywand_server.admission import quotas
from polywand_server.admission.quotas import Account, Accounts
from polywand_server.caller import begin, identify
from polywand_server.images.picture import pyramid_bytes
from polywand_server.principal import Principal, Quotas, Role
from tests.interactors import Gate
from tests.principals import stub_of, token_of, write_principals
from tests.running import Service, running_service, wait_for
from tests.streams import POSITIVE, InteractStream, digest_of, prompt, raw_image

SIDE = 1000
ONE = pyramid_bytes(SIDE, SIDE)
TWO_FIT = 2 * ONE // 2**20 + 1
SELDOM = 0.02  # per second: the first, and then none while a test runs
REST = {"calls": 100, "streams": 100, "prompts_per_second": 1000, "frames_per_second": 1000, "image_mebibytes": 1000}
PRINCIPALS: dict[str, dict[str, float]] = {
    "narrow": REST | {"streams": 1, "calls": 2},
    "seldom": REST | {"prompts_per_second": SELDOM},
    "dragging": REST | {"prompts_per_second": 2},
    "asking": REST | {"prompts_per_second": SELDOM},
    "changing": REST | {"prompts_per_second": SELDOM},
    "filming": REST | {"frames_per_second": SELDOM},
    "hoarding": REST | {"image_mebibytes": TWO_FIT},
    "patient": REST | {"prompts_per_second": 1, "frames_per_second": 1},
    "free": {},
}
SMALL = raw_image(np.zeros((64, 64, 3), np.uint8))


@pytest.fixture(scope="module")
def principals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_principals(tmp_path_factory.mktemp("quotas") / "principals.toml", **PRINCIPALS)


@pytest.fixture(scope="module")
def service(puppets: Service, principals: Path) -> Iterator[Service]:
    """A service with these principals, on the puppets' Triton."""
    options = (f"--triton-url={puppets.triton}", f"--principals={principals}", "--metrics-port=0")
    with running_service(principals.parent / "log", *options) as service:
        service.wait_ready("disk", "finder")
        yield service


@pytest.fixture
def stub(service: Service, request: pytest.FixtureRequest) -> Iterator[AnnotationServiceStub]:
    """Calls as the principal that the test names."""
    with stub_of(service.target, request.param) as stub:
        yield stub


def calls_as(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("stub", [name], indirect=True)


def shade(value: int) -> pb.Image:
    return raw_image(np.full((SIDE, SIDE, 3), value, np.uint8))


def click(x: float, object_id: str = "") -> pb.Prompt:
    return prompt("disk", (x, 20, POSITIVE), object_id=object_id)


def details(status: status_pb2.Status) -> dict[str, Message]:
    found = {}
    for packed in status.details:
        detail = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])()
        packed.Unpack(detail)
        found[type(detail).__name__] = detail
    return found


def refusal(status: status_pb2.Status, principal: str, quota: str, number: str) -> float:
    """Check an error beyond a quota; return the seconds after which it says to come again."""
    said = details(status)
    assert status.code == code_pb2.RESOURCE_EXHAUSTED
    assert said["ErrorInfo"].reason == "QUOTA_EXCEEDED"
    assert dict(said["ErrorInfo"].metadata) == {"quota": quota}
    (violation,) = said["QuotaFailure"].violations
    assert violation.subject == f"principal:{principal} {quota}"
    assert principal in status.message
    assert number in status.message
    return said["RetryInfo"].retry_delay.ToMilliseconds() / 1000


def of_call(call: Callable[[], object]) -> status_pb2.Status:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return rpc_status.from_call(caught.value)


def refusals(service: Service, quota: str) -> float:
    return service.metric(f'polywand_quota_refusals_total{{quota="{quota}"}}')


def test_streams_at_once_are_counted_over_all_connections_and_of_one_principal_alone(service):
    before = refusals(service, "streams")
    with ExitStack() as stack:
        first, second, other = (
            stack.enter_context(stub_of(service.target, name)) for name in ("narrow", "narrow", "free")
        )
        with InteractStream(first) as stream:
            stream.ask(SMALL)
            status = of_call(lambda: list(second.DetectStream(iter(()))))
            assert refusal(status, "narrow", "streams", "1 streams") == 1
            assert refusals(service, "streams") == before + 1
            with InteractStream(other) as one, InteractStream(other) as another:
                assert one.ask(SMALL).image.width == another.ask(SMALL).image.width == 64
            assert stream.ask(click(10)).HasField("segmentation")
        wait_for(lambda: second.DetectStream(iter(())).code() is grpc.StatusCode.OK, 20, service)  # the first has ended


@calls_as("narrow")
def test_calls_at_once_include_streams(service, stub, puppet_models):
    with InteractStream(stub) as stream:
        stream.ask(SMALL)
        with Gate(puppet_models, "disk") as gate:
            held = stub.Segment.future(pb.SegmentRequest(image=SMALL, prompts=[click(11)]))
            gate.wait_until_begun()
            status = of_call(lambda: stub.ListModels(pb.ListModelsRequest()))
        assert refusal(status, "narrow", "calls", "2 calls") == 1
        assert held.result().results[0].HasField("segmentation")
        assert stub.ListModels(pb.ListModelsRequest()).models


@calls_as("seldom")
def test_a_prompt_beyond_the_quota_is_an_error_in_its_stream_which_goes_on(service, stub):
    before = refusals(service, "prompts_per_second")
    with InteractStream(stub) as stream:
        stream.ask(SMALL)
        assert stream.ask(click(10)).HasField("segmentation")
        seconds = refusal(stream.ask(click(11)).error, "seldom", "prompts_per_second", "0.02 prompts per second")
        assert 30 < seconds <= 50
        refusal(stream.ask(click(12, "another object")).error, "seldom", "prompts_per_second", "0.02")
        assert stream.ask(SMALL).image.width == 64
        # On another connection too, and in a call without a stream.
        with stub_of(service.target, "seldom") as second, InteractStream(second) as other:
            other.ask(SMALL)
            refusal(other.ask(click(13)).error, "seldom", "prompts_per_second", "0.02")
            (result,) = second.Segment(pb.SegmentRequest(image=SMALL, prompts=[click(14)])).results
            refusal(result.error, "seldom", "prompts_per_second", "0.02")
    assert refusals(service, "prompts_per_second") == before + 4


@calls_as("dragging")
def test_prompts_that_a_newer_one_replaces_cost_nothing(stub, puppet_models):
    """Thirty prompts of a drag, of which two are worked on: at two prompts per second none is refused."""
    with InteractStream(stub) as stream:
        stream.ask(SMALL)
        with Gate(puppet_models, "disk") as gate:
            stream.send(click(1))
            gate.wait_until_begun()
            for x in range(2, 30):
                stream.send(click(x))
            stream.send(click(30))
            # All are read when one behind them is answered.
            stream.send(pb.Forget(object_id="none"))
            assert stream.receive().HasField("forgotten")
        first, last = stream.receive(), stream.receive()
    assert first.HasField("segmentation")
    assert last.HasField("segmentation")
    assert (first.skipped, last.skipped) == (0, 28)


@calls_as("asking")
def test_each_prompt_of_a_call_counts(stub):
    prompts = [click(x, object_id=str(x)) for x in range(4)]
    prompts[0].points[0].ClearField("label")  # an invalid one costs nothing
    results = stub.Segment(pb.SegmentRequest(image=SMALL, prompts=[*prompts])).results
    assert [result.object_id for result in results] == ["0", "1", "2", "3"]
    answered = [result for result in results if result.HasField("segmentation")]
    refused = [result for result in results if result.error.code == code_pb2.RESOURCE_EXHAUSTED]
    assert (len(answered), len(refused)) == (1, 2)
    for result in refused:
        refusal(result.error, "asking", "prompts_per_second", "0.02 prompts per second")


@calls_as("filming")
def test_frames_beyond_the_quota_are_errors_in_their_stream_and_of_calls(stub):
    request = pb.DetectRequest(model="finder", image=SMALL)
    wrong = pb.DetectRequest(model="no such", image=SMALL)  # costs nothing
    frames = (
        pb.DetectStreamRequest(frame_id=number, request=one) for number, one in enumerate([wrong, request, request])
    )
    unknown, found, beyond = stub.DetectStream(frames)
    assert unknown.error.code == code_pb2.NOT_FOUND
    assert found.HasField("response")
    refusal(beyond.error, "filming", "frames_per_second", "0.02 frames per second")
    refusal(of_call(lambda: stub.Detect(request)), "filming", "frames_per_second", "0.02 frames per second")


def test_images_in_use_and_kept_count_and_the_principals_own_kept_ones_make_way(service):
    evictions = 'polywand_image_evictions_total{reason="quota"}'
    first, second, third, fourth, fifth = (shade(value) for value in range(5))
    before = service.metric(evictions)
    with stub_of(service.target, "free") as other, InteractStream(other) as others:
        others.ask(first)
        others.ask(second)  # the first one is kept for others: it does not make way
        with stub_of(service.target, "hoarding") as stub, InteractStream(stub) as one, InteractStream(stub) as two:
            for image in (first, second, third):
                assert one.ask(image).image.width == SIDE
            assert service.metric(evictions) == before + 1
            with InteractStream(stub) as three:
                assert three.ask(pb.Image(digest=digest_of(second))).image.width == SIDE  # was kept
                failure = two.ask(pb.Image(digest=digest_of(first))).error
                assert details(failure)["ErrorInfo"].reason == "IMAGE_NOT_HELD"
                refusal(two.ask(fourth).error, "hoarding", "image_mebibytes", f"{TWO_FIT} MiB")
                # Two streams may share an image, and each can go on to another one of the same size.
                assert two.ask(pb.Image(digest=digest_of(second))).image.width == SIDE
                assert one.ask(fourth).image.width == SIDE
            # When the third stream has ended, the second has its image alone.
            wait_for(lambda: two.ask(fifth).HasField("image"), 20, service)
            large = raw_image(np.zeros((2 * SIDE, 2 * SIDE, 3), np.uint8))
            failure = two.ask(large).error
            assert details(failure)["ErrorInfo"].reason == "QUOTA_EXCEEDED"
            assert details(failure)["BadRequest"].field_violations[0].field == "image.raw"
            assert "RetryInfo" not in details(failure)
            refusal(
                of_call(lambda: stub.Detect(pb.DetectRequest(model="finder", image=third))),
                *("hoarding", "image_mebibytes", f"{TWO_FIT} MiB"),
            )
            assert others.ask(pb.Image(digest=digest_of(first))).image.width == SIDE
        # What ended streams used is kept, and makes way.
        with stub_of(service.target, "hoarding") as stub:
            wait_for(
                lambda: (
                    stub.Segment(pb.SegmentRequest(image=third, prompts=[click(15)])).results[0].segmentation.version
                ),
                20,
                service,
            )


def test_new_numbers_of_the_file_hold_for_streams_that_run(service, principals):
    with stub_of(service.target, "changing") as stub, InteractStream(stub) as stream:
        stream.ask(SMALL)
        assert stream.ask(click(10)).HasField("segmentation")
        assert stream.ask(click(11)).HasField("error")
        write_principals(principals, **PRINCIPALS | {"changing": {"prompts_per_second": 500, "streams": 1}})
        xs = iter(range(12, 2000))
        wait_for(lambda: stream.ask(click(next(xs) / 50)).HasField("segmentation"), 20, service)
        with InteractStream(stub) as second:
            assert second.receive_end() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # One that has gone from the file keeps its quotas while its streams run, and makes no more calls.
        write_principals(principals, **{name: given for name, given in PRINCIPALS.items() if name != "changing"})
        wait_for(lambda: _is_unknown(stub), 20, service)
        assert stream.ask(click(50)).HasField("segmentation")
    write_principals(principals, **PRINCIPALS)


def _is_unknown(stub: AnnotationServiceStub) -> bool:
    try:
        stub.ListModels(pb.ListModelsRequest())
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.UNAUTHENTICATED
    return False


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "asyncio"])
def test_the_sdk_waits_as_long_as_it_is_told(service, is_async):
    """At one prompt and one frame per second, each is answered in its turn."""
    before = {quota: refusals(service, quota) for quota in ("prompts_per_second", "frames_per_second")}
    pixels = np.zeros((64, 64, 3), np.uint8)
    asyncio.run(_use_async(service, pixels)) if is_async else _use(service, pixels)
    assert all(refusals(service, quota) > count for quota, count in before.items())


def _use(service: Service, pixels: np.ndarray) -> None:
    with polywand.connect(service.target, token=token_of("patient"), timeout=30) as client:
        with client.open(pixels) as session:
            for x in (10, 20, 30):
                assert session.prompt("disk", positive=[(x, 20)]).polygons
        for _ in range(2):
            client.detect(pixels, model="finder")


async def _use_async(service: Service, pixels: np.ndarray) -> None:
    async with polywand.aio.connect(service.target, token=token_of("patient"), timeout=30) as client:
        async with client.open(pixels) as session:
            for x in (10, 20, 30):
                assert (await session.prompt("disk", positive=[(x, 20)])).polygons
        for _ in range(2):
            await client.detect(pixels, model="finder")


def test_the_sdk_has_a_typed_error_with_the_delay_when_time_is_over(service):
    with (
        polywand.connect(service.target, token=token_of("seldom"), timeout=2) as client,
        client.open(np.zeros((64, 64, 3), np.uint8)) as session,
        pytest.raises(polywand.QuotaExceeded) as refused,
    ):
        [session.prompt("disk", positive=[(x, 20)]) for x in (10, 20)]
    assert refused.value.reason == "QUOTA_EXCEEDED"
    assert refused.value.retry_after_s > 2
    assert refused.value.quotas[0].subject == "principal:seldom prompts_per_second"


async def call_of(accounts: Accounts, name: str) -> None:
    begin("a connection")
    identify(Principal(name, frozenset(Role), Quotas(prompts_per_second=1000)))
    with accounts.call(is_stream=True):
        accounts.prompt()


async def test_principals_that_have_gone_are_forgotten(monkeypatch):
    monkeypatch.setattr(quotas, "SWEEP_SECONDS", 0)
    accounts = Accounts(lambda principal: principal.quotas)
    for number in range(1000):
        await asyncio.create_task(call_of(accounts, str(number)))
        if number % 100 == 0:
            await asyncio.sleep(0.002)  # the bucket is full again
    known = [one for one in gc.get_objects() if isinstance(one, Account) and one.principal.name.isdecimal()]
    assert len(known) < 200


def test_a_bucket_gives_a_seconds_worth_at_once_and_then_its_rate(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(quotas.time, "monotonic", lambda: now[0])
    bucket = quotas.Bucket()
    assert [bucket.take(4) for _ in range(6)] == [0, 0, 0, 0, 0.25, 0.25]
    now[0] += 0.25
    assert [bucket.take(4) for _ in range(2)] == [0, 0.25]
    now[0] += 1000  # what was not used is not saved for longer than a second
    assert [bucket.take(4) for _ in range(5)] == [0, 0, 0, 0, 0.25]
    now[0] += 0.1
    assert bucket.take(0.5) == pytest.approx((1 - 0.05) / 0.5)  # new numbers apply at once
