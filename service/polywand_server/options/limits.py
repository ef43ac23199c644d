"""Options of limits: of one request, of one client, and of all together."""

from typing import Any

import click

from polywand_server.budgets import budgets
from polywand_server.config import MEBIBYTE, Limits, Settings
from polywand_server.ops.container import shared_memory_bytes, usable_memory

_DEFAULTS = Settings()

OPTIONS = (
    click.option(
        "--worker-threads",
        default=_DEFAULTS.worker_threads,
        type=click.IntRange(1),
        show_envvar=True,
        help="Threads that cut crops and trace polygons for prompts. As many again decode images and work on frames.",
    ),
    click.option(
        "--max-image-mebibytes",
        default=_DEFAULTS.limits.image_bytes // MEBIBYTE,
        type=click.IntRange(1, 1000),
        show_envvar=True,
        help="Largest image, encoded or raw. A message more than a quarter larger ends its stream.",
    ),
    click.option(
        "--max-image-pixels",
        default=_DEFAULTS.limits.image_pixels,
        type=click.IntRange(1),
        show_envvar=True,
        help="Most pixels of an image, checked in its header before decoding.",
    ),
    click.option(
        "--max-objects",
        default=_DEFAULTS.limits.objects,
        type=click.IntRange(1),
        show_envvar=True,
        help="Most objects on one image of a stream.",
    ),
    click.option(
        "--images-mebibytes",
        type=click.IntRange(1),
        show_envvar=True,
        help="Memory for decoded images of all streams and frames (4 bytes a pixel), and for decoding them. Beyond it, "
        "images are refused with RESOURCE_EXHAUSTED. Default: of the memory there is, at most 4096.",
    ),
    click.option(
        "--kept-images-mebibytes",
        type=click.IntRange(0),
        show_envvar=True,
        help="Of this memory, for images that no stream or request uses now: one that is opened again needs no "
        "decoding. They give way to all others. Default: a quarter of --images-mebibytes, at most 1024.",
    ),
    click.option(
        "--stream-memory-mebibytes",
        default=_DEFAULTS.limits.stream_memory_bytes // MEBIBYTE,
        type=click.IntRange(0),
        show_envvar=True,
        help="Memory for probability maps of one stream, kept for undo and refinement.",
    ),
    click.option(
        "--memory-mebibytes",
        type=click.IntRange(0),
        show_envvar=True,
        help="Memory for probability maps of all streams. With many streams, each gets an equal share. "
        "Default: of the memory there is, at most 2048.",
    ),
    click.option(
        "--stream-inflight",
        default=_DEFAULTS.limits.stream_inflight,
        type=click.IntRange(1),
        show_envvar=True,
        help="Prompts of one stream, of different objects, in progress at the same time.",
    ),
    click.option(
        "--prompt-timeout-seconds",
        default=_DEFAULTS.limits.prompt_seconds,
        type=click.FloatRange(0.1),
        show_envvar=True,
        help="Longest time for one prompt: all passes of all its clicks.",
    ),
    click.option(
        "--frames-in-flight",
        default=_DEFAULTS.limits.frames_in_flight,
        type=click.IntRange(1),
        show_envvar=True,
        help="Frames of one DetectStream that were received and not answered yet.",
    ),
    click.option(
        "--frames-in-work",
        default=_DEFAULTS.limits.frames_in_work,
        type=click.IntRange(1),
        show_envvar=True,
        help="Frames of all streams in progress at the same time. Few frames keep clicks fast; a GPU needs more.",
    ),
    click.option(
        "--max-connections",
        default=_DEFAULTS.limits.connections,
        type=click.IntRange(1),
        show_envvar=True,
        help="Most connections to the gRPC port.",
    ),
    click.option(
        "--max-connection-streams",
        default=_DEFAULTS.limits.streams_of_connection,
        type=click.IntRange(1),
        show_envvar=True,
        help="Concurrent calls of one connection, including streams. Further calls wait.",
    ),
    click.option(
        "--calls-at-once",
        default=_DEFAULTS.limits.calls_at_once,
        type=click.IntRange(1),
        show_envvar=True,
        help="Detect calls being received or in progress at the same time.",
    ),
    click.option(
        "--calls-waiting",
        default=_DEFAULTS.limits.calls_waiting,
        type=click.IntRange(1),
        show_envvar=True,
        help="Detect calls that wait in line. Beyond it, calls are refused with RESOURCE_EXHAUSTED.",
    ),
    click.option(
        "--bodies-mebibytes",
        type=click.IntRange(1),
        show_envvar=True,
        help="Memory for received images that are not decoded yet, of all clients. One client may have half of it. "
        "Default: of the memory there is, at most 1024.",
    ),
    click.option(
        "--stream-replies-mebibytes",
        default=_DEFAULTS.limits.stream_reply_bytes // MEBIBYTE,
        type=click.IntRange(1),
        show_envvar=True,
        help="Memory for replies that a stream's client has not read. Beyond it, the stream's next answer waits.",
    ),
    click.option(
        "--replies-mebibytes",
        type=click.IntRange(1),
        show_envvar=True,
        help="Memory for unread replies of all streams. Beyond it, the stream with the most is ended. "
        "Default: of the memory there is, at most 256.",
    ),
    click.option(
        "--inferences-at-once",
        default=_DEFAULTS.limits.inferences_at_once,
        type=click.IntRange(1),
        show_envvar=True,
        help="Inferences sent to one model at the same time; clients take turns. A GPU needs two batches.",
    ),
    click.option(
        "--worker-processes",
        default=_DEFAULTS.limits.workers,
        type=click.IntRange(1),
        show_envvar=True,
        help="Most child processes at the same time, for large images and outlines.",
    ),
    click.option(
        "--work-cpu-seconds",
        default=_DEFAULTS.limits.work_cpu_seconds,
        type=click.IntRange(1),
        show_envvar=True,
        help="CPU time for decoding one image or drawing one outline in a child process.",
    ),
    click.option(
        "--decoder-mebibytes",
        type=click.IntRange(64),
        show_envvar=True,
        help="Memory of one image's decoder, without the pixels. Default: of the memory there is, at most 2560.",
    ),
    click.option(
        "--shared-memory-mebibytes",
        type=click.IntRange(0),
        show_envvar=True,
        help="Memory shared with a Triton on this host, for tensors. Tensors that do not fit go over gRPC; with 0, all "
        "do. Default: of the memory there is, at most 256.",
    ),
)


