"""The service's life: run -> start -> serve -> drain -> stop, each readable top to bottom."""

import asyncio
import errno
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import cv2
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from polywand.v1 import annotation_pb2, annotation_pb2_grpc
from polywand_server import __version__
from polywand_server.admission.bodies import Admission
from polywand_server.admission.turns import Turns
from polywand_server.config import Settings
from polywand_server.detectors.places import Places
from polywand_server.images.decoder import Decoder
from polywand_server.images.holders import Holders
from polywand_server.interactors.drawer import Drawer
from polywand_server.interactors.memory import Allowance
from polywand_server.lanes import FRAME_PRIORITY, PROMPT_PRIORITY, Lane, ModelTurns, RightOfWay
from polywand_server.ops import allocation, metrics
from polywand_server.ops.descriptors import Share, raise_limit, share_out
from polywand_server.ops.health import Health
from polywand_server.ops.http import HttpServer
from polywand_server.rpc.ingress import Ingress
from polywand_server.rpc.interceptors import Calls
from polywand_server.rpc.servicer import AnnotationServicer, FrameWork
from polywand_server.session.outbox import Unread
from polywand_server.session.stream import Workplace
from polywand_server.tools.folders import ModelFolders
from polywand_server.tools.loader import EndProcesses, ModelLoader, leave_alone
from polywand_server.tools.registry import Registry
from polywand_server.triton.client import Death, TritonClient
from polywand_server.triton.embedded.server import EmbeddedTriton, EmbeddedTritonError
from polywand_server.triton.shared_memory import SharedMemory, is_on_this_host
from polywand_server.workers.pool import Workers

log = logging.getLogger(__name__)

SERVICE_NAME: str = annotation_pb2.DESCRIPTOR.services_by_name["AnnotationService"].full_name

# For the last bytes of finished calls to leave.
FLUSH_SECONDS = 0.5
# How long a stop may take after the drain, before the process ends by force.
STOP_SECONDS = 2.5
# For requests that Triton still has when nobody waits for them any more.
TRITON_GRACE_SECONDS = 1.0
# Of all connections, that wait to be taken; each costs some 10 kB.
PENDING_CALLS = 10_000
# Of a stream, beyond the message that is being read: a sender 50 ms away still reaches 80 MB/s.
READ_AHEAD_BYTES = 4 << 20
# Of all decoded images, what frames may hold that let others go first.
PAUSED_FRAMES_PART = 4
# Of a call's headers, names and values.
METADATA_BYTES = 16 * 1024


class StartError(Exception):
    """The service cannot start; the text says what to do."""


@dataclass(frozen=True, slots=True)
class _Where:
    """Where Triton is, what the names of the memory that is shared with it begin with, and what ends its processes.

    watch: what keeps our own one running, which ends only when it fails; None for a Triton elsewhere.
    """

    url: str
    memory_prefix: str
    end_model_processes: EndProcesses = leave_alone
    watch: Callable[[], Coroutine[Any, Any, None]] | None = None


