"""Arguments of the SDK: what is wrong is told by name before anything is sent."""

import asyncio
import copy
import inspect
import math
import os
import pickle
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

import polywand
from polywand import channel, errors, options
from polywand.errors import PolywandError
from polywand.prompts import Prompts
from polywand_common import proxies
from polywand_server import errors as server_errors
from polywand_server.triton.client import TritonClient
from tests.client.scripted import Script, outline, ready, scripted_server

HUGE = 10**30
WHOLE = [-1, HUGE, 2.5, math.nan, True, np.True_, "5", b"5", [5], 5.0]
REAL = [math.nan, math.inf, -math.inf, -0.5, HUGE, True, "0.5", [0.5], 1j, np.float32("nan"), Decimal("NaN")]
NAMES = [None, 5, b"m", "\udcff", "m" * 257]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_points", value) for value in [*WHOLE, 2, 100_001]),
        *(("version", value) for value in [*WHOLE, 2**32]),
        *(("threshold", value) for value in [*REAL, 0, 1]),
        *(("tolerance", value) for value in [*REAL, 1000.5]),
        *(("object_id", value) for value in [*NAMES, "o" * 129]),
        *(("model", value) for value in NAMES),
        *(
            ("box", value)
            for value in [5, "1,2,3,4", (1, 2, 3), (1, 2, 3, math.nan), (1, 2, 3, 1e39), np.zeros((2, 2))]
        ),
        *(("positive", value) for value in [5, "1,2", [5], [(1, 2, 3)], [(1, math.inf)], [("1", "2")], [(1, True)]]),
        *(("points", value) for value in [5, [(1, math.nan)], [(1, 2, "maybe")], [(1, 2, [])], [(1,)]]),
    ],
)
def test_a_prompt_names_the_argument_that_is_wrong(name: str, value: Any) -> None:
    with pytest.raises(polywand.InvalidRequest) as caught:
        Prompts().message(**{"model": "m"} | {name: value})
    assert [violation.field for violation in caught.value.violations] == [name]
    assert str(caught.value).startswith(f"{name}: ")
    str(caught.value).encode()  # so it can be printed anywhere


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_detections", value) for value in [*WHOLE, 0, 1001]),
        *(("threshold", value) for value in [*REAL, 1.5]),
        *(("interactor_threshold", value) for value in [*REAL, 0, 1]),
        *(("interactor_version", value) for value in WHOLE),
        *(("interactor", value) for value in NAMES),
        *((name, value) for name in ("polygons", "mask", "png") for value in ["wand_box", 1, None]),
        *(("roi", value) for value in [5, "1,2,3,4", (1, 2, 3), (1, 2, 3, math.nan)]),
        *(("max_points", value) for value in WHOLE),
        *(("model", value) for value in NAMES),
        *(("labels", value) for value in ["person", 5, [5], {"person": 5}, {5: "person"}, {"person": "\ud800"}]),
        *(("labels", [polywand.LabelMapping("person", threshold=value)]) for value in [*REAL, 1.5]),
    ],
)
def test_options_of_detect_name_the_argument_that_is_wrong(name: str, value: Any) -> None:
    with pytest.raises(polywand.InvalidRequest) as caught:
        options.detect_options(**{"model": "m", "interactor": "i", "polygons": True} | {name: value})
    assert [violation.field for violation in caught.value.violations] == [name]


def test_numbers_of_numpy_are_numbers() -> None:
    points = np.array([(1, 2)], np.int64)
    box = np.array([1, 2, 3, 4], np.float32)
    message = Prompts().message(
        "m", positive=points, box=box, version=np.int32(2), threshold=np.float32(0.5), max_points=np.uint8(9)
    )
    assert (message.version, message.output.threshold, message.output.max_points) == (2, 0.5, 9)
    assert (message.points[0].x, message.box.y1) == (1, 4)


def test_nothing_of_a_wrong_request_is_sent() -> None:
    pixels = np.zeros((3, 4, 3), np.uint8)
    with scripted_server(script := Script()) as target, polywand.connect(target, timeout=5) as client:
        with pytest.raises(polywand.InvalidRequest, match=r"max_detections: -1 is not a whole number from 1 to 1000"):
            client.detect(pixels, max_detections=-1)
        with pytest.raises(polywand.InvalidRequest, match="max_points"):
            client.detect_stream([pixels], polygons=True, max_points=-5)
        assert script.arrivals == []


