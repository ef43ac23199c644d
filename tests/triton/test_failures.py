"""What a client reads of a failure of Triton's, and what the log alone has."""

import logging
import re

import grpc
import grpc.aio
import pytest

from polywand_server.errors import DeadlineError, ModelFailedError, PolywandError, UnavailableError
from polywand_server.triton.failures import MAX_PUBLIC_CHARACTERS, MAX_TEXTS, Failures, ModelDiedError, RegionError

URL = "unix:/tmp/polywand-0123abcd/grpc:0"
POOL = "polywand-0123abcd-8f14e45f-ceea-467f-a0e6-f3a3f0c5a1b2"
# What must not reach a client.
INTERNAL = re.compile(r"/|\\|unix:|polywand-|\.cc|0x|ipv4|docker")
NUMBER = re.compile(r"the service's log says more: ([0-9a-f]{8})")


def failure(status: grpc.StatusCode, details: str) -> PolywandError:
    return Failures(URL).error(rpc_error(status, details), "model 'm' version 3")


def rpc_error(status: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(status, nothing, nothing, details)


NO_ROOM = (
    f"Failed to increase the shared memory pool size for key '{POOL}' to 134217728 bytes. If you are running Triton "
    "inside docker, use '--shm-size' flag to control the shared memory region size. Error: No space left on device"
)
NO_FILE = "FileNotFoundError: [Errno 2] No such file or directory: '/srv/models/m/3/labels.txt'"
NO_SOCKET = f"failed to connect to all addresses; last error: UNKNOWN: {URL}: No such file or directory"
REFUSED = "ipv4:10.0.0.7:8001: Failed to connect to remote host: Connection refused"


@pytest.mark.parametrize(
    ("status", "details", "kind"),
    [
        ("UNAVAILABLE", NO_SOCKET, UnavailableError),
        ("UNAVAILABLE", REFUSED, UnavailableError),
        ("NOT_FOUND", "Request for unknown model: 'm' is not found", UnavailableError),
        ("DEADLINE_EXCEEDED", f"Deadline Exceeded {URL}", DeadlineError),
        ("INTERNAL", "Stub process 'm_0_0' is not healthy.", ModelDiedError),
        ("INTERNAL", f"Unable to open shared memory region: '/{POOL}'", RegionError),
        ("NOT_FOUND", f"Unable to find shared memory region: '{POOL}'", RegionError),
        ("INTERNAL", NO_ROOM, UnavailableError),
        ("INTERNAL", NO_FILE, ModelFailedError),
        ("INTERNAL", "/tmp/tritonbuild/python/src/pb_stub.cc:431 failed", ModelFailedError),
        ("INTERNAL", "onnx runtime error 6: at 0x7f3a12345678", ModelFailedError),
        ("INTERNAL", r"cannot read C:\models\m", ModelFailedError),
        ("INTERNAL", "cannot open /home/ann otate/models/m/1/model.onnx", ModelFailedError),
    ],
)
def test_a_client_reads_nothing_of_files_addresses_and_memory(status, details, kind):
    error = failure(grpc.StatusCode[status], details)
    assert type(error) is kind
    assert not INTERNAL.search(str(error)), error
    assert str(error).startswith("model 'm' version 3")


@pytest.mark.parametrize(
    "details",
    [
        "inference input 'X' data-type is 'FP64', model expects 'FP32'",
        "unexpected shape for input 'X' for model 'm'. Expected [-1,-1,3], got [1,2,4]. ",
        "Failed to process the request(s) for model instance 'm_0_0', message: ValueError: strings cut",
    ],
)
def test_what_tells_of_the_model_alone_is_told_in_tritons_words(details, caplog):
    said = f"model 'm' version 3: {details.strip()}"
    assert str(failure(grpc.StatusCode.INVALID_ARGUMENT, details)) == said
    assert str(failure(grpc.StatusCode.INVALID_ARGUMENT, f"[request id: 7] {details}")) == said
    assert not caplog.records


def test_a_path_is_shortened_to_its_file_and_the_log_has_all_under_the_same_number(caplog):
    details = (
        "load failed: /srv/models/m/3/model.onnx: no such file\n\nAt:\n  /srv/models/m/3/model.py(7): initialize\n"
    )
    failures = Failures(URL)
    with caplog.at_level(logging.WARNING):
        said = [failures.public_text(details) for _ in range(3)]
    number = NUMBER.search(said[0])[1]
    assert said == [f"load failed: model.onnx: no such file (the service's log says more: {number})"] * 3
    (record,) = caplog.records
    assert record.getMessage() == f"Triton at {URL}, {number}: {details}"
    assert NUMBER.search(Failures(URL).public_text(details))[1] != number  # it cannot be computed


def test_the_log_is_not_filled_by_an_outage_nor_memory_by_many_texts(caplog):
    failures = Failures(URL)
    for port in range(1000):
        failures.error(rpc_error(grpc.StatusCode.UNAVAILABLE, f"ipv4:10.0.0.7:{port}: refused"), "model 'm'")
    assert len(caplog.records) == 1
    for number in range(2 * MAX_TEXTS):
        failures.public_text(f"/a/{number}/b")
    assert len(failures._logged_at) <= MAX_TEXTS


def test_a_long_text_is_cut():
    said = Failures(URL).public_text("x" * 10_000)
    assert len(said) < MAX_PUBLIC_CHARACTERS + 60
    assert NUMBER.search(said)
