"""The client's trace: kept, logged, answered, and passed on to Triton."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.running import Service, running_service, wait_for
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = f"00-{TRACE}-{SPAN}-01"
IMAGE = raw_image(np.zeros((64, 64, 3), np.uint8))
CLICK = prompt("disk", (20, 20, POSITIVE))
INFER = "/inference.GRPCInferenceService/ModelInfer"


class TritonProxy(grpc.GenericRpcHandler):
    """A gRPC proxy before a Triton. inferences: the model and the traces of each, in the order of their arrival."""

    def __init__(self, triton: grpc.Channel) -> None:
        self._triton = triton
        self.inferences: list[tuple[str, list[str]]] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Relay one call."""
        method, metadata = handler_call_details.method, handler_call_details.invocation_metadata

        def relay(request: bytes, context: grpc.ServicerContext) -> bytes:
            if method == INFER:
                model = service_pb2.ModelInferRequest.FromString(request).model_name
                self.inferences.append((model, [value for key, value in metadata if key == "traceparent"]))
            try:
                return self._triton.unary_unary(method)(request, timeout=context.time_remaining())
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return grpc.unary_unary_rpc_method_handler(relay)


@dataclass
class Traced:
    service: Service
    stub: annotation_pb2_grpc.AnnotationServiceStub
    triton: TritonProxy


@pytest.fixture(scope="module")
def traced(puppets: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    """A service that reaches the puppets' Triton through a proxy."""
    log = tmp_path_factory.mktemp("traces") / "log"
    with grpc.insecure_channel(puppets.triton) as channel, ThreadPoolExecutor(8) as threads:
        proxy, server = TritonProxy(channel), grpc.server(threads)
        server.add_generic_rpc_handlers((proxy,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        options = (f"--triton-url=127.0.0.1:{port}", "--no-load-models", "--log-format=json", "--log-level=debug")
        with running_service(log, *options) as service, grpc.insecure_channel(service.target) as opened:
            service.wait_ready("disk", "finder")
            yield Traced(service, annotation_pb2_grpc.AnnotationServiceStub(opened), proxy)
        server.stop(0).wait()


def test_the_trace_of_a_stream_goes_to_triton_with_each_of_its_inferences_and_comes_back(traced):
    before = len(traced.triton.inferences)
    with InteractStream(traced.stub, (("traceparent", SENT), ("tracestate", "congo=t61rcWkgMzE"))) as stream:
        stream.ask(IMAGE)
        stream.ask(CLICK)
        stream.ask(prompt("disk", (20, 20, POSITIVE), (30, 30, POSITIVE)))
        stream.finish()
        assert stream.receive_end() == grpc.StatusCode.OK
        trailers = dict(stream.call.trailing_metadata())
    assert traced.triton.inferences[before:] == [("disk", [SENT])] * 2
    assert (trailers["traceparent"], "tracestate" in trailers) == (SENT, False)


def test_calls_at_the_same_time_keep_their_own_traces_and_one_without_has_none(traced):
    before = len(traced.triton.inferences)
    traces = [f"00-{number:032x}-{SPAN}-00" for number in range(1, 5)]
    request = pb.DetectRequest(model="finder", image=IMAGE)
    calls = [traced.stub.Detect.future(request, metadata=[("traceparent", trace)]) for trace in traces]
    calls.append(traced.stub.Detect.future(request))
    answered = [dict(call.trailing_metadata()).get("traceparent") for call in calls if call.result()]
    assert answered == [*traces, None]
    sent = [trace for model, trace in traced.triton.inferences[before:] if model == "finder"]
    assert sorted(sent) == [[], *([trace] for trace in traces)]


def test_the_log_has_the_traces_id_in_every_line_of_the_call_and_an_error_tells_the_trace_too(traced):
    metadata = [("traceparent", SENT), ("x-request-id", "traced-and-refused")]
    with pytest.raises(grpc.RpcError) as caught:
        traced.stub.Detect(pb.DetectRequest(model="no such"), metadata=metadata)
    assert dict(caught.value.trailing_metadata())["traceparent"] == SENT

    def lines() -> list[dict[str, str]]:
        records = [json.loads(line) for line in traced.service.log.read_text().splitlines() if line.endswith("}")]
        return [record for record in records if record.get("request_id") == "traced-and-refused"]

    wait_for(lines, 30, traced.service)  # the end of the call, which is logged after the client is told
    assert {line["trace_id"] for line in lines()} == {TRACE}


@pytest.mark.parametrize(
    "invalid",
    [
        "",
        f"01-{TRACE}-{SPAN}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f" {SENT}x",
        "x" * 1000,
    ],
)
def test_a_trace_that_is_invalid_is_ignored(traced, invalid):
    before = len(traced.triton.inferences)
    request = pb.DetectRequest(model="finder", image=IMAGE)
    call = traced.stub.Detect.with_call(request, metadata=[("traceparent", invalid)])[1]
    assert "traceparent" not in dict(call.trailing_metadata())
    assert traced.triton.inferences[before:] == [("finder", [])]
