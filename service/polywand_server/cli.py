"""The command `polywand-server`: reads options and environment variables, and runs the service."""

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn, get_args

import click

from polywand_common.console import Command, Number
from polywand_server import __version__
from polywand_server.config import MEBIBYTE, Limits, Settings, TritonTls
from polywand_server.ops import logs
from polywand_server.ops.native_output import NativeOutput
from polywand_server.ops.repeats import quiet_libraries
from polywand_server.server import Server, StartError

log = logging.getLogger(__name__)

_DEFAULTS = Settings()
MAX_SECONDS = 1e6  # the longest of any time: eleven days
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _names(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    """Split a comma-separated list of names."""
    names = tuple(name.strip() for name in value.split(",")) if value.strip() else ()
    if not all(names):
        raise click.BadParameter("a name in the list is empty")
    return tuple(dict.fromkeys(names))


@click.command(
    cls=Command,
    context_settings={
        "auto_envvar_prefix": "POLYWAND",
        "show_default": True,
        "max_content_width": 110,
        "help_option_names": ["-h", "--help"],
    },
)
@click.version_option(__version__, allow_from_autoenv=False)
@click.option(
    "--host",
    default=_DEFAULTS.host,
    show_envvar=True,
    help="Address to listen on; 0.0.0.0 for all of IPv4, :: for IPv6 too.",
)
@click.option(
    "--grpc-port",
    default=_DEFAULTS.grpc_port,
    type=click.IntRange(0, 65535),
    show_envvar=True,
    help="Port of the annotation service, gRPC health and reflection. 0: any free port; the log says which.",
)
@click.option(
    "--http-port",
    default=_DEFAULTS.http_port,
    type=click.IntRange(0, 65535),
    show_envvar=True,
    help="Port of /metrics, /livez and /readyz. 0: any free port; the log says which.",
)
@click.option(
    "--model-repository",
    default=_DEFAULTS.model_repository,
    type=click.Path(path_type=Path),
    show_envvar=True,
    help="Model repository of the embedded Triton. Not used with --triton-url.",
)
@click.option(
    "--triton-url",
    show_envvar=True,
    help="host:port of an external Triton's gRPC service. Default: the service starts its own Triton and monitors it.",
)
@click.option("--triton-tls", is_flag=True, show_envvar=True, help="Use TLS for --triton-url.")
@click.option(
    "--triton-tls-ca", type=_FILE, show_envvar=True, help="PEM root certificates to trust instead of the system's."
)
@click.option("--triton-tls-key", type=_FILE, show_envvar=True, help="PEM private key, for mutual TLS.")
@click.option("--triton-tls-cert", type=_FILE, show_envvar=True, help="PEM certificate chain, for mutual TLS.")
@click.option(
    "--load-models/--no-load-models",
    default=None,
    show_envvar=True,
    help="Load all models of Triton's repository (needs explicit model control in Triton). "
    "Default: yes with the embedded Triton, no with --triton-url.",
)
@click.option(
    "--ready-models",
    default="",
    callback=_names,
    show_default=False,
    show_envvar=True,
    metavar="NAME,NAME...",
    help="Tools, or models with all their tools, that must be ready before the service is. "
    "Default: every model was tried once, and at least one tool is ready.",
)
@click.option(
    "--poll-seconds",
    default=_DEFAULTS.poll_seconds,
    type=Number(0.1, MAX_SECONDS),
    show_envvar=True,
    help="Interval between polls of Triton's model index.",
)
@click.option(
    "--settling-seconds",
    default=_DEFAULTS.settling_seconds,
    type=Number(0, MAX_SECONDS),
    show_envvar=True,
    help="How long a model's files must not have changed before they are loaded: longer where copies stall.",
)
@click.option(
    "--triton-hang-seconds",
    default=_DEFAULTS.triton_hang_seconds,
    type=Number(0.5, MAX_SECONDS),
    show_envvar=True,
    help="How long the embedded Triton may leave probes unanswered before it is restarted.",
)
@click.option(
    "--infer-timeout-seconds",
    default=_DEFAULTS.infer_timeout_seconds,
    type=Number(0.1, MAX_SECONDS),
    show_envvar=True,
    help="Longest wait for one inference, including Triton's queue.",
)
@click.option(
    "--drain-seconds",
    default=_DEFAULTS.drain_seconds,
    type=Number(0, MAX_SECONDS),
    show_envvar=True,
    help="Time for running requests to finish after SIGTERM.",
)
@click.option(
    "--worker-threads",
    default=_DEFAULTS.worker_threads,
    type=click.IntRange(1),
    show_envvar=True,
    help="Threads that cut crops and trace polygons for prompts. As many again decode images and work on frames.",
)
@click.option(
    "--shared-memory-mebibytes",
    default=_DEFAULTS.shared_memory_bytes // MEBIBYTE,
    type=click.IntRange(0),
    show_envvar=True,
    help="Memory shared with a Triton on this host, for tensors. Tensors that do not fit go over gRPC; with 0, all do.",
)
@click.option(
    "--max-image-mebibytes",
    default=_DEFAULTS.limits.image_bytes // MEBIBYTE,
    type=click.IntRange(1, 1000),
    show_envvar=True,
    help="Largest image, encoded or raw. A message more than a quarter larger ends its stream.",
)
@click.option(
    "--max-image-pixels",
    default=_DEFAULTS.limits.image_pixels,
    type=click.IntRange(1),
    show_envvar=True,
    help="Most pixels of an image, checked in its header before decoding.",
)
@click.option(
    "--max-objects",
    default=_DEFAULTS.limits.objects,
    type=click.IntRange(1),
    show_envvar=True,
    help="Most objects on one image of a stream.",
)
@click.option(
    "--images-mebibytes",
    default=_DEFAULTS.limits.images_bytes // MEBIBYTE,
    type=click.IntRange(1),
    show_envvar=True,
    help="Memory for decoded images of all streams and frames (4 bytes a pixel), and for decoding them. Beyond it, "
    "images are refused with RESOURCE_EXHAUSTED.",
)
@click.option(
    "--kept-images-mebibytes",
    default=_DEFAULTS.limits.kept_images_bytes // MEBIBYTE,
    type=click.IntRange(0),
    show_envvar=True,
    help="Of this memory, for images that no stream or request uses now: one that is opened again needs no decoding. "
    "They give way to all others.",
)
@click.option(
    "--stream-memory-mebibytes",
    default=_DEFAULTS.limits.stream_memory_bytes // MEBIBYTE,
    type=click.IntRange(0),
    show_envvar=True,
    help="Memory for probability maps of one stream, kept for undo and refinement.",
)
@click.option(
    "--memory-mebibytes",
    default=_DEFAULTS.limits.memory_bytes // MEBIBYTE,
    type=click.IntRange(0),
    show_envvar=True,
    help="Memory for probability maps of all streams. With many streams, each gets an equal share.",
)
@click.option(
    "--stream-inflight",
    default=_DEFAULTS.limits.stream_inflight,
    type=click.IntRange(1),
    show_envvar=True,
    help="Prompts of one stream, of different objects, in progress at the same time.",
)
@click.option(
    "--prompt-timeout-seconds",
    default=_DEFAULTS.limits.prompt_seconds,
    type=click.FloatRange(0.1),
    show_envvar=True,
    help="Longest time for one prompt: all passes of all its clicks.",
)
@click.option(
    "--frames-in-flight",
    default=_DEFAULTS.limits.frames_in_flight,
    type=click.IntRange(1),
    show_envvar=True,
    help="Frames of one DetectStream that were received and not answered yet.",
)
@click.option(
    "--frames-in-work",
    default=_DEFAULTS.limits.frames_in_work,
    type=click.IntRange(1),
    show_envvar=True,
    help="Frames of all streams in progress at the same time. Few frames keep clicks fast; a GPU needs more.",
)
@click.option(
    "--max-connections",
    default=_DEFAULTS.limits.connections,
    type=click.IntRange(1),
    show_envvar=True,
    help="Most connections to the gRPC port.",
)
@click.option(
    "--max-connection-streams",
    default=_DEFAULTS.limits.streams_of_connection,
    type=click.IntRange(1),
    show_envvar=True,
    help="Concurrent calls of one connection, including streams. Further calls wait.",
)
@click.option(
    "--calls-at-once",
    default=_DEFAULTS.limits.calls_at_once,
    type=click.IntRange(1),
    show_envvar=True,
    help="Detect calls being received or in progress at the same time.",
)
@click.option(
    "--calls-waiting",
    default=_DEFAULTS.limits.calls_waiting,
    type=click.IntRange(1),
    show_envvar=True,
    help="Detect calls that wait in line. Beyond it, calls are refused with RESOURCE_EXHAUSTED.",
)
@click.option(
    "--bodies-mebibytes",
    default=_DEFAULTS.limits.bodies_bytes // MEBIBYTE,
    type=click.IntRange(1),
    show_envvar=True,
    help="Memory for received images that are not decoded yet, of all clients. One client may have half of it.",
)
@click.option(
    "--stream-replies-mebibytes",
    default=_DEFAULTS.limits.stream_reply_bytes // MEBIBYTE,
    type=click.IntRange(1),
    show_envvar=True,
    help="Memory for replies that a stream's client has not read. Beyond it, the stream's next answer waits.",
)
@click.option(
    "--replies-mebibytes",
    default=_DEFAULTS.limits.reply_bytes // MEBIBYTE,
    type=click.IntRange(1),
    show_envvar=True,
    help="Memory for unread replies of all streams. Beyond it, the stream with the most is ended.",
)
@click.option(
    "--inferences-at-once",
    default=_DEFAULTS.limits.inferences_at_once,
    type=click.IntRange(1),
    show_envvar=True,
    help="Inferences sent to one model at the same time; clients take turns. A GPU needs two batches.",
)
@click.option(
    "--worker-processes",
    default=_DEFAULTS.limits.workers,
    type=click.IntRange(1),
    show_envvar=True,
    help="Most child processes at the same time, for large images and outlines.",
)
@click.option(
    "--work-cpu-seconds",
    default=_DEFAULTS.limits.work_cpu_seconds,
    type=click.IntRange(1),
    show_envvar=True,
    help="CPU time for decoding one image or drawing one outline in a child process.",
)
@click.option(
    "--decoder-mebibytes",
    default=_DEFAULTS.limits.decoder_bytes // MEBIBYTE,
    type=click.IntRange(64),
    show_envvar=True,
    help="Memory of one image's decoder, without the pixels.",
)
@click.option(
    "--log-level",
    default="info",
    type=click.Choice(["debug", "info", "warning", "error"]),
    show_envvar=True,
    help="Lowest level that is logged. The log goes to stderr.",
)
@click.option(
    "--log-format",
    default="text",
    type=click.Choice(get_args(logs.Format)),
    show_envvar=True,
    help="Format of the log: text, or one JSON object per line.",
)
def main(
    triton_tls: bool,
    triton_tls_ca: Path | None,
    triton_tls_key: Path | None,
    triton_tls_cert: Path | None,
    load_models: bool | None,
    max_image_mebibytes: int,
    max_image_pixels: int,
    max_objects: int,
    images_mebibytes: int,
    kept_images_mebibytes: int,
    stream_memory_mebibytes: int,
    memory_mebibytes: int,
    stream_inflight: int,
    prompt_timeout_seconds: float,
    frames_in_flight: int,
    frames_in_work: int,
    max_connections: int,
    max_connection_streams: int,
    calls_at_once: int,
    calls_waiting: int,
    bodies_mebibytes: int,
    stream_replies_mebibytes: int,
    replies_mebibytes: int,
    inferences_at_once: int,
    worker_processes: int,
    work_cpu_seconds: int,
    decoder_mebibytes: int,
    shared_memory_mebibytes: int,
    log_level: str,
    log_format: logs.Format,
    **settings: object,
) -> None:
    """Serve semi-automatic image annotation: clicks in, polygons out.

    Every option can also be set by its environment variable. SIGTERM drains: health changes to NOT_SERVING, running
    requests finish, streams are told to reconnect, and the embedded Triton stops.
    """
    if (triton_tls_key is None) != (triton_tls_cert is None):
        raise click.UsageError("--triton-tls-key and --triton-tls-cert belong together: give both or none")
    use_tls = triton_tls or triton_tls_ca is not None or triton_tls_key is not None
    if use_tls and settings["triton_url"] is None:
        raise click.UsageError("TLS to Triton needs --triton-url: the embedded Triton listens on a private socket")
    logs.configure(log_level.upper(), log_format)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    quiet_libraries()
    limits = Limits(
        image_bytes=max_image_mebibytes * MEBIBYTE,
        image_pixels=max_image_pixels,
        objects=max_objects,
        images_bytes=images_mebibytes * MEBIBYTE,
        kept_images_bytes=kept_images_mebibytes * MEBIBYTE,
        stream_memory_bytes=stream_memory_mebibytes * MEBIBYTE,
        memory_bytes=memory_mebibytes * MEBIBYTE,
        stream_inflight=stream_inflight,
        prompt_seconds=prompt_timeout_seconds,
        frames_in_flight=frames_in_flight,
        frames_in_work=frames_in_work,
        connections=max_connections,
        streams_of_connection=max_connection_streams,
        calls_at_once=calls_at_once,
        calls_waiting=calls_waiting,
        bodies_bytes=bodies_mebibytes * MEBIBYTE,
        stream_reply_bytes=stream_replies_mebibytes * MEBIBYTE,
        reply_bytes=replies_mebibytes * MEBIBYTE,
        inferences_at_once=inferences_at_once,
        workers=worker_processes,
        work_cpu_seconds=work_cpu_seconds,
        decoder_bytes=decoder_mebibytes * MEBIBYTE,
    )
    complete = Settings(
        triton_tls=TritonTls(triton_tls_ca, triton_tls_key, triton_tls_cert) if use_tls else None,
        load_models=settings["triton_url"] is None if load_models is None else load_models,
        limits=limits,
        shared_memory_bytes=shared_memory_mebibytes * MEBIBYTE,
        **settings,  # type: ignore[arg-type]  # each option has the name and type of its setting
    )
    native_output = NativeOutput()
    native_output.start()
    try:
        asyncio.run(_run(complete, native_output))
    except StartError as error:
        log.critical("cannot start: %s", error)
        sys.exit(1)
    except Exception:
        log.critical("stopped by an unexpected error", exc_info=True)
        sys.exit(1)
    finally:
        native_output.stop()


async def _run(settings: Settings, native_output: NativeOutput) -> NoReturn:
    """Serve until stopped; then exit at once, without waiting for threads that still compute."""
    await Server(settings).run()
    native_output.stop()
    logging.shutdown()
    os._exit(0)
