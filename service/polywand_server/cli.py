"""The command `polywand-server`: options and environment variables to settings, and nothing else."""

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from polywand.console import Command, Number
from polywand_server import __version__
from polywand_server.config import MEBIBYTE, Limits, Settings, TritonTls
from polywand_server.ops.native import NativeOutput
from polywand_server.ops.sparing import spare_libraries
from polywand_server.server import Server, StartError

_DEFAULTS = Settings()
MAX_SECONDS = 1e6  # of any wait: eleven days
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _names(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    """Return the names in a list with commas."""
    names = tuple(name.strip() for name in value.split(",")) if value.strip() else ()
    if not all(names):
        raise click.BadParameter("a name between two commas is empty")
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
    help="Port of the annotation service, gRPC health and reflection. 0 takes a free one and logs it.",
)
@click.option(
    "--http-port",
    default=_DEFAULTS.http_port,
    type=click.IntRange(0, 65535),
    show_envvar=True,
    help="Port of /metrics, /livez and /readyz. 0 takes a free one and logs it.",
)
@click.option(
    "--model-repository",
    default=_DEFAULTS.model_repository,
    type=click.Path(path_type=Path),
    show_envvar=True,
    help="Triton model repository that the embedded Triton serves. Not read with --triton-url.",
)
@click.option(
    "--triton-url",
    show_envvar=True,
    help="host:port of the gRPC service of a Triton elsewhere. Without it, the service starts and watches its own.",
)
@click.option("--triton-tls", is_flag=True, show_envvar=True, help="Speak TLS to --triton-url.")
@click.option("--triton-tls-ca", type=_FILE, show_envvar=True, help="PEM roots to trust instead of the system's.")
@click.option("--triton-tls-key", type=_FILE, show_envvar=True, help="PEM private key, for mutual TLS.")
@click.option("--triton-tls-cert", type=_FILE, show_envvar=True, help="PEM certificate chain, for mutual TLS.")
@click.option(
    "--load-models/--no-load-models",
    default=None,
    show_envvar=True,
    help="Ask Triton to load what its repository holds (needs its explicit model control). "
    "Default: yes for the embedded one, no with --triton-url.",
)
@click.option(
    "--ready-models",
    default="",
    callback=_names,
    show_default=False,
    show_envvar=True,
    metavar="NAME,NAME...",
    help="Tools, or models with all their tools, that have to be ready for the service to be. "
    "Default: every model has to be tried once, and some tool be ready.",
)
@click.option(
    "--poll-seconds",
    default=_DEFAULTS.poll_seconds,
    type=Number(0.1, MAX_SECONDS),
    show_envvar=True,
    help="Between two looks at which models Triton has.",
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
    help="Longest wait for one inference, its place in Triton's queue included.",
)
@click.option(
    "--drain-seconds",
    default=_DEFAULTS.drain_seconds,
    type=Number(0, MAX_SECONDS),
    show_envvar=True,
    help="How long running requests may take to finish after SIGTERM.",
)
@click.option(
    "--worker-threads",
    default=_DEFAULTS.worker_threads,
    type=click.IntRange(1),
    show_envvar=True,
    help="Threads that cut crops and trace polygons for prompts; as many decode images and work on frames.",
)
@click.option(
    "--shared-memory-mebibytes",
    default=_DEFAULTS.shared_memory_bytes // MEBIBYTE,
    type=click.IntRange(0),
    show_envvar=True,
    help="Memory through which tensors reach a Triton on this host; what does not fit, and all with 0, goes by gRPC.",
)
@click.option(
    "--max-image-mebibytes",
    default=_DEFAULTS.limits.image_bytes // MEBIBYTE,
    type=click.IntRange(1, 1000),
    show_envvar=True,
    help="Largest image, encoded or raw. A message a quarter larger than that ends its stream.",
)
@click.option(
    "--max-image-pixels",
    default=_DEFAULTS.limits.image_pixels,
    type=click.IntRange(1),
    show_envvar=True,
    help="Largest image in pixels, read in its header before anything is decoded.",
)
@click.option(
    "--max-objects",
    default=_DEFAULTS.limits.objects,
    type=click.IntRange(1),
    show_envvar=True,
    help="Objects that one stream may work on, on one image.",
)
@click.option(
    "--images-mebibytes",
    default=_DEFAULTS.limits.images_bytes // MEBIBYTE,
    type=click.IntRange(1),
    show_envvar=True,
    help="Decoded images of all streams and frames together (4 bytes a pixel). More are told to try again later.",
)
@click.option(
    "--stream-memory-mebibytes",
    default=_DEFAULTS.limits.stream_memory_bytes // MEBIBYTE,
    type=click.IntRange(0),
    show_envvar=True,
    help="Probability maps that one stream remembers for undo and refinement.",
)
@click.option(
    "--memory-mebibytes",
    default=_DEFAULTS.limits.memory_bytes // MEBIBYTE,
    type=click.IntRange(0),
    show_envvar=True,
    help="Probability maps of all streams together; when there are many streams, each remembers its share.",
)
@click.option(
    "--stream-inflight",
    default=_DEFAULTS.limits.stream_inflight,
    type=click.IntRange(1),
    show_envvar=True,
    help="Prompts of different objects of one stream that are in work together.",
)
@click.option(
    "--prompt-timeout-seconds",
    default=_DEFAULTS.limits.prompt_seconds,
    type=click.FloatRange(0.1),
    show_envvar=True,
    help="Longest work on one prompt, all passes of all its clicks together.",
)
@click.option(
    "--frames-in-flight",
    default=_DEFAULTS.limits.frames_in_flight,
    type=click.IntRange(1),
    show_envvar=True,
    help="Frames of one DetectStream that are taken from the wire and not answered yet.",
)
@click.option(
    "--frames-in-work",
    default=_DEFAULTS.limits.frames_in_work,
    type=click.IntRange(1),
    show_envvar=True,
    help="Frames of all streams that are decoded or at Triton together. Few keep clicks quick; a GPU wants more.",
)
@click.option(
    "--max-connections",
    default=_DEFAULTS.limits.connections,
    type=click.IntRange(1),
    show_envvar=True,
    help="Connections to the gRPC port.",
)
@click.option(
    "--max-connection-streams",
    default=_DEFAULTS.limits.streams_of_connection,
    type=click.IntRange(1),
    show_envvar=True,
    help="Calls of one connection at the same time, streams included; more wait for one to end.",
)
@click.option(
    "--calls-at-once",
    default=_DEFAULTS.limits.calls_at_once,
    type=click.IntRange(1),
    show_envvar=True,
    help="Detect calls whose image is read from the wire or in work.",
)
@click.option(
    "--calls-waiting",
    default=_DEFAULTS.limits.calls_waiting,
    type=click.IntRange(1),
    show_envvar=True,
    help="Detect calls that wait for that; more are told to come back.",
)
@click.option(
    "--bodies-mebibytes",
    default=_DEFAULTS.limits.bodies_bytes // MEBIBYTE,
    type=click.IntRange(1),
    show_envvar=True,
    help="Images that were sent and wait to be decoded, of all clients together; one client may have half of it.",
)
@click.option(
    "--stream-replies-mebibytes",
    default=_DEFAULTS.limits.stream_reply_bytes // MEBIBYTE,
    type=click.IntRange(1),
    show_envvar=True,
    help="Replies that wait for one stream's reader, before its next answer waits.",
)
@click.option(
    "--replies-mebibytes",
    default=_DEFAULTS.limits.reply_bytes // MEBIBYTE,
    type=click.IntRange(1),
    show_envvar=True,
    help="Replies that wait for the readers of all streams; beyond it the stream that has most is ended.",
)
@click.option(
    "--inferences-at-once",
    default=_DEFAULTS.limits.inferences_at_once,
    type=click.IntRange(1),
    show_envvar=True,
    help="Inferences that one model in Triton is given together; clients take turns. A GPU wants two batches.",
)
@click.option(
    "--worker-processes",
    default=_DEFAULTS.limits.workers,
    type=click.IntRange(1),
    show_envvar=True,
    help="Child processes that work together on images and outlines that take long.",
)
@click.option(
    "--work-cpu-seconds",
    default=_DEFAULTS.limits.work_cpu_seconds,
    type=click.IntRange(1),
    show_envvar=True,
    help="Processor time that decoding one image, or drawing one outline, may take.",
)
@click.option(
    "--decoder-mebibytes",
    default=_DEFAULTS.limits.decoder_bytes // MEBIBYTE,
    type=click.IntRange(64),
    show_envvar=True,
    help="Memory that the decoder of one image may take beside its pixels.",
)
@click.option(
    "--log-level",
    default="info",
    type=click.Choice(["debug", "info", "warning", "error"]),
    show_envvar=True,
    help="What to log to stderr.",
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
    **settings: object,
) -> None:
    """Serve semi-automatic image annotation: clicks in, polygons out.

    Every option is also an environment variable. SIGTERM drains: health turns NOT_SERVING, running requests finish,
    streams are told to reconnect, the embedded Triton is stopped.
    """
    if (triton_tls_key is None) != (triton_tls_cert is None):
        raise click.UsageError("--triton-tls-key and --triton-tls-cert belong together")
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    spare_libraries()
    use_tls = triton_tls or triton_tls_ca is not None or triton_tls_key is not None
    if use_tls and settings["triton_url"] is None:
        raise click.UsageError("TLS to Triton needs --triton-url: the embedded one listens on a private socket")
    limits = Limits(
        image_bytes=max_image_mebibytes * MEBIBYTE,
        image_pixels=max_image_pixels,
        objects=max_objects,
        images_bytes=images_mebibytes * MEBIBYTE,
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
        **settings,  # type: ignore[arg-type]  # each option is named and typed as its setting
    )
    native_output = NativeOutput()
    native_output.start()
    try:
        asyncio.run(_run(complete, native_output))
    except StartError as error:
        raise click.ClickException(str(error)) from error
    finally:
        native_output.stop()


async def _run(settings: Settings, native_output: NativeOutput) -> NoReturn:
    """Serve until told to stop; then end this process at once, whatever threads of it still compute."""
    await Server(settings).run()
    native_output.stop()
    logging.shutdown()
    os._exit(0)
