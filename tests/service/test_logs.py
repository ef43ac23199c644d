"""The service's log as JSON, and the id with which a request is found in it."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

import polywand
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.faults.hostile import H2Connection, frame, headers, message
from tests.interactors import PREAMBLE, add_interactor
from tests.running import Service, running_service, wait_for
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

# It tells the request id that it got, with control characters, and fails with a text that only the log may have.
FAILING = (
    PREAMBLE
    + r"""
    def answer(self, request):
        print("\x1b[2J\"model\" got", request.request_id(), "\r\x07", flush=True)
        raise FileNotFoundError(f"/srv/models/{request.request_id()}/labels.txt\n\x1b[31mfalse line")
"""
)
CLICK = prompt("failing", (220, 130, POSITIVE))
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
GENERATED = re.compile(r"[0-9a-f]{16}")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that logs JSON."""
    folder = tmp_path_factory.mktemp("logs")
    add_interactor(folder / "models", "failing", FAILING)
    options = [f"--model-repository={folder / 'models'}", "--log-format=json", "--log-level=debug"]
    with running_service(folder / "log", *options) as running:
        running.wait_ready("failing")
        yield running


@pytest.fixture
def stub(service: Service) -> Iterator[annotation_pb2_grpc.AnnotationServiceStub]:
    with grpc.insecure_channel(service.target) as channel:
        yield annotation_pb2_grpc.AnnotationServiceStub(channel)


def records(log: Path) -> list[dict[str, Any]]:
    """Read a log of JSON lines; every line has to be one."""
    whole, _, rest = log.read_text(encoding="ascii").rpartition("\n")
    assert not rest or rest.startswith("{")  # a line that is being written
    found = [json.loads(line) for line in whole.split("\n")]
    for record in found:
        assert record.keys() >= {"timestamp", "level", "logger", "message"}, record
        assert all(isinstance(value, str) for value in record.values()), record
    return found


def request_id_of(status: status_pb2.Status) -> str:
    """Return the id in an error's details."""
    info = error_details_pb2.RequestInfo()
    assert any(detail.Unpack(info) for detail in status.details), status
    return info.request_id


def ask_with(stub: annotation_pb2_grpc.AnnotationServiceStub, image: pb.Image, request_id: str) -> status_pb2.Status:
    """Send an image and a prompt that fails; return its error."""
    with InteractStream(stub, (("x-request-id", request_id),)) as stream:
        stream.ask(image)
        return stream.ask(CLICK).error


def test_every_line_is_a_json_object_with_a_time_in_utc(service):
    first = records(service.log)[0]
    assert first["timestamp"].endswith("Z")
    assert abs(datetime.now(UTC) - datetime.fromisoformat(first["timestamp"])) < timedelta(hours=1)
    assert {"polywand_server.server", "polywand.triton"} <= {record["logger"] for record in records(service.log)}
    assert not any("request_id" in record for record in records(service.log) if "Triton answers" in record["message"])


def test_a_failing_prompt_is_found_by_the_id_that_its_client_sent(service, stub, astronaut):
    error = ask_with(stub, raw_image(astronaut), "order-66/a:b")
    assert error.code == grpc.StatusCode.INTERNAL.value[0]
    assert request_id_of(error) == "order-66/a:b"
    found = [record for record in records(service.log) if record.get("request_id") == "order-66/a:b"]
    (line,) = (record for record in found if record["level"] == "WARNING")
    assert "/srv/models/order-66/a:b/labels.txt" in line["message"]  # so Triton was told it
    assert line["client"].startswith("ipv4:127.0.0.1:")

    def is_told_by_the_model() -> bool:
        told = [record["message"] for record in records(service.log) if record["logger"] == "polywand.triton"]
        return any('"model" got order-66/a:b' in message for message in told)

    wait_for(is_told_by_the_model, 30, service)


def test_every_call_ends_with_its_id(service, stub):
    call = stub.ListModels.with_call(pb.ListModelsRequest(), metadata=[("x-request-id", "mine")])[1]
    assert dict(call.trailing_metadata())["x-request-id"] == "mine"
    other = stub.ListModels.with_call(pb.ListModelsRequest())[1]
    assert GENERATED.fullmatch(dict(other.trailing_metadata())["x-request-id"])
    with pytest.raises(grpc.RpcError) as caught:
        stub.Detect(pb.DetectRequest(model="failing"), metadata=[("x-request-id", "refused")])
    assert dict(caught.value.trailing_metadata())["x-request-id"] == "refused"
    end = "polywand.v1.AnnotationService/Detect: FAILED_PRECONDITION"

    def is_logged() -> bool:  # after the client has been told
        found = [record for record in records(service.log) if record.get("request_id") == "refused"]
        return [record["message"] for record in found] == [end]

    wait_for(is_logged, 30, service)


@pytest.mark.parametrize("hostile", ["", " ", "a b", "a" * 129, '"},{"level":"ERROR', "a]b", "%0a"])
def test_an_id_that_is_long_or_strange_is_replaced(stub, hostile):
    call = stub.ListModels.with_call(pb.ListModelsRequest(), metadata=[("x-request-id", hostile)])[1]
    assert GENERATED.fullmatch(dict(call.trailing_metadata())["x-request-id"])