def test_a_frame_that_is_no_image_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    pixels = np.zeros((3, 4, 3), np.uint8)
    frames: list[Any] = [pixels, None, 5, tmp_path, tmp_path / "empty.png", "a\0b", pixels]
    with scripted_server(Script()) as target, polywand.connect(target, timeout=5) as client:
        answers = [answer for _, answer in client.detect_stream(frames)]
    assert [isinstance(answer, polywand.Detections) for answer in answers] == [True, *[False] * 5, True]
    told = [str(answer) for answer in answers[1:-1]]
    for text, part in zip(told, ("NoneType", "int", "Is a directory", "empty.png is empty", "a\\x00b"), strict=True):
        assert part in text


def test_what_the_transport_refuses_is_the_frames_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polywand.streaming.LARGE_FRAME_BYTES", 100_000)
    small, large = np.zeros((3, 4, 3), np.uint8), np.zeros((1300, 1100, 3), np.uint8)  # gRPC takes 4 MiB
    with scripted_server(Script()) as target, polywand.connect(target, timeout=5) as client:
        first, second, third = (answer for _, answer in client.detect_stream([small, large, small]))
    assert isinstance(first, polywand.Detections)
    assert isinstance(second, polywand.InvalidRequest)
    assert "accepts at most 4,194,304 bytes" in str(second)
    assert isinstance(third, polywand.Detections)


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("", "empty"),
        ("localhost", "no port"),
        ("localhost:", "port ''"),
        ("localhost:x", "port 'x'"),
        ("localhost:0", "from 1 to 65535"),
        ("localhost:99999", "from 1 to 65535"),
        (":50051", "no host"),
        ("[::1]", "no port"),
        ("::1:50051", "brackets"),
        ("dns:///localhost", "no port"),
        ("http://localhost:50051", "URL"),
        ("grpc://localhost:50051", "URL"),
        ("localhost:50051/v1", "path"),
        ("local host:50051", "blanks"),
        ("localhost:50051\n", "blanks"),
        ("h\u00f6st:50051", "host names do not have"),
        ("\udcff:50051", "not UTF-8"),
        (50051, "not a text"),
    ],
)
def test_a_malformed_target_is_told_when_connecting(target: Any, complaint: str) -> None:
    for connect in (polywand.connect, polywand.aio.connect):
        with pytest.raises(polywand.InvalidRequest, match=complaint):
            connect(target)


@pytest.mark.parametrize("target", ["localhost:1", "[::1]:1", "dns:///h:1", "unix:/a b", "ipv4:1.2.3.4:5,1.2.3.5:5"])
def test_targets_of_grpc_are_targets(target: str) -> None:
    assert channel.resolve_target(target) == target


@pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf, 1e9, "5", True, None])
def test_a_timeout_is_a_positive_number(timeout: Any) -> None:
    for connect in (polywand.connect, polywand.aio.connect):
        with pytest.raises(polywand.InvalidRequest, match="timeout"):
            connect("localhost:1", timeout=timeout)


@pytest.mark.parametrize("images", ["photo.jpg", b"bytes", Path("photo.jpg"), 5, None])
def test_one_image_is_no_list_of_images(images: Any) -> None:
    with polywand.connect("localhost:1") as client, pytest.raises(polywand.InvalidRequest, match="list of images"):
        client.detect_stream(images)


def test_credentials_are_those_of_a_channel() -> None:
    for connect in (polywand.connect, polywand.aio.connect):
        with pytest.raises(polywand.InvalidRequest, match=r"credentials: grpc\.ChannelCredentials"):
            connect("localhost:1", credentials="token")  # type: ignore[arg-type]


# Proxies