class Server:
    """One Polywand service in one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain and stop.

        Raises:
            StartError
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        # OpenCV's own threads would compete with Triton's; parallelism comes from requests.
        cv2.setNumThreads(1)
        allocation.tune()
        connections = share_out(raise_limit())
        async with AsyncExitStack() as stack:
            workers = Workers(self._settings.limits.workers)
            workers.start()
            stack.push_async_callback(workers.close)
            where = await self._find_triton(stack)
            if where is not None:
                await self._serve(stack, where, workers, connections)
        log.info("stopped")

    def _on_signal(self) -> None:
        """Begin to stop; a second signal ends the process at once, and so does a stop that takes too long."""
        if self._stop.is_set():
            _leave("a second signal")
        self._stop.set()
        limit = threading.Timer(self._settings.drain_seconds + STOP_SECONDS, _leave, ["the stop took too long"])
        limit.daemon = True
        limit.start()

    async def _find_triton(self, stack: AsyncExitStack) -> _Where | None:
        """Say where Triton is, after starting our own if none was named; None when told to stop meanwhile."""
        settings = self._settings
        if settings.triton_url is not None:
            return _Where(settings.triton_url, f"polywand-{secrets.token_hex(4)}-")
        if not settings.model_repository.is_dir():
            raise StartError(
                f"there is no model repository at '{settings.model_repository}': name one with --model-repository, "
                "or a Triton elsewhere with --triton-url"
            )
        triton = EmbeddedTriton(
            settings.model_repository,
            hang_timeout_s=settings.triton_hang_seconds,
            on_restart=metrics.TRITON_RESTARTS.inc,
        )
        stack.push_async_callback(partial(triton.stop, TRITON_GRACE_SECONDS))
        starting = asyncio.create_task(triton.start(), name="start Triton")
        stopping = asyncio.create_task(self._stop.wait(), name="wait for a signal")
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return None
        try:
            starting.result()
        except EmbeddedTritonError as error:
            raise StartError(str(error)) from error
        return _Where(triton.url, triton.region_prefix, triton.end_model_processes, triton.watch)

    async def _serve(self, stack: AsyncExitStack, where: _Where, workers: Workers, connections: Share) -> None:
        settings = self._settings

        def on_death(death: Death) -> None:
            loader.revive(death)

        triton = TritonClient(where.url, settings.triton_tls, on_death=on_death)
        stack.push_async_callback(triton.close)
        memory = None
        if settings.shared_memory_bytes and is_on_this_host(where.url):
            memory = SharedMemory(triton, where.memory_prefix, settings.shared_memory_bytes)
            stack.push_async_callback(memory.close)

        limits = settings.limits
        model_turns = ModelTurns(limits.inferences_at_once)

        def inference(kind: str, priority: int, gives_way_to: RightOfWay | None = None) -> Lane:
            threads = ThreadPoolExecutor(settings.worker_threads, thread_name_prefix=kind)
            stack.callback(threads.shutdown, wait=False, cancel_futures=True)
            return Lane(
                *(triton, memory, threads, model_turns),
                thread_count=settings.worker_threads,
                timeout_seconds=settings.infer_timeout_seconds,
                priority=priority,
                gives_way_to=gives_way_to,
            )

        loop, news, changed = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        loader = ModelLoader(
            triton,
            ModelFolders(None if settings.triton_url else settings.model_repository, settings.settling_seconds),
            allowed=settings.load_models,
            on_change=news.set,
            end_processes=where.end_model_processes,
        )
        registry = Registry(
            triton,
            loader,
            ready_models=settings.ready_models,
            poll_seconds=settings.poll_seconds,
            news=news,
            on_change=changed.set,
        )
        precedence, holders = RightOfWay(), Holders()
        frames = inference("frames", FRAME_PRIORITY, gives_way_to=precedence)
        prompts = inference("prompts", PROMPT_PRIORITY)
        place = Workplace(
            registry,
            prompts,
            Decoder(frames, workers, holders, limits),
            Drawer(prompts, workers, limits.work_cpu_seconds),
            precedence,
            Allowance(limits.stream_memory_bytes, limits.memory_bytes),
            holders,
            Unread(limits.stream_reply_bytes, limits.reply_bytes),
            limits,
        )
        frame_work = FrameWork(
            frames,
            Drawer(frames, workers, limits.work_cpu_seconds),
            Places(Turns(limits.frames_in_work, what="frames"), limits.images_bytes // PAUSED_FRAMES_PART),
        )
        ingress = Ingress(limits.bodies_bytes)
        servicer = AnnotationServicer(
            place, frame_work, Admission(limits, lambda: precedence.prompts_expected), ingress
        )
        metrics.TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))
        health = Health(("", SERVICE_NAME), lambda: registry.ready, lambda: registry.why_not_ready)

        listener = _listen(settings.host, settings.http_port)
        http = HttpServer(health, connections.http)
        calls = Calls(SERVICE_NAME, ingress)
        most_connections = min(limits.connections, connections.grpc)
        grpc_server, grpc_port = _grpc_server(settings, most_connections, calls, servicer, health)
        await grpc_server.start()
        tasks = [
            asyncio.create_task(registry.run(), name="follow Triton's repository"),
            asyncio.create_task(_publish_changes(health, changed), name="publish health"),
            asyncio.create_task(ingress.run(), name="bound what is on its way"),
            asyncio.create_task(allocation.give_back_what_is_free(), name="give memory back"),
            asyncio.create_task(http.serve_on(listener), name="serve HTTP"),
        ]
        if where.watch is not None:
            tasks.insert(0, asyncio.create_task(where.watch(), name="keep Triton running"))
        log.info(
            "Polywand %s: gRPC on %s:%d, HTTP on %s:%d, Triton at %s",
            __version__,
            *(_in_url(settings.host), grpc_port, _in_url(settings.host), listener.getsockname()[1], where.url),
        )
        stopping = asyncio.create_task(self._stop.wait(), name="wait for a signal")
        try:
            finished, _ = await asyncio.wait((*tasks, stopping), return_when=asyncio.FIRST_COMPLETED)
            for task in finished - {stopping}:
                log.critical("the task '%s' ended, which it must not: stopping", task.get_name())
                task.result()
        finally:
            health.drain()
            servicer.drain()
            await self._finish_calls(grpc_server, calls)
            http.should_exit = True
            for task in (*tasks[:-1], stopping):
                task.cancel()
            await asyncio.gather(*tasks, stopping, return_exceptions=True)

    async def _finish_calls(self, grpc_server: grpc.aio.Server, calls: Calls) -> None:
        """Accept no more, and wait with a limit for what runs."""
        limit = self._settings.drain_seconds
        log.info("draining: not ready from now on; running requests have %g s to finish", limit)
        stopped = asyncio.create_task(grpc_server.stop(limit + FLUSH_SECONDS), name="stop gRPC")
        await asyncio.sleep(0)  # no call begins any more, before it counts that there is none
        try:
            async with asyncio.timeout(limit):
                await calls.idle()
            log.info("drained")
        except TimeoutError:
            log.warning("requests still ran after %g s: they are cancelled", limit)
        # Last replies leave; those who watch health would stay for ever, and are cut.
        await grpc_server.stop(FLUSH_SECONDS)
        await stopped


def _leave(why: str) -> NoReturn:
    """End this process; its children, and the embedded Triton's launcher, notice, and end as well."""
    log.critical("ending at once: %s", why)
    logging.shutdown()
    os._exit(1)