def test_of_two_ids_none_is_taken(stub):
    metadata = [("x-request-id", "one"), ("x-request-id", "two")]
    call = stub.ListModels.with_call(pb.ListModelsRequest(), metadata=metadata)[1]
    assert GENERATED.fullmatch(dict(call.trailing_metadata())["x-request-id"])


@pytest.mark.parametrize("hostile", [b"a\nb", b"a\r\nb", b"a\tb", b"\0", b"\x1b[2J", "ä".encode(), b"\xff", b"a\n"])
def test_an_id_of_bytes_that_no_library_sends_is_replaced(service, hostile):
    """The end of the call is logged under another id, and so is everything about it."""

    def ends() -> list[dict[str, str]]:
        return [record for record in records(service.log) if record["message"].endswith("/ListModels: OK")]

    before = len(ends())
    host, _, port = service.target.rpartition(":")
    connection = H2Connection(host, int(port))
    method = "/polywand.v1.AnnotationService/ListModels"
    assert connection.send(headers(1, method, hostile), message(1, b""), frame(0, 1, 1))
    wait_for(lambda: len(ends()) > before, 10, service)
    connection.close()
    assert GENERATED.fullmatch(ends()[-1]["request_id"])


def test_the_sdk_tells_the_id_of_the_request(service, astronaut):
    with (
        polywand.connect(service.target) as client,
        client.open(astronaut) as session,
        pytest.raises(polywand.ServerError) as caught,
    ):
        session.prompt("failing", positive=[(220, 130)])
    assert GENERATED.fullmatch(caught.value.request_id)
    assert any(record.get("request_id") == caught.value.request_id for record in records(service.log))
    with pytest.raises(polywand.InvalidRequest) as unsent, polywand.connect("no port"):
        pass
    assert unsent.value.request_id == ""


def test_a_stop_and_a_start_that_fails_are_json_too(tmp_path):
    with running_service(tmp_path / "log", "--triton-url=127.0.0.1:9", "--log-format=json") as service:
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(30) == 0
    assert records(tmp_path / "log")[-1]["message"] == "stopped"
    with pytest.raises(AssertionError), running_service(tmp_path / "other", "--host=192.0.2.1", "--log-format=json"):
        pass
    assert "--host" in records(tmp_path / "other")[-1]["message"]


PRINTED = r"""
import ctypes, logging, sys, threading, warnings
from polywand_server.caller import begin
from polywand_server.ops import logs
from polywand_server.ops.native_output import NativeOutput

class Ended:
    def __del__(self):
        raise KeyError("in a destructor")

logs.configure("INFO", sys.argv[1])
begin("ipv4:127.0.0.1:1", "mine", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
log = logging.getLogger("own")
with NativeOutput():
    ctypes.CDLL(None).dprintf(2, b"from C \x1b[2J\n")
    warnings.warn("a warning\nof two lines")
    thread = threading.Thread(target=lambda: 1 / 0, name="broken")
    thread.start()
    thread.join()
    Ended()
    log.error("%d is no number", "text")
    log.error("a\x1b[2J\u2028\ud800\nfalse line", exc_info=ValueError("\x07 rang"))
raise OSError("the end")
"""


def printed(log_format: str) -> str:
    command = [sys.executable, "-c", PRINTED, log_format]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    return done.stderr


def test_whatever_python_or_a_library_prints_is_a_json_line(tmp_path):
    (tmp_path / "log").write_text(printed("json"))
    by_logger = {}
    for record in records(tmp_path / "log"):
        by_logger.setdefault(record["logger"], []).append(record)
    (native,) = by_logger["polywand.native"]
    assert native["message"] == r"from C \x1b[2J"
    assert "request_id" not in native
    (warning,) = by_logger["py.warnings"]
    assert "a warning\nof two lines" in warning["message"]
    odd, strange = by_logger["own"]
    assert odd["message"] == "%d is no number ('text',)"
    assert strange["message"] == "a\x1b[2J\u2028\ud800\nfalse line"
    assert strange["exception"].endswith("\x07 rang")
    assert strange["request_id"] == odd["request_id"] == "mine"
    assert strange["trace_id"] == odd["trace_id"] == TRACE
    thread, destructor, end = (record["exception"].split("\n")[-1] for record in by_logger["polywand_server.ops.logs"])
    assert (thread, destructor, end) == (
        "ZeroDivisionError: division by zero",
        "KeyError: 'in a destructor'",
        "OSError: the end",
    )


def test_in_text_a_message_cannot_pass_for_a_line_of_its_own():
    lines = printed("text").splitlines()
    starts = [line for line in lines if not line.startswith("  ")]
    assert len(starts) == 7
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ +[\w.]+: ", line) for line in starts)
    strange = [line for line in starts if "own:" in line][1]
    assert strange.endswith(rf"own: a\x1b[2J\u2028\ud800 [request_id=mine trace_id={TRACE}]")
    assert "  false line" in lines
    assert not [line for line in lines if not line.isprintable()]
