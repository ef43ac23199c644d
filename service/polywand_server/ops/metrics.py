"""Prometheus metrics. No label value comes from a client: all are constants, or names that the operator chose."""

from prometheus_client import Counter, Gauge, Histogram

from polywand_server import __version__
from polywand_server.timing import Stopwatch

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_DELAYS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)
_BYTES = tuple(2.0**power for power in range(12, 29, 2))
_PIXELS = (1e4, 1e5, 5e5, 1e6, 2e6, 5e6, 1.2e7, 2.4e7, 5e7, 1e8)

BUILD = Gauge("polywand_build_info", "Always 1; the version of the service is a label.", ["version"])
BUILD.labels(__version__).set(1)

READY = Gauge("polywand_ready", "1 while the service is ready for requests, as /readyz says, else 0.")

REQUESTS = Counter("polywand_grpc_requests_total", "Finished calls, streams included.", ["method", "code"])
REFUSED_CALLS = Counter("polywand_refused_calls_total", "Calls refused for token, certificate or role.", ["reason"])
QUOTA_REFUSALS = Counter("polywand_quota_refusals_total", "What was refused beyond a principal's quota.", ["quota"])
AUDIT_DROPPED = Counter("polywand_audit_dropped_total", "Lines of the audit log that could not be written.")
REQUEST_SECONDS = Histogram(
    "polywand_grpc_request_duration_seconds", "Time from a unary call's start to its end.", ["method"], buckets=_SECONDS
)
ACTIVE_STREAMS = Gauge("polywand_grpc_active_streams", "Streams open now.", ["method"])

HEARTBEATS = Counter("polywand_heartbeats_total", "Heartbeats written on idle streams.")
STREAMS_MOVED = Counter(
    "polywand_streams_moved_total", "Streams that were told to move: the server stops, or their age.", ["reason"]
)

PROMPTS = Counter("polywand_prompts_total", "Answered prompts by outcome.", ["model", "outcome"])
PROMPTS_SKIPPED = Counter(
    "polywand_prompts_skipped_total",
    "Prompts not answered, because of a newer one, another image or their stream's end.",
    ["model"],
)
PROMPT_SECONDS = Histogram(
    "polywand_prompt_duration_seconds", "Time from a prompt's receipt to its answer.", ["model"], buckets=_SECONDS
)
FRAMES = Counter(
    "polywand_frames_total", "Frames answered by Detect and DetectStream, by outcome.", ["model", "outcome"]
)
# The scale signal of a replica: prompts in work and waiting, and frames waiting.
PROMPTS_IN_WORK = Gauge("polywand_prompts_in_work", "Prompts being answered now.")
PROMPTS_WAITING = Gauge(
    "polywand_prompts_waiting", "Prompts that are received and not in work yet; a Segment call that waits is one."
)
FRAMES_IN_WORK = Gauge("polywand_frames_in_work", "Frames being decoded, detected or outlined now.")
FRAMES_WAITING = Gauge("polywand_frames_waiting", "Frames, and Detect calls, that wait for their turn.")
STAGE_SECONDS = Histogram(
    "polywand_stage_duration_seconds", "Time in one stage of an answer.", ["stage", "model"], buckets=_SECONDS
)

IMAGES = Counter(
    "polywand_images_total", "Images by outcome: decoded, refused, or given up by an idle stream.", ["outcome"]
)
IMAGE_BYTES = Histogram("polywand_image_bytes", "Bytes of a received image, encoded or raw.", buckets=_BYTES)
IMAGE_PIXELS = Histogram("polywand_image_pixels", "Pixels of a decoded image.", buckets=_PIXELS)
IMAGE_MEMORY = Gauge("polywand_image_memory_bytes", "Memory of decoded images, and of decoders at work, now.")
IMAGE_MEMORY_LIMIT = Gauge("polywand_image_memory_limit_bytes", "The most memory that images and decoders may have.")
KEPT_IMAGE_MEMORY = Gauge("polywand_kept_image_memory_bytes", "Of this, images that no stream or request uses.")
IMAGE_LOOKUPS = Counter(
    "polywand_image_lookups_total",
    "Images that came, by bytes or digest: hit if it was held or being decoded.",
    ["outcome"],
)
IMAGE_EVICTIONS = Counter(
    "polywand_image_evictions_total",
    "Unused images dropped, to make room for others, beyond their limit, or for their principal's quota.",
    ["reason"],
)
MASK_MEMORY = Gauge(
    "polywand_mask_memory_bytes", "Memory of probability maps and model states that streams remember now."
)
REPLY_MEMORY = Gauge("polywand_reply_memory_bytes", "Bytes of replies that clients have not read yet.")
BODY_MEMORY = Gauge("polywand_body_memory_bytes", "Bytes of messages whose images are not decoded yet.")
SHARED_MEMORY = Gauge("polywand_shared_memory_bytes", "Memory shared with Triton for tensors.")
CERTIFICATE_END = Gauge(
    "polywand_tls_certificate_expiry_timestamp_seconds", "When the certificate of the ports ends; 0 without TLS."
)
TASKS = Gauge("polywand_asyncio_tasks", "Tasks of the event loop.")
LOOP_DELAY = Histogram(
    "polywand_event_loop_delay_seconds", "How late the event loop is with what is due.", buckets=_DELAYS
)

INFERENCES = Counter("polywand_inferences_total", "Inferences by outcome.", ["model", "version", "outcome"])
TRITON_UP = Gauge("polywand_triton_up", "1 while Triton answers, else 0.")
TRITON_RESTARTS = Counter("polywand_triton_restarts_total", "Restarts of the embedded Triton.")
MODELS_READY = Gauge("polywand_models_ready", "Tools that are ready, by kind.", ["kind"])

# The label of requests for a model that does not exist: its name comes from a client.
UNKNOWN_MODEL = "unknown"
# The label of a stream's image, which belongs to no model.
NO_MODEL = ""

# Series that are there from the start: what happens once counts as an increase.
for _reason in ("age", "drain"):
    STREAMS_MOVED.labels(_reason)
for _reason in ("NOT_AUTHENTICATED", "NOT_PERMITTED"):
    REFUSED_CALLS.labels(_reason)
for _quota in ("streams", "calls", "prompts_per_second", "frames_per_second", "image_mebibytes"):
    QUOTA_REFUSALS.labels(_quota)


def observe_stages(timer: Stopwatch, model: str) -> None:
    """Record the seconds of every stage that a timer has measured."""
    for stage, seconds in timer.seconds.items():
        STAGE_SECONDS.labels(stage, model).observe(seconds)
