"""The audit log: a line for every call, and no call that waits for it or fails because of it."""

import fcntl
import json
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1.annotation_pb2_grpc import AnnotationServiceStub
from tests.principals import stub_of, token_of, write_principals
from tests.running import Service, running_service, wait_for
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

SERVICE = "polywand.v1.AnnotationService"
DROPPED = "polywand_audit_dropped_total"
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
SMALL = raw_image(np.zeros((50, 64, 3), np.uint8))
CLICK = prompt("disk", (20, 20, POSITIVE))
CALLS = 100
# More than a pipe takes.
MANY_CALLS = 1000


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit") / "audit.jsonl"


@pytest.fixture(scope="module")
def service(puppets: Service, audit: Path) -> Iterator[Service]:
    """A service with an audit log and the principal "cvat", on the puppets' Triton."""
    principals = write_principals(audit.parent / "principals.toml", cvat={}, narrow={"calls": 1}, metrics={})
    principals.write_text(principals.read_text().replace('name = "metrics"', 'name = "metrics"\nroles = ["metrics"]'))
    options = (
        f"--triton-url={puppets.triton}",
        f"--principals={principals}",
        f"--audit-log={audit}",
        "--metrics-port=0",
    )
    with running_service(audit.parent / "log", *options) as service:
        service.wait_ready("disk", "finder")
        yield service


@pytest.fixture
def stub(service: Service) -> Iterator[AnnotationServiceStub]:
    with stub_of(service.target, "cvat") as stub:
        yield stub


def lines_of(path: Path) -> list[dict]:
    """All lines; each is whole."""
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def line_of(path: Path, request_id: str) -> dict:
    """The line of a call, when it is there; there is one."""
    wait_for(lambda: f'"request_id": "{request_id}"' in path.read_text(), 20)
    (line,) = (line for line in lines_of(path) if line["request_id"] == request_id)
    return line


def named(request_id: str) -> tuple[tuple[str, str], ...]:
    return (("x-request-id", request_id),)


def test_a_unary_call_has_a_line_with_all_that_it_took(stub, audit):
    request = pb.SegmentRequest(image=SMALL, prompts=[CLICK, CLICK, prompt("no such tool")])
    began = datetime.now(UTC)
    stub.Segment(request, metadata=(*named("segment"), ("traceparent", TRACEPARENT)))
    line = line_of(audit, "segment")
    ended = datetime.fromisoformat(line.pop("timestamp"))
    assert (began - ended).total_seconds() < 1
    assert ended <= datetime.now(UTC)
    assert 0 < line.pop("milliseconds") < 60_000
    assert line.pop("call").isdecimal()
    assert re.fullmatch(r"ipv4:127\.0\.0\.1:\d+", line.pop("client"))
    assert line == {
        "logger": "audit",
        "principal": "cvat",
        "method": f"{SERVICE}/Segment",
        "models": ["disk"],
        "received_bytes": request.ByteSize(),
        "pixels": 50 * 64,
        "prompts": 3,
        "frames": 0,
        "errors": 1,
        "code": "OK",
        "reason": "",
        "request_id": "segment",
        "trace_id": TRACE,
    }


def test_a_stream_has_one_line_when_it_has_ended(stub, audit):
    with InteractStream(stub, named("interact")) as stream:
        stream.ask(SMALL)
        digest = stream.ask(SMALL).image.digest
        assert stream.ask(CLICK).HasField("segmentation")
        assert stream.ask(pb.Image(digest=digest)).image.width == 64
        assert stream.ask(prompt("counter", (2, 2, POSITIVE))).HasField("segmentation")
        assert stream.ask(prompt("no such tool")).HasField("error")
        assert stream.ask(pb.Image()).HasField("error")
        assert "interact" not in [line["request_id"] for line in lines_of(audit)]
        stream.finish()
        assert stream.receive_end() is grpc.StatusCode.OK
    line = line_of(audit, "interact")
    assert (line["prompts"], line["pixels"], line["models"]) == (3, 3 * 50 * 64, ["counter", "disk"])
    assert line["errors"] == 2
    assert line["received_bytes"] > 2 * 50 * 64 * 3
    assert line["code"] == "OK"