async def _publish_changes(health: Health, changed: asyncio.Event) -> None:
    was_ready = None
    while True:
        await changed.wait()
        changed.clear()
        health.publish()
        if health.ready != was_ready:
            log.info("ready" if health.ready else f"not ready: {health.reason}")
        was_ready = health.ready


def _grpc_server(
    settings: Settings, most_connections: int, calls: Calls, servicer: AnnotationServicer, health: Health
) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(
        interceptors=[calls],
        options=[
            ("grpc.max_receive_message_length", settings.limits.message_bytes),
            ("grpc.max_send_message_length", -1),
            # A message that unpacks to a thousand times its size is an attack: images are packed by themselves.
            ("grpc.compression_enabled_algorithms_bitset", 1),
            ("grpc.max_concurrent_streams", settings.limits.streams_of_connection),
            ("grpc.max_metadata_size", METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", 2 * METADATA_BYTES),
            ("grpc.max_allowed_incoming_connections", most_connections),
            ("grpc.server_handshake_timeout_ms", 10_000),
            ("grpc.max_connection_idle_ms", 10 * 60_000),
            ("grpc.http2.max_ping_strikes", 2),
            # Past its own number, 1,000, gRPC refuses some of anybody's calls by chance, and a client that begins and
            # resets calls on connection after connection gets there.
            ("grpc.server.max_pending_requests", PENDING_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", 2 * PENDING_CALLS),
            # Widened by what gRPC measures, a stream's window would let a fast sender put 100 MB ahead of our reading.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", READ_AHEAD_BYTES),
            # Two services on one port would share its clients by chance.
            ("grpc.so_reuseport", 0),
            # Clients may ping idle streams this often, and vanished ones are noticed.
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
        ],
    )
    annotation_pb2_grpc.add_AnnotationServiceServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection(
        (SERVICE_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), server
    )
    try:
        port = server.add_insecure_port(f"{_in_url(settings.host)}:{settings.grpc_port}")
    except RuntimeError as error:
        raise StartError(
            f"cannot listen on {_in_url(settings.host)}:{settings.grpc_port} (is it in use?): "
            "choose another --grpc-port"
        ) from error
    return server, port


def _listen(host: str, port: int) -> socket.socket:
    is_ipv6 = ":" in host
    try:
        # As gRPC does: on :: for IPv4 too.
        return socket.create_server(
            (host, port),
            family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
            dualstack_ipv6=is_ipv6 and socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        option = "--http-port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise StartError(
            f"cannot listen on {_in_url(host)}:{port} ({error.strerror}): choose another {option}"
        ) from error


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
