"""All settings of the service: made once at the top, checked once, passed down."""

from dataclasses import dataclass, field
from pathlib import Path

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may ask for; beyond it a request gets an error that names the limit.

    image_bytes: of one encoded or raw image.
    image_pixels: of one image; checked in its header, before memory is spent on it.
    objects: of one image in one stream.
    images_bytes: of all decoded images that are alive, of all streams and frames.
    stream_memory_bytes: of remembered probability maps in one stream; the oldest go first.
    memory_bytes: of those of all streams; divided evenly when there are many.
    stream_inflight: prompts of different objects of one stream that are in work, until their replies wait to leave.
    prompt_seconds: for one prompt, all passes of all its clicks together, from when it is taken into work.
    frames_in_flight: frames of one DetectStream whose answers wait or are in work.
    frames_in_work: frames of all streams that are decoded or at Triton together.
    calls_at_once: unary calls with an image whose message is read or in work. calls_waiting: those that wait for that.
    bodies_bytes: of messages with images that are not decoded yet, of all clients; one client may have half of it.
    stream_reply_bytes: of one stream's replies that wait for its reader, before its next answer waits.
    reply_bytes: of those of all streams; beyond it, the stream that has most is ended.
    inferences_at_once: that one model in Triton is given together, of prompts and frames; where several clients are
        active they share them.
    connections: to the gRPC port. streams_of_connection: calls of one connection at the same time.
    workers: child processes at work together, on what is not done in a moment.
    work_cpu_seconds: of the processor, for what is not done in a moment: decoding one image, drawing one outline.
    decoder_bytes: what the decoder of one image may take beside the pixels.
    """

    image_bytes: int = 128 * MEBIBYTE
    image_pixels: int = 100_000_000
    objects: int = 1000
    images_bytes: int = 4096 * MEBIBYTE
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
        """Largest gRPC message: leaves an image slightly over its limit room to get a reply that says so."""
        return self.image_bytes * 5 // 4


@dataclass(frozen=True, slots=True)
class TritonTls:
    """PEM files for a Triton behind TLS. root_certificates None: the system's; key and chain: for mutual TLS."""

    root_certificates: Path | None = None
    private_key: Path | None = None
    certificate_chain: Path | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """How this process runs.

    triton_url: host:port of a Triton elsewhere; None starts the embedded one on model_repository.
    load_models: ask Triton to load every model of its repository that it has not been asked for yet, and from the
        embedded one's repository again what has changed.
    ready_models: tools, or models with all their tools, that have to be ready for the service to be. None: all models
        have to be tried once.
    poll_seconds: between two looks at Triton's repository index.
    settling_seconds: how long a model's files must not have changed before they are loaded or unloaded.
    triton_hang_seconds: how long the embedded Triton may leave probes unanswered before it is restarted.
    infer_timeout_seconds: for one inference, its wait in Triton's queue included.
    drain_seconds: for running requests to finish after SIGTERM.
    worker_threads: for prompts, and as many for images and frames.
    shared_memory_bytes: between this process and a Triton on the same host; 0 sends all tensors.
    """

    host: str = "127.0.0.1"
    grpc_port: int = 50051
    http_port: int = 8080
    model_repository: Path = Path("model_repository")
    triton_url: str | None = None
    triton_tls: TritonTls | None = None
    load_models: bool = True
    ready_models: tuple[str, ...] = ()
    poll_seconds: float = 1.0
    settling_seconds: float = 0.5
    triton_hang_seconds: float = 10.0
    infer_timeout_seconds: float = 30.0
    drain_seconds: float = 20.0
    worker_threads: int = 4
    shared_memory_bytes: int = 256 * MEBIBYTE
    limits: Limits = field(default_factory=Limits)