def test_frames_are_counted_and_a_stream_that_its_client_leaves_has_a_line(stub, audit):
    request = pb.DetectRequest(model="finder", image=SMALL)
    wrong = pb.DetectRequest(model="no such tool", image=SMALL)
    frames = (pb.DetectStreamRequest(request=one) for one in (request, wrong, request, request))
    assert len(list(stub.DetectStream(frames, metadata=named("frames")))) == 4
    line = line_of(audit, "frames")
    assert (line["frames"], line["errors"], line["pixels"]) == (4, 1, 3 * 50 * 64)
    assert line["models"] == ["finder"]
    with InteractStream(stub, named("left")) as stream:
        stream.ask(SMALL)
        stream.call.cancel()  # without an end of its requests before
        # gRPC tells the end of a cancelled stream's requests, or its cancellation, whichever comes first.
        assert line_of(audit, "left")["code"] in ("CANCELLED", "OK")


def test_calls_that_are_refused_have_lines_too(service, stub, audit):
    def status_of(call) -> str:
        with pytest.raises(grpc.RpcError) as refused:
            call()
        return refused.value.code().name

    with grpc.insecure_channel(service.target) as channel, stub_of(service.target, "metrics") as other:
        anonymous, ask = AnnotationServiceStub(channel), pb.ListModelsRequest()
        wrong = (("authorization", "Bearer not-to-be-told"),)
        assert status_of(lambda: anonymous.ListModels(ask, metadata=(*named("wrong"), *wrong))) == "UNAUTHENTICATED"
        assert status_of(lambda: other.ListModels(ask, metadata=named("role"))) == "PERMISSION_DENIED"
        with stub_of(service.target, "narrow") as narrow, InteractStream(narrow) as stream:
            stream.ask(SMALL)
            assert status_of(lambda: narrow.ListModels(ask, metadata=named("quota"))) == "RESOURCE_EXHAUSTED"
        unreadable = pb.DetectRequest(model="finder", image=pb.Image(encoded=b"no image"))
        assert status_of(lambda: stub.Detect(unreadable, metadata=named("image"))) == "INVALID_ARGUMENT"
        health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=SERVICE), metadata=named("health")
        )
    found = {
        name: (line["principal"], line["method"].rpartition("/")[2], line["code"], line["reason"])
        for name in ("wrong", "role", "quota", "image", "health")
        for line in [line_of(audit, name)]
    }
    assert found == {
        "wrong": ("", "ListModels", "UNAUTHENTICATED", "NOT_AUTHENTICATED"),
        "role": ("metrics", "ListModels", "PERMISSION_DENIED", "NOT_PERMITTED"),
        "quota": ("narrow", "ListModels", "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"),
        "image": ("cvat", "Detect", "INVALID_ARGUMENT", "IMAGE_UNREADABLE"),
        "health": ("", "Check", "OK", ""),
    }
    text = audit.read_text()
    assert "not-to-be-told" not in text
    assert not any(token_of(name) in text for name in ("cvat", "narrow", "metrics"))


def test_what_a_client_writes_cannot_pass_for_a_line_of_its_own(service, audit):
    method = '/x/"}\t{"principal": "root"} \N{SNOWMAN}' + "y" * 1000
    with grpc.insecure_channel(service.target) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary(method)(b"", metadata=named("method"))
    line = line_of(audit, "method")
    assert method.startswith("/" + line["method"])
    assert len(line["method"]) == 256
    assert (line["principal"], line["code"], line["reason"]) == ("", "UNIMPLEMENTED", "METHOD_NOT_FOUND")


def test_a_file_that_was_moved_is_made_again_and_no_line_is_lost(service, stub, audit):
    stub.ListModels(pb.ListModelsRequest(), metadata=named("before"))
    line_of(audit, "before")
    moved = audit.with_suffix(".1")
    audit.rename(moved)
    stub.ListModels(pb.ListModelsRequest(), metadata=named("after"))
    wait_for(audit.exists, 20, service)
    assert line_of(audit, "after")["code"] == "OK"
    assert "after" not in [line["request_id"] for line in lines_of(moved)]
    assert audit.stat().st_mode & 0o777 == 0o640 & ~_umask()
    assert service.metric(DROPPED) == 0


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def audited(puppets: Service, folder: Path, path: Path | str):
    return running_service(folder / "log", f"--triton-url={puppets.triton}", f"--audit-log={path}")


