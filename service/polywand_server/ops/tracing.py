"""Traces for OpenTelemetry: a span for each call, each prompt, image and frame of a stream, and each of their stages.

A call with a client's trace gets its spans in that trace, if the client records it. Without one, a part of the calls is
traced (`Tracing.ratio`), and on a stream each prompt, image and frame has a trace of its own, with a link to the call.

While a request is worked on, only times are noted. Its spans are made after its reply, and sent by a thread.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from polywand_server import __version__
from polywand_server.caller import current
from polywand_server.config import Tracing
from polywand_server.timing import Stage, Stopwatch

if TYPE_CHECKING:
    from opentelemetry.trace import Link, SpanContext

# For a collector to take what is left when the service ends.
STOP_SECONDS = 2.0
EXPORT_SECONDS = 5.0
# Of one request; a prompt may have thousands of points, with a pass each.
MOST_STAGES = 500
# A shorter wait gets no span: most passes have two.
SHORT_WAIT_NS = 200_000
_NO_ERRORS = ("OK", "CANCELLED")

log = logging.getLogger(__name__)


class Spans:
    """Makes spans, and sends them to a collector.

    Raises:
        ImportError: the packages of OpenTelemetry are not installed.
    """

    def __init__(self, tracing: Tracing) -> None:
        # Only here, since they take 0.1 s and most services make no traces.
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider, id_generator, sampling  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        class ChosenIds(id_generator.RandomIdGenerator):
            """Gives the ids that were chosen when the work began: Triton has seen them as parents of its own."""

            trace_id = span_id = 0

            def generate_trace_id(self) -> int:
                return self.trace_id

            def generate_span_id(self) -> int:
                return self.span_id

        self._api = trace
        self._ids = ChosenIds()
        self._random = id_generator.RandomIdGenerator()
        self._sampler = sampling.TraceIdRatioBased(tracing.ratio)
        self._recorded = sampling.Decision.RECORD_AND_SAMPLE
        resource = Resource.create({"service.name": "polywand", "service.version": __version__})
        resource = resource.merge(OTELResourceDetector().detect())  # the operator's environment comes first
        # Whether to record was decided when the work began.
        self._provider = TracerProvider(sampling.ALWAYS_ON, resource, id_generator=self._ids, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(tracing.url, timeout=EXPORT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("polywand_server", __version__)

    def root(self) -> "SpanContext":
        """Choose the ids of a span without a parent, and whether it is recorded."""
        trace_id = self._random.generate_trace_id()
        is_recorded = self._sampler.should_sample(None, trace_id, "").decision is self._recorded
        return self._context(trace_id, is_recorded=is_recorded)

    def below(self, parent: "SpanContext") -> "SpanContext":
        """Choose the ids of a span below another; it is recorded if that is."""
        return self._context(parent.trace_id, is_recorded=parent.trace_flags.sampled)

    def remote(self, traceparent: str) -> "SpanContext":
        """Return the client's span of a traceparent header, which is valid."""
        _, trace_id, span_id, flags = traceparent.split("-")
        is_recorded = self._api.TraceFlags(int(flags, 16) & self._api.TraceFlags.SAMPLED)
        return self._api.SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=is_recorded)

    def make(
        self,
        name: str,
        context: "SpanContext",
        parent: "SpanContext | None",
        times: tuple[int, int],
        attributes: dict[str, Any],
        *,
        links: "Sequence[Link]" = (),
        is_call: bool = False,
        error: str = "",
    ) -> None:
        """Make a span of work that has ended. times: when it began and ended, nanoseconds since 1970."""
        api = self._api
        self._ids.trace_id, self._ids.span_id = context.trace_id, context.span_id
        above = api.set_span_in_context(api.NonRecordingSpan(parent)) if parent else None
        kind = api.SpanKind.SERVER if is_call else api.SpanKind.INTERNAL
        span = self._tracer.start_span(name, above, kind, attributes, links, start_time=times[0])
        if error:
            span.set_status(api.StatusCode.ERROR, error)
        span.end(times[1])

    def link(self, context: "SpanContext") -> "Link":
        """Make a link to a span."""
        return self._api.Link(context)

    async def stop(self) -> None:
        """Send what is left, for a short time."""
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.to_thread(self._provider.shutdown)
        except TimeoutError:
            log.warning("the last traces could not be sent in %g s", STOP_SECONDS)

    def _context(self, trace_id: int, *, is_recorded: bool) -> "SpanContext":
        flags = self._api.TraceFlags(self._api.TraceFlags.SAMPLED if is_recorded else 0)
        span_id = self._random.generate_span_id()
        return self._api.SpanContext(trace_id, span_id, is_remote=False, trace_flags=flags)


@dataclass(slots=True)
class Call:
    """A call that is traced. parent: the client's span. attributes: of the call's span. error: how it failed."""

    method: str
    is_stream: bool
    context: "SpanContext"
    parent: "SpanContext | None"
    began_ns: int = field(default_factory=time.time_ns)
    attributes: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def end(self, code: str, request_id: str) -> None:
        """Note how it ended. code: the name of its status."""
        self.attributes |= {"rpc.grpc.status": code, "polywand.request_id": request_id}
        self.error = code if code not in _NO_ERRORS else ""


