"""Two replicas behind Envoy and behind nginx, with the files that users get: what a client notices when replicas come,
go and die, and when nothing happens for a long time.
"""

import logging
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import trustme

import polywand
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.proxies.running import Envoy, Nginx, Proxy, Replicas
from tests.running import Service, wait_for
from tests.streams import POSITIVE, InteractStream, prompt, raw_image
from tests.workloads import IMAGE, MORE, TIMEOUT_S, Drag, Frames, streams

CALLS_PER_SECOND, CALLERS = 50, 10
CLICK = prompt("disk", (20, 20, POSITIVE))
HEARTBEATS = "--heartbeat-seconds=0.5"
# Where the files say 60 s: after so long without a message, the proxy ends a stream.
IDLE_SECONDS = 2
IDLE = {
    Envoy: {"stream_idle_timeout: 60s": f"stream_idle_timeout: {IDLE_SECONDS}s"},
    Nginx: {"grpc_read_timeout 60s": f"grpc_read_timeout {IDLE_SECONDS}s"},
}


@pytest.fixture(params=[Envoy, Nginx])
def proxy(request: pytest.FixtureRequest) -> Proxy:
    """A proxy that does not run yet."""
    made: Proxy = request.param()
    return made


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Ends what a test starts."""
    with ExitStack() as opened:
        yield opened


class Calls:
    """Unary calls at a fixed rate, without a retry of the client's own, until stopped."""

    def __init__(self, target: str) -> None:
        self.codes: Counter[grpc.StatusCode] = Counter()
        self._over = threading.Event()
        self._request = pb.SegmentRequest(image=raw_image(IMAGE), prompts=[CLICK])
        self._channel = grpc.insecure_channel(target)
        self._stub = annotation_pb2_grpc.AnnotationServiceStub(self._channel)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def go_on(self, service: Service) -> None:
        """Wait until as many calls have ended as are made in half a second."""
        before = self.codes.total()
        wait_for(lambda: self.codes.total() >= before + CALLS_PER_SECOND / 2, TIMEOUT_S, service)

    def stop(self) -> None:
        """Make no more calls, and wait for those that run."""
        self._over.set()
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        self._channel.close()

    def _run(self) -> None:
        with ThreadPoolExecutor(CALLERS) as callers:
            while not self._over.wait(1 / CALLS_PER_SECOND):
                callers.submit(self._call)

    def _call(self) -> None:
        try:
            self._stub.Segment(self._request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            self.codes[error.code()] += 1
        else:
            self.codes[grpc.StatusCode.OK] += 1


def answer(stream: InteractStream, message: pb.Image | pb.Prompt) -> pb.InteractResponse:
    """Send a message and return the reply to it, which heartbeats may precede."""
    stream.send(message)
    while (reply := stream.receive()).WhichOneof("result") == "heartbeat":
        pass
    return reply


def moves(caplog: pytest.LogCaptureFixture) -> int:
    """How often the SDK went on with a new stream."""
    return sum("goes on with a new stream" in message for message in caplog.messages)


def all_go_on(service: Service, *workloads: Drag | Frames) -> None:
    """Wait until each of them has had some more answers."""
    before = [workload.answers for workload in workloads]
    wait_for(
        lambda: all(w.answers >= so_far + MORE for w, so_far in zip(workloads, before, strict=True)), TIMEOUT_S, service
    )


def test_streams_are_spread_and_a_kill_moves_those_of_the_killed_replica_alone(
    proxy: Proxy, stack: ExitStack, puppets: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replicas = Replicas(stack, proxy, tmp_path, f"--triton-url={puppets.triton}")
    first, second = replicas.start(0), replicas.start(1)
    client = stack.enter_context(polywand.connect(replicas.target, timeout=TIMEOUT_S))
    drags = []
    for _ in range(4):
        drags.append(Drag(client))
        all_go_on(first, drags[-1])
    assert [streams(first), streams(second)] == [2, 2]
    with caplog.at_level(logging.INFO, "polywand"):
        first.process.kill()
        first.process.wait()
        wait_for(lambda: streams(second) == 4, TIMEOUT_S, second)
        all_go_on(second, *drags)
        for drag in drags:
            drag.stop()
    assert moves(caplog) == 2


def test_no_unary_call_fails_when_a_replica_drains_under_fifty_of_them_a_second(
    proxy: Proxy, stack: ExitStack, puppets: Service, tmp_path: Path
) -> None:
    replicas = Replicas(stack, proxy, tmp_path, f"--triton-url={puppets.triton}", "--drain-delay-seconds=2")
    first, second = replicas.start(0), replicas.start(1)
    calls = Calls(replicas.target)
    stack.callback(calls.stop)
    calls.go_on(first)
    for service in (first, second):
        assert service.metric('polywand_prompts_total{model="disk",outcome="segmentation"}') > 0
    replicas.drain(0)
    calls.go_on(second)
    calls.stop()
    assert set(calls.codes) == {grpc.StatusCode.OK}, calls.codes


def test_heartbeats_keep_idle_streams_that_a_proxy_would_end(
    proxy: Proxy, stack: ExitStack, puppets: Service, tmp_path: Path
) -> None:
    """Of two streams, one each is on a replica with heartbeats and on one without."""
    replicas = Replicas(stack, proxy, tmp_path, f"--triton-url={puppets.triton}", exchanged=IDLE[type(proxy)])
    beating, silent = replicas.start(0, HEARTBEATS), replicas.start(1, "--heartbeat-seconds=0")
    channel = stack.enter_context(grpc.insecure_channel(replicas.target))
    stub = annotation_pb2_grpc.AnnotationServiceStub(channel)
    kept = stack.enter_context(InteractStream(stub))
    answer(kept, raw_image(IMAGE))
    is_first = streams(beating) == 1
    cut = stack.enter_context(InteractStream(stub))
    answer(cut, raw_image(IMAGE))
    assert [streams(beating), streams(silent)] == [1, 1]
    if not is_first:
        kept, cut = cut, kept

    wait_for(lambda: streams(silent) == 0, 15 * IDLE_SECONDS, silent)
    assert cut.receive_end() != grpc.StatusCode.OK
    before = beating.metric("polywand_heartbeats_total")
    wait_for(lambda: beating.metric("polywand_heartbeats_total") >= before + 2 * IDLE_SECONDS, 60, beating)
    assert answer(kept, CLICK).WhichOneof("result") == "segmentation"


def test_no_click_is_lost_while_both_replicas_are_restarted_one_after_the_other(
    proxy: Proxy, stack: ExitStack, puppets: Service, tmp_path: Path
) -> None:
    replicas = Replicas(stack, proxy, tmp_path, f"--triton-url={puppets.triton}", "--drain-delay-seconds=1")
    running = [replicas.start(0), replicas.start(1)]
    client = stack.enter_context(polywand.connect(replicas.target, timeout=TIMEOUT_S))
    annotators = (Drag(client), Drag(client), Frames(client))
    for number in range(2):
        all_go_on(running[number], *annotators)
        replicas.drain(number)
        running[number] = replicas.start(number)
    all_go_on(running[0], *annotators)
    for annotator in annotators:
        annotator.stop()  # each click had its answer


def test_streams_of_a_greatest_age_move_to_a_new_replica(
    proxy: Proxy, stack: ExitStack, puppets: Service, tmp_path: Path
) -> None:
    options = f"--triton-url={puppets.triton}", "--stream-max-age-seconds=1"
    replicas = Replicas(stack, proxy, tmp_path, *options)
    old = replicas.start(0)
    client = stack.enter_context(polywand.connect(replicas.target, timeout=TIMEOUT_S))
    drags = [Drag(client) for _ in range(4)]
    all_go_on(old, *drags)
    assert streams(old) >= 4
    new = replicas.start(1)
    wait_for(lambda: streams(new) >= 2, TIMEOUT_S, new)
    for drag in drags:
        drag.stop()
    assert old.metric('polywand_streams_moved_total{reason="age"}') >= 2


def test_tls_between_clients_and_proxy_and_between_proxy_and_replicas(
    proxy: Proxy, stack: ExitStack, puppets: Service, tmp_path: Path
) -> None:
    """The commands are those that the file names for TLS; the replicas want the proxy's certificate too."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    certificate, key, roots = (tmp_path / name for name in ("tls.crt", "tls.key", "ca.crt"))
    certificate.write_bytes(issued.cert_chain_pems[0].bytes())
    key.write_bytes(issued.private_key_pem.bytes())
    roots.write_bytes(authority.cert_pem.bytes())
    commands = re.findall(r"^# TLS to \w+: +sed '([^']+)'", proxy.file.read_text(), re.MULTILINE)
    assert len(commands) == 2
    edited = subprocess.run(["sed", "; ".join(commands), proxy.file], check=True, capture_output=True, text=True)

    tls = f"--tls-cert={certificate}", f"--tls-key={key}", f"--tls-client-ca={roots}", "--metrics-port=0"
    exchanged = {"/etc/polywand/tls": str(tmp_path)}
    options = f"--triton-url={puppets.triton}", *tls
    replicas = Replicas(stack, proxy, tmp_path, *options, exchanged=exchanged, text=edited.stdout)
    first, second = replicas.start(0), replicas.start(1)
    trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    client = stack.enter_context(polywand.connect(replicas.target, credentials=trusted, timeout=TIMEOUT_S))
    drags = []
    for _ in range(2):
        drags.append(Drag(client))
        all_go_on(first, drags[-1])
    assert [streams(first), streams(second)] == [1, 1]
    for drag in drags:
        drag.stop()
    with polywand.connect(replicas.target, timeout=2) as in_plain_text, pytest.raises(polywand.Unavailable):
        in_plain_text.models()
