"""Traces for OpenTelemetry, as a collector gets them from the service and from its Triton."""

import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.running import Service, running_service, wait_for
from tests.service.test_traces import CLICK, IMAGE, SENT, SPAN, TRACE
from tests.streams import InteractStream

METHOD = "polywand.v1.AnnotationService/{}"
UNRECORDED = SENT[:-1] + "0"
EXPORT = {"OTEL_BSP_SCHEDULE_DELAY": "100"}  # milliseconds


@dataclass(frozen=True)
class Span:
    """One span, with ids in hexadecimal digits; parent: empty for none. links: ids of traces."""

    service: str
    trace: str
    id: str
    parent: str
    name: str
    attributes: dict[str, object] = field(compare=False)
    links: tuple[str, ...] = ()
    failed: bool = False


class Collector:
    """An OTLP receiver over HTTP. url: its base. spans: all that were received so far."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        collector = self

        class Receiver(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                read = _of_json if "json" in self.headers["content-type"] else _of_protobuf
                collector.spans.extend(read(body) if self.path == "/v1/traces" else ())
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Collector":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of(self, trace: str) -> list[Span]:
        return [span for span in self.spans if span.trace == trace]


def _of_protobuf(body: bytes) -> Iterator[Span]:
    for of_resource in trace_service_pb2.ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = {pair.key: pair.value.string_value for pair in of_resource.resource.attributes}
        for scope in of_resource.scope_spans:
            for span in scope.spans:
                values = {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}
                links = tuple(link.trace_id.hex() for link in span.links)
                ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
                yield Span(resource["service.name"], *ids, span.name, values, links, span.status.code == 2)


def _of_json(body: bytes) -> Iterator[Span]:
    for of_resource in json.loads(body)["resourceSpans"]:
        resource = {pair["key"]: pair["value"].get("stringValue") for pair in of_resource["resource"]["attributes"]}
        for scope in of_resource["scopeSpans"]:
            for span in scope["spans"]:
                ids = span["traceId"], span["spanId"], span.get("parentSpanId", "")
                yield Span(resource["service.name"], *ids, span["name"], {})


@contextmanager
def traced(puppet_models, log, *options: str) -> Iterator[tuple[Service, annotation_pb2_grpc.AnnotationServiceStub]]:
    options = (f"--model-repository={puppet_models}", "--ready-models=disk,finder", *options)
    with running_service(log, *options) as service, grpc.insecure_channel(service.target) as channel:
        service.wait_ready()
        yield service, annotation_pb2_grpc.AnnotationServiceStub(channel)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def service(puppet_models, collector, tmp_path_factory):
    """Only calls with a client's trace are traced."""
    log = tmp_path_factory.mktemp("tracing") / "log"
    options = f"--trace-endpoint={collector.url}", "--trace-ratio=0"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in EXPORT.items():
            patch.setenv(name, value)
        with traced(puppet_models, log, *options) as running:
            yield running


@pytest.fixture
def stub(service):
    return service[1]


def click(stub, *metadata: tuple[str, str]) -> None:
    """One click on a new stream."""
    with InteractStream(stub, metadata) as stream:
        stream.ask(IMAGE)
        stream.ask(CLICK)
        stream.finish()
        assert stream.receive_end() == grpc.StatusCode.OK


def test_a_click_is_traced_below_its_clients_span_stage_by_stage_and_tritons_own_spans_below_those(collector, stub):
    click(stub, ("traceparent", SENT))
    wait_for(lambda: any(span.service == "polywand-triton" for span in collector.of(TRACE)), 60)
    wait_for(lambda: any(span.name == METHOD.format("Interact") for span in collector.of(TRACE)), 60)
    spans = collector.of(TRACE)
    ours = [span for span in spans if span.service == "polywand"]
    (call,) = (span for span in ours if span.name == METHOD.format("Interact"))
    (prompt,) = (span for span in ours if span.name == "prompt")
    (image,) = (span for span in ours if span.name == "image")
    assert (call.parent, prompt.parent, image.parent) == (SPAN, call.id, call.id)
    assert call.attributes["rpc.grpc.status"] == "OK"
    assert prompt.attributes["polywand.model"] == "disk"
    assert prompt.attributes["polywand.outcome"] == "segmentation"
    assert {"prepare", "triton", "geometry"} <= {span.name for span in ours if span.parent == prompt.id}
    assert "decode" in {span.name for span in ours if span.parent == image.id}
    (inference,) = (span for span in ours if span.name == "triton")
    below = [span for span in spans if span.service == "polywand-triton" and span.parent == inference.id]
    assert len(below) == 1