@dataclass(slots=True)
class _Stage:
    """A stage, its times on the clock of `time.perf_counter`, and its span. ended: 0 while it goes on."""

    name: Stage
    context: "SpanContext"
    began: float
    ended: float = 0.0

    def end(self) -> None:
        self.ended = time.perf_counter()


class Work:
    """Notes the stages of a request, for a `Stopwatch`.

    call: that it belongs to. context: of its own span, where it has one; None: its stages are the call's.
    """

    def __init__(self, spans: Spans, call: Call, context: "SpanContext | None") -> None:
        self._spans = spans
        self._call = call
        self._own = context
        self._began_ns, self._began = time.time_ns(), time.perf_counter()
        self._stages: list[_Stage] = []
        self._left_out = 0

    @property
    def traceparent(self) -> str:
        """The header that makes the spans of another service children of the stage that was begun last."""
        context = self._stages[-1].context if self._stages else self._above
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def begin(self, stage: Stage) -> _Stage:
        """Note that a stage begins; `end` of what is returned notes its end."""
        noted = _Stage(stage, self._spans.below(self._above), time.perf_counter())
        if len(self._stages) < MOST_STAGES:
            self._stages.append(noted)
        else:
            self._left_out += 1
        return noted

    def counted(self, stage: Stage, seconds: float) -> None:
        """Note a stage that has just ended."""
        noted = self.begin(stage)
        noted.began -= seconds
        noted.end()

    def finish(self, name: str, attributes: dict[str, Any]) -> None:
        """Make the spans, once the reply is on its way. name: of the work's own span."""
        asyncio.get_running_loop().call_soon(self._make, name, attributes, time.time_ns())

    @property
    def _above(self) -> "SpanContext":
        return self._own or self._call.context

    def _make(self, name: str, attributes: dict[str, Any], ended_ns: int) -> None:
        if self._left_out:
            attributes["stages_left_out"] = self._left_out
        stages, self._stages = self._stages, []
        named = {f"polywand.{key}": value for key, value in attributes.items()}
        if self._own is None:
            self._call.attributes |= named
        else:
            is_below = self._own.trace_id == self._call.context.trace_id
            parent, links = (self._call.context, ()) if is_below else (None, (self._spans.link(self._call.context),))
            self._spans.make(name, self._own, parent, (self._began_ns, ended_ns), named, links=links)
        for stage in stages:
            times = self._unix_ns(stage.began), self._unix_ns(stage.ended) if stage.ended else ended_ns
            if stage.name != "wait" or times[1] - times[0] > SHORT_WAIT_NS:
                self._spans.make(stage.name, stage.context, self._above, times, {})

    def _unix_ns(self, moment: float) -> int:
        return self._began_ns + round((moment - self._began) * 1e9)


_spans: Spans | None = None
_call: ContextVar[Call | None] = ContextVar("call", default=None)


def start(tracing: Tracing) -> None:
    """Begin to trace the calls of this process. Raises ImportError: the packages for it are not installed."""
    global _spans  # noqa: PLW0603 - one for the process, as its metrics
    _spans = Spans(tracing)


async def stop() -> None:
    """Send what is left, for a short time, and trace no more."""
    global _spans
    spans, _spans = _spans, None
    if spans is not None:
        await spans.stop()


@contextmanager
def call(method: str, *, is_stream: bool) -> Iterator[Call | None]:
    """Trace the current call until the block ends: the work that it begins is noted. None where traces are off."""
    spans = _spans
    if spans is None:
        yield None
        return
    traceparent = current().traceparent
    parent = spans.remote(traceparent) if traceparent else None
    traced = Call(method, is_stream, spans.below(parent) if parent else spans.root(), parent)
    _call.set(traced)
    try:
        yield traced
    finally:
        # After the spans of its last work, which add attributes.
        asyncio.get_running_loop().call_soon(_make_call, spans, traced, time.time_ns())


def call_timer() -> Stopwatch:
    """Return the stopwatch of a unary call; its stages are noted below the call's span."""
    spans, traced = _spans, _call.get()
    if spans is None or traced is None or not traced.context.trace_flags.sampled:
        return Stopwatch()
    return Stopwatch(Work(spans, traced, None))


def timer() -> Stopwatch:
    """Return the stopwatch of a request of a stream, or of a part of a call; it gets a span of its own."""
    spans, traced = _spans, _call.get()
    if spans is None or traced is None:
        return Stopwatch()
    is_in_trace = traced.parent is not None or not traced.is_stream
    context = spans.below(traced.context) if is_in_trace else spans.root()
    return Stopwatch(Work(spans, traced, context)) if context.trace_flags.sampled else Stopwatch()


def traceparent(timer: Stopwatch) -> str:
    """Return the header for Triton: of the running stage; where traces are off, of the client's trace.

    A trace that is not recorded is not passed on where traces are on: the embedded Triton would record it.
    """
    return timer.traceparent if _spans is not None else current().traceparent


def _make_call(spans: Spans, traced: Call, ended_ns: int) -> None:
    if not traced.context.trace_flags.sampled:
        return
    service, _, method = traced.method.partition("/")
    known = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    spans.make(
        traced.method,
        traced.context,
        traced.parent,
        (traced.began_ns, ended_ns),
        known | traced.attributes,
        is_call=True,
        error=traced.error,
    )
