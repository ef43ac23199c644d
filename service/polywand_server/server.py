"""The service's life: run -> start -> serve -> drain -> stop, each readable top to bottom."""

import asyncio
import errno
import logging
import os
import secrets
import signal
import socket
import threading
from contextlib import AsyncExitStack
from functools import partial
from typing import NoReturn

import cv2
import grpc.aio

from polywand_server import __version__
from polywand_server.config import Settings
from polywand_server.ops import allocation, metrics
from polywand_server.ops.descriptors import ConnectionLimits, connection_limits, raise_limit
from polywand_server.ops.health import Health
from polywand_server.ops.http import HttpServer
from polywand_server.rpc.interceptors import Calls
from polywand_server.rpc.server import SERVICE_NAME, make_grpc_server
from polywand_server.triton.embedded.server import EmbeddedTriton, EmbeddedTritonError
from polywand_server.wiring import TritonProcess, wire
from polywand_server.workers.pool import Workers

log = logging.getLogger(__name__)


# For the last bytes of finished calls to leave.
FLUSH_SECONDS = 0.5
# How long a stop may take after the drain, before the process ends by force.
STOP_SECONDS = 2.5
# For requests that Triton still has when nobody waits for them any more.
TRITON_GRACE_SECONDS = 1.0


class StartError(Exception):
    """The service cannot start; the text says what to do."""


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
        connections = connection_limits(raise_limit())
        async with AsyncExitStack() as stack:
            workers = Workers(self._settings.limits.workers)
            workers.start()
            stack.push_async_callback(workers.close)
            process = await self._find_triton(stack)
            if process is not None:
                await self._serve(stack, process, workers, connections)
        log.info("stopped")

    def _on_signal(self) -> None:
        """Begin to stop; a second signal ends the process at once, and so does a stop that takes too long."""
        if self._stop.is_set():
            _leave("a second signal")
        self._stop.set()
        limit = threading.Timer(self._settings.drain_seconds + STOP_SECONDS, _leave, ["the stop took too long"])
        limit.daemon = True
        limit.start()

    async def _find_triton(self, stack: AsyncExitStack) -> TritonProcess | None:
        """Say where Triton is, after starting our own if none was named; None when told to stop meanwhile."""
        settings = self._settings
        if settings.triton_url is not None:
            return TritonProcess(settings.triton_url, f"polywand-{secrets.token_hex(4)}-")
        if not settings.model_repository.is_dir():
            raise StartError(
                f"there is no model repository at '{settings.model_repository}': name one with --model-repository, "
                "or a Triton elsewhere with --triton-url"
            )
        triton = EmbeddedTriton(settings.model_repository, on_restart=metrics.TRITON_RESTARTS.inc)
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
        return TritonProcess(triton.url, triton.region_prefix, triton.end_model_processes, triton.supervised)

    async def _serve(
        self, stack: AsyncExitStack, process: TritonProcess, workers: Workers, connections: ConnectionLimits
    ) -> None:
        settings = self._settings

        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        parts = wire(stack, settings, process, workers, changed.set)
        registry, ingress = parts.registry, parts.ingress
        metrics.TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))
        health = Health(("", SERVICE_NAME), lambda: registry.ready, lambda: registry.not_ready_reason)

        listener = _listen(settings.host, settings.http_port)
        http = HttpServer(health, connections.http)
        calls = Calls(SERVICE_NAME, ingress)
        most_connections = min(settings.limits.connections, connections.grpc)
        grpc_server = make_grpc_server(settings.limits, most_connections, calls, parts.servicer, health)
        grpc_port = _bind(grpc_server, settings.host, settings.grpc_port)
        await grpc_server.start()
        tasks = [
            asyncio.create_task(registry.run(), name="follow Triton's repository"),
            asyncio.create_task(_publish_changes(health, changed), name="publish health"),
            asyncio.create_task(ingress.run(), name="bound what is on its way"),
            asyncio.create_task(allocation.trim_periodically(), name="return free memory"),
            asyncio.create_task(http.serve_on(listener), name="serve HTTP"),
        ]
        if process.supervised is not None:
            tasks.insert(0, asyncio.create_task(process.supervised(), name="keep Triton running"))
        host, http_port = _in_url(settings.host), listener.getsockname()[1]
        log.info(
            "Polywand %s: gRPC on %s:%d, HTTP on %s:%d, Triton at %s",
            __version__,
            host,
            grpc_port,
            host,
            http_port,
            process.url,
        )
        stopping = asyncio.create_task(self._stop.wait(), name="wait for a signal")
        try:
            finished, _ = await asyncio.wait((*tasks, stopping), return_when=asyncio.FIRST_COMPLETED)
            for task in finished - {stopping}:
                log.critical("the task '%s' ended, which it must not: stopping", task.get_name())
                task.result()
        finally:
            health.drain()
            parts.messages.drain()
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
            log.info("ready" if health.ready else f"waiting: {health.reason}")
        was_ready = health.ready


def _bind(server: grpc.aio.Server, host: str, port: int) -> int:
    """Have a gRPC server listen; returns the port."""
    address = f"{_in_url(host)}:{port}"
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartError(f"cannot listen on {address} (is it in use?): choose another --grpc-port") from error


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
