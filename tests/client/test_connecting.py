"""How a client reaches its server: tokens, metadata, a channel of the caller's own; what it logs; its timeouts."""

import logging
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from google.rpc import error_details_pb2

import polywand
from polywand import Unavailable
from polywand_contract.v1 import annotation_pb2 as pb
from tests.client.scripted import Script, full_status, ready, scripted_server, status

PIXELS = np.zeros((3, 4, 3), np.uint8)
BOTH = [polywand.connect, polywand.aio.connect]


@pytest.fixture
def script() -> Script:
    return Script(interact=lambda _: ready())


@pytest.fixture
def target(script: Script) -> Iterator[str]:
    with scripted_server(script) as target:
        yield target


async def test_metadata_goes_with_every_call_and_the_user_agent_is_ours(script: Script, target: str) -> None:
    pairs = {"x-project": "cars", "trace-bin": b"\0\xff"}
    with polywand.connect(target, metadata=pairs) as client:
        client.models()
        assert pairs.items() <= script.metadata.items()
        assert str(script.metadata["user-agent"]).startswith(f"polywand-python/{polywand.__version__} ")
        script.metadata.clear()
        with client.open(PIXELS):
            assert pairs.items() <= script.metadata.items()
    script.metadata.clear()
    async with polywand.aio.connect(target, metadata=list(pairs.items())) as other:
        await other.detect(PIXELS)
        assert pairs.items() <= script.metadata.items()
        assert str(script.metadata["user-agent"]).startswith("polywand-python/")
        script.metadata.clear()
        async with other.open(PIXELS):
            assert pairs.items() <= script.metadata.items()


@pytest.mark.parametrize("connect", BOTH)
@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ({"X-Project": "cars"}, "'X-Project' is not a key"),
        ({"": "cars"}, "'' is not a key"),
        ({"grpc-timeout": "1S"}, "is not a key"),
        ({5: "cars"}, "5 is not a key"),
        ({"x-project": 5}, "printable ASCII"),
        ({"x-project": "c\n"}, "printable ASCII"),
        ({"x-project": b"cars"}, "printable ASCII"),
        ({"x-bin": "cars"}, "must be bytes"),
        ("x-project", "not str"),
        (5, "not int"),
        ([("x-project",)], "a pair of a key and a value"),
    ],
)
def test_wrong_metadata_is_told_when_connecting(connect: Any, metadata: Any, complaint: str) -> None:
    with pytest.raises(polywand.InvalidRequest, match=complaint) as caught:
        connect("localhost:1", metadata=metadata)
    assert caught.value.violations[0].field == "metadata"


# Tokens


async def test_a_token_goes_to_this_machine_without_tls(script: Script, target: str) -> None:
    with polywand.connect(target, token="secret") as client:
        client.models()
    assert script.metadata.pop("authorization") == "Bearer secret"
    async with polywand.aio.connect(target, token="secret") as other:
        await other.models()
    assert script.metadata["authorization"] == "Bearer secret"


async def test_a_token_goes_anywhere_with_tls(script: Script) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    server = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])
    trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    with scripted_server(script, server) as target:
        with polywand.connect(target, credentials=trusted, token="secret", metadata={"x-project": "cars"}) as client:
            client.models()
        assert script.metadata.pop("authorization") == "Bearer secret"
        assert script.metadata["x-project"] == "cars"
        async with polywand.aio.connect(target, credentials=trusted, token="secret") as other:
            await other.models()
        assert script.metadata["authorization"] == "Bearer secret"


@pytest.mark.parametrize("connect", BOTH)
def test_a_token_leaves_this_machine_only_over_tls_or_when_told_to(connect: Any) -> None:
    with pytest.raises(
        polywand.InvalidRequest, match=r"without TLS.*polywand\.test:50051.*insecure_token=True"
    ) as told:
        connect("polywand.test:50051", token="secret")
    assert told.value.violations[0].field == "token"
    assert "secret" not in str(told.value)
    connect("polywand.test:50051", token="secret", insecure_token=True)
    connect("polywand.test:50051", token="secret", credentials=grpc.ssl_channel_credentials())


@pytest.mark.parametrize("connect", BOTH)
@pytest.mark.parametrize("token", ["", "two words", "l\n", "gr\u00fcn", 5])
def test_what_is_no_token_is_told_without_being_shown(connect: Any, token: Any) -> None:
    with pytest.raises(polywand.InvalidRequest, match="token: a token is a text of printable ASCII without blanks"):
        connect("localhost:1", token=token)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, polywand.Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, polywand.PermissionDenied),
    ],
)
def test_a_refused_token_may_be_right_later_and_is_not_sent_again(
    code: grpc.StatusCode, kind: type[polywand.PolywandError]
) -> None:
    script = Script(detect=lambda _: status(code, "the token has expired"))
    with scripted_server(script) as target, polywand.connect(target) as client, pytest.raises(kind) as error:
        client.models()
    assert not isinstance(error.value, polywand.InvalidRequest | Unavailable)
    assert len(script.arrivals) == 1


# A channel of the caller's own