def list_models(service: Service, calls: int) -> None:
    with grpc.insecure_channel(service.target) as channel:
        stub = AnnotationServiceStub(channel)
        for number in range(calls):
            stub.ListModels(pb.ListModelsRequest(page_size=1), metadata=named(f"call-{number}"), timeout=20)


def test_on_a_full_disk_calls_go_on_and_lines_are_counted_and_come_again_whole(puppets, tmp_path):
    """The disk takes half a line more, and later all."""
    audit = tmp_path / "audit.jsonl"
    filling = json.dumps({"request_id": "filling", "x": "x" * 1_000_000}) + "\n"  # more than the service's own log
    audit.write_text(filling)
    with audited(puppets, tmp_path, audit) as service:
        process = psutil.Process(service.process.pid)
        _, hard = process.rlimit(resource.RLIMIT_FSIZE)
        process.rlimit(resource.RLIMIT_FSIZE, (len(filling) + 100, hard))
        list_models(service, CALLS)
        wait_for(lambda: service.metric(DROPPED) == CALLS, 20, service)
        assert audit.stat().st_size == len(filling) + 100
        process.rlimit(resource.RLIMIT_FSIZE, (hard, hard))
        list_models(service, 1)
        wait_for(lambda: audit.read_bytes().endswith(b"}\n"), 20, service)
        list_models(service, CALLS - 1)
        wait_for(lambda: f"call-{CALLS - 2}" in audit.read_text(), 20, service)
        log = service.log.read_text()
        assert service.metric(DROPPED) == CALLS
    _, torn, *whole = audit.read_text().splitlines()
    assert torn.startswith('{"timestamp": ')
    assert [json.loads(line)["request_id"] for line in whole] == ["call-0", *(f"call-{n}" for n in range(CALLS - 1))]
    assert log.count("the audit log") == 1
    assert re.search(rf"WARNING .*: the audit log {audit} could not be written, \d+ lines are dropped: File too", log)


def test_a_pipe_that_is_not_read_holds_no_call_up(puppets, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    with audited(puppets, tmp_path, pipe) as service:
        list_models(service, MANY_CALLS)
        wait_for(lambda: service.metric(DROPPED) > 0, 20, service)
        assert service.log.read_text().count("nothing was read from it for 1 s") == 1
        read = bytearray()
        stopped = threading.Event()

        def keep_reading() -> None:
            while not stopped.is_set():
                try:
                    read.extend(os.read(reader, 65_536))
                except BlockingIOError:
                    time.sleep(0.01)

        thread = threading.Thread(target=keep_reading)
        thread.start()
        try:
            with grpc.insecure_channel(service.target) as channel:
                stub = AnnotationServiceStub(channel)
                stub.ListModels(pb.ListModelsRequest(), metadata=named("last"))
            wait_for(lambda: b'"last"' in read, 20, service)
        finally:
            stopped.set()
            thread.join()
            os.close(reader)
        dropped = service.metric(DROPPED)
    lines = [json.loads(line) for line in read.decode("ascii").splitlines()]
    assert len(lines) + dropped == MANY_CALLS + 1


def test_stderr_gets_the_lines_between_those_of_the_log_up_to_the_last(puppets, tmp_path):
    with audited(puppets, tmp_path, "-") as service, grpc.insecure_channel(service.target) as channel:
        list_models(service, 2)
        with InteractStream(AnnotationServiceStub(channel), named("open")) as stream:
            stream.ask(SMALL)
            service.process.terminate()
            assert service.process.wait(40) == 0
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    found = [line["request_id"] for line in lines if line["method"].startswith(SERVICE)]
    assert found == ["call-0", "call-1", "open"]


@pytest.mark.parametrize(
    ("path", "why"),
    [("nowhere/audit.jsonl", "No such file or directory"), ("pipe", "No such device or address")],
)
def test_a_path_that_cannot_be_written_is_told_at_start(tmp_path, path, why):
    os.mkfifo(tmp_path / "pipe")  # without a reader
    command = [str(Path(sys.executable).parent / "polywand-server"), "--grpc-port=0", "--http-port=0"]
    started = subprocess.run(
        [*command, "--triton-url=127.0.0.1:9", f"--audit-log={tmp_path / path}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert started.returncode == 1
    (line,) = (line for line in started.stderr.splitlines() if " INFO " not in line)
    assert line.endswith(f"cannot start: --audit-log: {tmp_path / path} cannot be written: {why}")