def test_a_unary_call_has_its_stages_below_it_and_an_error_shows(collector, stub):
    trace = "5" * 32
    stub.Detect(pb.DetectRequest(model="finder", image=IMAGE), metadata=[("traceparent", f"00-{trace}-{SPAN}-01")])
    with pytest.raises(grpc.RpcError):
        stub.Detect(pb.DetectRequest(model="no such"), metadata=[("traceparent", f"00-{trace}-{SPAN}-01")])
    wait_for(lambda: sum(span.name == METHOD.format("Detect") for span in collector.of(trace)) == 2, 60)
    calls = {span.failed: span for span in collector.of(trace) if span.name == METHOD.format("Detect")}
    assert calls[False].attributes["polywand.model"] == "finder"
    assert calls[True].attributes["rpc.grpc.status"] == "NOT_FOUND"
    stages = {span.name for span in collector.of(trace) if span.parent == calls[False].id}
    assert {"prepare", "triton", "geometry"} <= stages


def test_each_prompt_of_a_segment_call_has_a_span(collector, stub):
    trace = "6" * 32
    request = pb.SegmentRequest(image=IMAGE, prompts=[CLICK, CLICK])
    stub.Segment(request, metadata=[("traceparent", f"00-{trace}-{SPAN}-01")])
    wait_for(lambda: any(span.name == METHOD.format("Segment") for span in collector.of(trace)), 60)
    (call,) = (span for span in collector.of(trace) if span.name == METHOD.format("Segment"))
    assert [span.parent for span in collector.of(trace) if span.name == "prompt"] == [call.id] * 2
    assert call.attributes["polywand.prompts"] == 2


def test_a_trace_that_its_client_does_not_record_and_a_call_outside_of_the_ratio_are_not_traced(collector, stub):
    other = "7" * 32
    click(stub, ("traceparent", UNRECORDED.replace(TRACE, other)))
    click(stub)
    last = "8" * 32
    click(stub, ("traceparent", f"00-{last}-{SPAN}-01"))
    wait_for(lambda: any(span.name == METHOD.format("Interact") for span in collector.of(last)), 60)
    assert collector.of(other) == []
    assert {span.trace for span in collector.spans if span.service == "polywand"} <= {TRACE, "5" * 32, "6" * 32, last}


def test_without_a_clients_trace_each_prompt_of_a_stream_is_a_trace_of_its_own_with_a_link_to_the_call(
    puppet_models, tmp_path, monkeypatch
):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=polywand-of-a-test")
    for name, value in EXPORT.items():
        monkeypatch.setenv(name, value)
    with Collector() as collector, traced(puppet_models, tmp_path / "log", f"--trace-endpoint={collector.url}/") as run:
        click(run[1])
        wait_for(lambda: any(span.name == METHOD.format("Interact") for span in collector.spans), 60)
        (call,) = (span for span in collector.spans if span.name == METHOD.format("Interact"))
        (prompt,) = (span for span in collector.spans if span.name == "prompt")
        assert (prompt.parent, prompt.links) == ("", (call.trace,))
        assert prompt.service == "polywand-of-a-test"


def test_a_collector_that_is_away_harms_no_call(puppet_models, tmp_path, monkeypatch):
    for name, value in EXPORT.items():
        monkeypatch.setenv(name, value)
    with traced(puppet_models, tmp_path / "log", "--trace-endpoint=http://127.0.0.1:9") as (service, stub):
        for _ in range(20):
            click(stub)
        wait_for(lambda: "traces" in service.log.read_text(), 60, service)
        assert service.get("/readyz")[0] == 200
        assert "Traceback" not in service.log.read_text()


@pytest.mark.parametrize("endpoint", ["collector:4317", "", "ftp://collector", "http://"])
def test_an_endpoint_that_is_no_url_is_refused_at_start(tmp_path, endpoint):
    with (
        pytest.raises(AssertionError, match="--trace-endpoint"),
        running_service(tmp_path / "log", f"--trace-endpoint={endpoint}"),
    ):
        pass