async def test_a_channel_of_ones_own_is_used_and_left_open(script: Script, target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        with polywand.connect(channel=channel, metadata={"x-project": "cars"}) as client:
            assert client.models() == []
        assert script.metadata["x-project"] == "cars"
        with pytest.raises(polywand.Closed):
            client.models()
        with polywand.connect(channel=channel) as client:
            assert client.models() == []
    async with grpc.aio.insecure_channel(target) as other:
        for _ in range(2):
            async with polywand.aio.connect(channel=other) as asyncio_client:
                assert await asyncio_client.models() == []


def test_a_channel_has_its_own_target_and_credentials() -> None:
    with grpc.insecure_channel("localhost:1") as channel:
        for more in ({"target": "localhost:1"}, {"token": "t"}, {"credentials": grpc.ssl_channel_credentials()}):
            with pytest.raises(polywand.InvalidRequest, match="channel: it has a target and credentials of its own"):
                polywand.connect(channel=channel, **more)  # type: ignore[arg-type]
        with pytest.raises(polywand.InvalidRequest, match=r"channel: a channel of grpc\.aio is needed"):
            polywand.aio.connect(channel=channel)  # type: ignore[arg-type]
        with pytest.raises(Unavailable, match="No Polywand server answers at the given channel"):
            polywand.connect(channel=channel).models()


# The log


async def test_calls_and_retries_are_logged(script: Script, target: str, caplog: pytest.LogCaptureFixture) -> None:
    script.detect = lambda count: full_status(0.01) if count % 2 == 0 else None
    caplog.set_level(logging.DEBUG, "polywand")
    with polywand.connect(target) as client:
        client.detect(PIXELS)
    async with polywand.aio.connect(target) as other:
        await other.detect(PIXELS)
    lines = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "polywand"]
    assert [level for level, _ in lines] == ["INFO", "DEBUG"] * 2
    assert all(text.startswith(f"Detect at {target}") for _, text in lines)
    assert "the server is full" in lines[0][1]
    assert logging.getLogger("polywand").handlers == []


# Timeouts


async def test_a_call_may_have_a_timeout_of_its_own(script: Script, target: str) -> None:
    def late(request: pb.SegmentRequest) -> list[pb.SegmentResult]:
        time.sleep(1.5)
        return []

    script.segment, script.detect = late, lambda _: full_status(5.0)
    with polywand.connect(target, timeout=60) as client:
        async with polywand.aio.connect(target, timeout=60) as other:
            started = time.monotonic()
            for call in (client.models, client.server_info, lambda **t: client.detect(PIXELS, **t)):
                with pytest.raises(polywand.QuotaExceeded):
                    call(timeout=0.3)
            for call in (other.models, other.server_info, lambda **t: other.detect(PIXELS, **t)):
                with pytest.raises(polywand.QuotaExceeded):
                    await call(timeout=0.3)
            script.detect = lambda _: None
            with pytest.raises(Unavailable, match="did not answer in time"):
                client.segment(PIXELS, [(0, 0, 1, 1)], timeout=0.3)
            with pytest.raises(Unavailable, match="did not answer in time"):
                await other.segment(PIXELS, [(0, 0, 1, 1)], timeout=0.3)
            assert time.monotonic() - started < 30


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "5", True])
def test_a_wrong_timeout_of_a_call_is_told(timeout: Any) -> None:
    with polywand.connect("localhost:1") as client:
        for call in (
            lambda: client.models(timeout=timeout),
            lambda: client.detect(PIXELS, timeout=timeout),
            lambda: client.segment(PIXELS, [(0, 0, 1, 1)], timeout=timeout),
            lambda: client.detect_stream([PIXELS], timeout=timeout),
            lambda: client.open(PIXELS, timeout=timeout),
        ):
            with pytest.raises(polywand.InvalidRequest, match="timeout: "):
                call()


# What a server is


async def test_all_pages_of_models_are_read(script: Script, target: str) -> None:
    script.pages = [["a", "b"], ["c"], [], ["d"]]
    with polywand.connect(target) as client:
        assert [model.name for model in client.models()] == ["a", "b", "c", "d"]
    async with polywand.aio.connect(target) as other:
        assert [model.name for model in await other.models()] == ["a", "b", "c", "d"]


async def test_a_server_says_what_it_is(script: Script, target: str) -> None:
    script.info = pb.GetServerInfoResponse(
        version="1.2.3",
        state=pb.SERVER_STATE_DRAINING,
        state_message="it stops",
        limits=pb.ServerLimits(segment_prompts=256, prompt_ms=30_000),
        capabilities=pb.Capabilities(
            image_types=["image/jpeg"],
            pixel_formats=[pb.PIXEL_FORMAT_RGB8, 99],  # type: ignore[list-item]  # of a newer server
            output_forms=[pb.OUTPUT_FORM_POLYGONS, pb.OUTPUT_FORM_RLE],
            default_detector="nanodet",
        ),
    )
    with polywand.connect(target) as client:
        info = client.server_info()
    async with polywand.aio.connect(target) as other:
        assert await other.server_info() == info
    assert (info.version, info.state, info.state_message, info.ready) == ("1.2.3", "draining", "it stops", False)
    assert (info.limits.segment_prompts, info.limits.prompt_ms, info.limits.labels) == (256, 30_000, 0)
    assert (info.image_types, info.pixel_formats) == (("image/jpeg",), ("RGB8",))
    assert (info.output_forms, info.default_detector) == (("polygons", "rle"), "nanodet")


def test_an_error_has_the_servers_reason() -> None:
    error = status(grpc.StatusCode.NOT_FOUND, "no such model")
    error.details.add().Pack(error_details_pb2.ErrorInfo(reason="MODEL_NOT_FOUND", domain="polywand"))
    with scripted_server(Script(detect=lambda _: error)) as target, polywand.connect(target) as client:
        with pytest.raises(polywand.NotFound) as caught:
            client.detect(PIXELS)
        assert caught.value.reason == "MODEL_NOT_FOUND"
        assert polywand.Closed().reason == ""
