"""All settings of the service: created once from the options, then passed as arguments."""

from dataclasses import dataclass, field
from pathlib import Path

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of requests and of memory. A request beyond one gets an error that names it.

    image_bytes: one image, encoded or raw.
    image_pixels: one image; read from its header before memory is allocated.
    objects: on one image of one stream.
    images_bytes: all decoded images in memory, and the decoders of those that are being decoded.
    kept_images_bytes: of these, images that no stream or request uses.
    stream_memory_bytes: remembered probability maps of one stream; the oldest are dropped first.
    memory_bytes: remembered probability maps of all streams; with many streams, each gets an equal share.
    stream_inflight: prompts of one stream, of different objects, in progress at the same time.
    prompt_seconds: time for one prompt: all passes of all its clicks.
    frames_in_flight: frames of one DetectStream that were received and not answered yet.
    frames_in_work: frames of all streams, and calls of many prompts, being decoded or inferred at the same time.
    calls_at_once: Detect calls, and Segment calls of many prompts, being received or in progress; as many Segment calls
        of one prompt besides. calls_waiting: further calls that wait in line, of each kind.
    bodies_bytes: received messages whose images are not decoded yet, of all clients; one client may have half of it.
    stream_reply_bytes: replies that one stream's client has not read; beyond it, the stream's next answer waits.
    reply_bytes: unread replies of all streams; beyond it, the stream with the most is ended.
    inferences_at_once: inferences sent to one model in Triton at the same time; active clients share them.
    connections: connections to the gRPC port. streams_of_connection: concurrent calls of one connection.
    workers: child processes that work on images and outlines at the same time.
    work_cpu_seconds: CPU time for decoding one image or drawing one outline in a child process.
    decoder_bytes: memory of one image's decoder, without the pixels.
    """

    image_bytes: int = 128 * MEBIBYTE
    image_pixels: int = 100_000_000
    objects: int = 1000
    images_bytes: int = 4096 * MEBIBYTE
    kept_images_bytes: int = 1024 * MEBIBYTE
    stream_memory_bytes: int = 64 * MEBIBYTE
    memory_bytes: int = 2048 * MEBIBYTE
    stream_inflight: int = 4
    prompt_seconds: float = 30.0
    frames_in_flight: int = 4
    frames_in_work: int = 2
    calls_at_once: int = 4
    calls_waiting: int = 256
    bodies_bytes: int = 1024 * MEBIBYTE
    stream_reply_bytes: int = 8 * MEBIBYTE
    reply_bytes: int = 256 * MEBIBYTE
    inferences_at_once: int = 8
    connections: int = 1000
    streams_of_connection: int = 100
    workers: int = 2
    work_cpu_seconds: int = 2
    decoder_bytes: int = 2560 * MEBIBYTE

    @property
    def message_bytes(self) -> int:
        """The largest gRPC message; larger than an image, so that one slightly over its limit gets a proper error."""
        return self.image_bytes * 5 // 4


@dataclass(frozen=True, slots=True)
class TritonTls:
    """PEM files for a Triton with TLS.

    root_certificates: None for the system's. private_key, certificate_chain: for mutual TLS.
    """

    root_certificates: Path | None = None
    private_key: Path | None = None
    certificate_chain: Path | None = None


@dataclass(frozen=True, slots=True)
class ServerTls:
    """PEM files for TLS on the service's own ports; they are read again when they change.

    client_roots: clients must have a certificate of one of these; None: they need none.
    """

    certificate_chain: Path
    private_key: Path
    client_roots: Path | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call.

    principals: TOML file of names with the hashes of their tokens. jwks: file or https URL of the keys of JSON Web
    Tokens. jwt_issuer, jwt_audience: that these must have.
    """

    principals: Path | None = None
    jwks: str | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether everybody may call."""
        return self.principals is None and self.jwks is None


@dataclass(frozen=True, slots=True)
class Tracing:
    """Traces for OpenTelemetry.

    endpoint: URL of a collector. ratio: of the calls without a client's trace that are traced.
    """

    endpoint: str
    ratio: float

    @property
    def url(self) -> str:
        """Where the collector takes traces by OTLP over HTTP."""
        return f"{self.endpoint.rstrip('/')}/v1/traces"


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of this process.

    metrics_port: of the metrics alone, at metrics_host (None: host), without TLS and tokens; None: there is none, and
        they are on the HTTP port.
    tls: None for none. access: who may call. insecure: serve other machines with neither of both.
    reflection: whether clients can ask for the contract.
    triton_url: host:port of an external Triton; None starts the embedded one on model_repository.
    load_models: load all models of Triton's repository; with the embedded Triton, also reload those that change.
    ready_models: tools, or models with all their tools, that must be ready before the service is. Empty: every model
        must have been tried once.
    poll_seconds: interval between polls of Triton's model index.
    settling_seconds: time for which a model's files must not have changed before they are loaded or unloaded.
    triton_hang_seconds: time for which the embedded Triton may leave probes unanswered before it is restarted.
    infer_timeout_seconds: longest wait for one inference, including Triton's queue.
    triton_metrics_url: of an external Triton's metrics, which are passed on.
    scratch: folder for the embedded Triton's files; None for the system's.
    drain_seconds: time for running requests to finish, drain_delay_seconds after SIGTERM. Until then all calls are
        taken, but health says NOT_SERVING.
    stream_max_age_seconds: after which a stream is told to move; 0 never.
    heartbeat_seconds: pause after which an idle stream gets a heartbeat; 0 never.
    audit_log: file that gets a line for each call; "-" is stderr; None for none.
    tracing: None for none.
    worker_threads: threads for prompts; there are as many for images and frames.
    shared_memory_bytes: memory shared with a Triton on the same host, for tensors; 0 sends all tensors over gRPC.
    """

    host: str = "127.0.0.1"
    grpc_port: int = 50051
    http_port: int = 8080
    metrics_host: str | None = None
    metrics_port: int | None = None
    tls: ServerTls | None = None
    access: Access = Access()
    insecure: bool = False
    reflection: bool = True
    model_repository: Path = Path("model_repository")
    triton_url: str | None = None
    triton_tls: TritonTls | None = None
    triton_metrics_url: str | None = None
    scratch: Path | None = None
    load_models: bool = True
    ready_models: tuple[str, ...] = ()
    poll_seconds: float = 1.0
    settling_seconds: float = 0.5
    triton_hang_seconds: float = 10.0
    infer_timeout_seconds: float = 30.0
    drain_seconds: float = 20.0
    drain_delay_seconds: float = 0.0
    stream_max_age_seconds: float = 0.0
    heartbeat_seconds: float = 20.0
    audit_log: Path | None = None
    tracing: Tracing | None = None
    worker_threads: int = 4
    shared_memory_bytes: int = 256 * MEBIBYTE
    limits: Limits = field(default_factory=Limits)