@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_this_host_is_not_asked_for_through_a_proxy(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with scripted_server(Script()) as target:
        port = target.partition(":")[2]
        for host in ("localhost", "127.0.0.1", "dns:///localhost"):
            with polywand.connect(f"{host}:{port}", timeout=5) as client:
                assert client.models() == []


def test_a_triton_of_this_host_is_not_asked_for_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    class Live(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ServerLive(self, request: Any, context: Any) -> service_pb2.ServerLiveResponse:  # noqa: N802
            return service_pb2.ServerLiveResponse(live=True)

    async def is_live(url: str) -> bool:
        triton = TritonClient(url)
        try:
            return await triton.server_live(5)
        finally:
            await triton.close()

    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Live(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    assert asyncio.run(is_live(f"localhost:{port}"))
    server.stop(None).wait()


def test_an_error_names_the_proxy_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("grpc_proxy", "https_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    through = re.escape("through the proxy http://127.0.0.1:9, set by http_proxy")
    with polywand.connect("polywand.test:50051") as client, pytest.raises(polywand.Unavailable, match=through) as error:
        client.models()
    assert "no_proxy" in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("entry", ["polywand.test", ".test", "other, polywand.test", "*.test"])
def test_hosts_of_no_proxy_have_none(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", entry)
    assert proxies.proxy_of("polywand.test:50051") is None


def test_no_proxy_may_be_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "10.0.0.0/8")
    assert proxies.proxy_of("10.1.2.3:50051") is None
    assert proxies.proxy_of("11.1.2.3:50051") is not None


# Pickling


def _errors() -> list[PolywandError | server_errors.PolywandError]:
    code = grpc.StatusCode.INVALID_ARGUMENT
    return [
        PolywandError("p", code),
        polywand.InvalidRequest("i", code, [polywand.Violation("model", "is no name")]),
        polywand.NotFound("n", grpc.StatusCode.NOT_FOUND),
        errors.ImageNotHeld("h", grpc.StatusCode.NOT_FOUND),
        polywand.Unauthenticated("u", grpc.StatusCode.UNAUTHENTICATED),
        polywand.PermissionDenied("d", grpc.StatusCode.PERMISSION_DENIED),
        polywand.Unavailable("a", grpc.StatusCode.UNAVAILABLE, retry_after_s=2.5),
        polywand.QuotaExceeded("q", 1.5, [polywand.QuotaViolation("images", "16 at most")]),
        polywand.Draining("d", grpc.StatusCode.UNAVAILABLE),
        errors.ImageGivenUp("g", grpc.StatusCode.FAILED_PRECONDITION),
        polywand.ServerError("s", grpc.StatusCode.INTERNAL),
        polywand.IncompletePrompt("needs", 1, 2, 3, True),
        polywand.Superseded(),
        polywand.Closed(),
        server_errors.InvalidInputError("prompt.box", "is none"),
        server_errors.QuotaError("images", "full", 0.5),
        server_errors.UnavailableError("away", 0.5),
    ]


@pytest.mark.parametrize("error", _errors(), ids=lambda error: type(error).__name__)
def test_an_error_reaches_another_process_whole(error: Exception) -> None:
    copies = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    for same in (*copies, copy.copy(error), copy.deepcopy(error)):
        assert type(same) is type(error)
        assert (str(same), same.args, vars(same)) == (str(error), error.args, vars(error))


def test_every_error_of_the_sdk_is_pickled_here() -> None:
    def kinds(kind: type[PolywandError]) -> set[type[PolywandError]]:
        return {kind}.union(*(kinds(child) for child in kind.__subclasses__() if child.__module__ == kind.__module__))

    assert kinds(PolywandError) <= {type(error) for error in _errors()}


def test_answers_reach_another_process_whole() -> None:
    ring = np.float32([[0, 0], [4, 0], [4, 4]])
    timing = polywand.Timing(*range(8))
    outline = polywand.Segmentation(
        polygons=(polywand.Polygon(ring, (ring / 2,)),),
        box=polywand.Box(0, 0, 4, 4),
        area=8.0,
        mask=np.ones((4, 4), bool),
        width=4,
        height=4,
        model="m",
        version=1,
        threshold=0.5,
        tolerance=0.0,
        iou=1.0,
        timing=timing,
    )
    found = polywand.Detections(
        (polywand.Detection("a", "b", 0.5, polywand.Box(0, 0, 4, 4), outline),), 4, 4, "m", 1, timing
    )
    same = pickle.loads(pickle.dumps(found))
    assert (same.width, same.timing, same[0].box) == (4, timing, found[0].box)
    np.testing.assert_array_equal(same[0].polygons[0].holes[0], ring / 2)
    np.testing.assert_array_equal(same[0].outline.mask, outline.mask)


# Clients that are closed


def test_calls_of_a_closed_client_say_so() -> None:
    pixels = np.zeros((3, 4, 3), np.uint8)
    with scripted_server(Script()) as target:
        client = polywand.connect(target, timeout=5)
        client.close()
        calls = (client.models, lambda: client.open(pixels), lambda: client.detect(pixels))
        for call in (*calls, lambda: client.detect_stream([pixels])):
            with pytest.raises(polywand.Closed, match="This client is closed"):
                call()
        client.close()


def test_a_session_of_a_closed_client_says_so() -> None:
    script = Script(interact=lambda request: ready() if request.HasField("image") else outline())
    with scripted_server(script) as target:
        client = polywand.connect(target, timeout=5)
        with client.open(np.zeros((3, 4, 3), np.uint8)) as session:
            client.close()
            with pytest.raises(polywand.Closed):
                session.prompt("m", positive=[(1, 1)])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_client_is_not_used_on_both_sides_of_a_fork() -> None:
    client = polywand.connect("localhost:1", timeout=5)
    child = os.fork()
    if child == 0:
        try:
            client.models()
        except polywand.Closed:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


PAIRS = ((polywand.Client, polywand.AsyncClient), (polywand.Session, polywand.aio.Session))
CALLS = [
    (getattr(kind, name), getattr(other, name))
    for kind, other in PAIRS
    for name in vars(kind)
    if not name.startswith("_") and callable(getattr(kind, name))
]


@pytest.mark.parametrize(("method", "other"), CALLS, ids=lambda method: method.__qualname__)
def test_both_clients_have_the_same_calls_and_help_describes_every_argument(method: Any, other: Any) -> None:
    parameters = inspect.signature(method).parameters
    assert list(parameters) == list(inspect.signature(other).parameters)
    for documented in (method, other):
        text = inspect.getdoc(documented) or ""
        for argument, parameter in parameters.items():
            assert parameter.kind is not inspect.Parameter.VAR_KEYWORD
            assert argument == "self" or re.search(rf"\b{argument}\b[^.]*: ", text), argument


def test_help_of_connect_describes_every_argument() -> None:
    parameters = inspect.signature(polywand.connect).parameters
    assert list(parameters) == list(inspect.signature(polywand.aio.connect).parameters)
    for argument in parameters:
        assert re.search(rf"(\b{argument}: |`{argument}`)", inspect.getdoc(polywand.connect) or ""), argument


def test_a_session_is_not_used_on_both_sides_of_a_fork() -> None:
    script = Script(interact=lambda request: ready() if request.HasField("image") else outline())
    with (
        scripted_server(script) as target,
        polywand.connect(target, timeout=5) as client,
        client.open(np.zeros((3, 4, 3), np.uint8)) as session,
    ):
        child = os.fork()
        if child == 0:
            try:
                session.prompt("m", positive=[(1, 1)])
            except polywand.Closed:
                os._exit(7)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_an_asyncio_client_that_is_closed_says_so_at_once() -> None:
    pixels = np.zeros((3, 4, 3), np.uint8)
    answered = asyncio.Event()

    async def frames() -> AsyncIterator[NDArray[np.uint8]]:
        yield pixels
        await asyncio.Event().wait()

    async def consume(client: polywand.AsyncClient) -> None:
        async for _ in client.detect_stream(frames()):
            answered.set()

    async def use(target: str) -> None:
        client = polywand.aio.connect(target)
        stream = asyncio.create_task(consume(client))
        async with client.open(pixels) as session:
            await answered.wait()
            await client.close()
            for call in (
                *(stream, client.models(), client.detect(pixels), session.prompt("m", positive=[(1, 1)])),
                client.open(pixels).__aenter__(),
            ):
                with pytest.raises(polywand.Closed):
                    await asyncio.wait_for(call, 10)

    script = Script(interact=lambda request: ready() if request.HasField("image") else outline())
    with scripted_server(script) as target:
        asyncio.run(use(target))


def test_an_asyncio_client_belongs_to_one_loop() -> None:
    with scripted_server(Script()) as target:
        client = polywand.aio.connect(target)

        async def ask() -> int:
            return len(await client.models())

        assert asyncio.run(ask()) == 0
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(ask())


# What proxies answer


@pytest.mark.parametrize(
    ("code", "details", "kind", "complaint"),
    [
        (
            "RESOURCE_EXHAUSTED",
            "SERVER: Received message larger than max (9 vs. 5)",
            "InvalidRequest",
            "at most 5 bytes",
        ),
        ("RESOURCE_EXHAUSTED", "grpc: trying to send message larger than max (9 vs. 5)", "InvalidRequest", "9 bytes"),
        ("UNKNOWN", "Received http2 header with status: 413", "InvalidRequest", "too large for t:1 or a proxy"),
        ("RESOURCE_EXHAUSTED", "rate limit", "QuotaExceeded", "rate limit"),
        ("UNAVAILABLE", "failed to connect to all addresses; Tls handshake failed", "Unavailable", "TLS handshake"),
        ("UNAVAILABLE", "failed to connect; Failed parsing HTTP/2", "Unavailable", "is it the right port?"),
        ("UNAVAILABLE", "errors resolving t:1", "Unavailable", "No host of this name"),
        ("UNAVAILABLE", "failed to connect; Connection refused", "Unavailable", "Is it running?"),
        ("UNAUTHENTICATED", "expired", "Unauthenticated", "expired"),
        ("PERMISSION_DENIED", "no", "PermissionDenied", "no"),
        ("NOT_FOUND", "nanodet", "NotFound", "nanodet"),
    ],
)
def test_a_refusal_of_the_transport_is_a_sentence(code: str, details: str, kind: str, complaint: str) -> None:
    metadata = grpc.aio.Metadata()
    error = errors.from_rpc(grpc.aio.AioRpcError(grpc.StatusCode[code], metadata, metadata, details), "t:1")
    assert (type(error).__name__, complaint in str(error)) == (kind, True)