def take(given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of these options. given: with that of --triton-url too, which stays."""
    has_triton = given["triton_url"] is None
    budget = budgets(usable_memory().nbytes, shared_memory_bytes(), has_triton=has_triton)
    if given["kept_images_mebibytes"] is None and given["images_mebibytes"] is not None:
        given["kept_images_mebibytes"] = min(
            given["images_mebibytes"] // 4, _DEFAULTS.limits.kept_images_bytes // MEBIBYTE
        )

    def memory(option: str, default: int) -> int:
        mebibytes: int | None = given.pop(f"{option}_mebibytes")
        return default if mebibytes is None else mebibytes * MEBIBYTE

    limits = Limits(
        image_bytes=given.pop("max_image_mebibytes") * MEBIBYTE,
        image_pixels=given.pop("max_image_pixels"),
        objects=given.pop("max_objects"),
        images_bytes=memory("images", budget.images_bytes),
        kept_images_bytes=memory("kept_images", budget.kept_images_bytes),
        stream_memory_bytes=given.pop("stream_memory_mebibytes") * MEBIBYTE,
        memory_bytes=memory("memory", budget.memory_bytes),
        stream_inflight=given.pop("stream_inflight"),
        prompt_seconds=given.pop("prompt_timeout_seconds"),
        frames_in_flight=given.pop("frames_in_flight"),
        frames_in_work=given.pop("frames_in_work"),
        connections=given.pop("max_connections"),
        streams_of_connection=given.pop("max_connection_streams"),
        calls_at_once=given.pop("calls_at_once"),
        calls_waiting=given.pop("calls_waiting"),
        bodies_bytes=memory("bodies", budget.bodies_bytes),
        stream_reply_bytes=given.pop("stream_replies_mebibytes") * MEBIBYTE,
        reply_bytes=memory("replies", budget.reply_bytes),
        inferences_at_once=given.pop("inferences_at_once"),
        workers=given.pop("worker_processes"),
        work_cpu_seconds=given.pop("work_cpu_seconds"),
        decoder_bytes=memory("decoder", budget.decoder_bytes),
    )
    return {
        "limits": limits,
        "worker_threads": given.pop("worker_threads"),
        "shared_memory_bytes": memory("shared_memory", budget.shared_memory_bytes),
    }
