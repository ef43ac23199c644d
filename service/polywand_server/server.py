"""The service's process: run -> start -> serve -> drain -> stop."""

import asyncio
import logging
import os
import signal
import threading
from contextlib import AsyncExitStack
from typing import NoReturn

import cv2

from polywand_server import __version__
from polywand_server.config import Settings
from polywand_server.ops import allocation, tracing
from polywand_server.ops.descriptors import ConnectionLimits, connection_limits, raise_limit
from polywand_server.ops.event_loop import measure_delay
from polywand_server.ops.health import Health
from polywand_server.ports import Ports, StartError
from polywand_server.rpc.server import GrpcServer
from polywand_server.triton.location import TritonLocation, TritonStartError, locate_triton
from polywand_server.wiring import SettingError, wire
from polywand_server.workers.pool import Workers

log = logging.getLogger(__name__)


# How long a stop may take after the drain, before the process ends by force.
STOP_SECONDS = 2.5


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
            if self._settings.tracing is not None:
                tracing.start(self._settings.tracing)
                stack.push_async_callback(tracing.stop)
            workers = Workers(self._settings.limits.workers)
            workers.start()
            stack.push_async_callback(workers.close)
            triton = await self._start_triton(stack)
            if triton is not None:
                await self._serve(stack, triton, workers, connections)
        log.info("stopped")

    def _on_signal(self) -> None:
        """Begin to stop; a second signal ends the process at once, and so does a stop that takes too long."""
        if self._stop.is_set():
            _leave("a second signal")
        self._stop.set()
        seconds = self._settings.drain_delay_seconds + self._settings.drain_seconds + STOP_SECONDS
        limit = threading.Timer(seconds, _leave, ["the stop took too long"])
        limit.daemon = True
        limit.start()

    async def _start_triton(self, stack: AsyncExitStack) -> TritonLocation | None:
        """Start our own Triton, unless another one is configured; return None if a signal arrives first."""
        starting = asyncio.create_task(locate_triton(self._settings, stack), name="start Triton")
        stopping = asyncio.create_task(self._stop.wait(), name="wait for a signal")
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return None
        try:
            return starting.result()
        except TritonStartError as error:
            raise StartError(str(error)) from error

    async def _serve(
        self, stack: AsyncExitStack, triton: TritonLocation, workers: Workers, connections: ConnectionLimits
    ) -> None:
        settings = self._settings

        changed = asyncio.Event()
        try:
            parts = wire(stack, settings, triton, workers, changed.set)
        except SettingError as error:
            raise StartError(str(error)) from error
        registry, health, ingress = parts.registry, parts.health, parts.ingress

        most_connections = min(settings.limits.connections, connections.grpc)
        grpc_server = GrpcServer(settings, most_connections, parts.calls, parts.servicer, health)
        ports = Ports(settings, grpc_server, health, triton.metrics, parts.authenticator, connections)
        allocation.freeze()
        await grpc_server.start()
        tasks = [
            asyncio.create_task(registry.run(), name="follow Triton's repository"),
            asyncio.create_task(_publish_changes(health, changed), name="publish health"),
            asyncio.create_task(ingress.run(), name="bound what is on its way"),
            asyncio.create_task(measure_delay(), name="measure the event loop's delay"),
            asyncio.create_task(allocation.trim_periodically(), name="return free memory"),
        ]
        serving = [asyncio.create_task(task, name="serve the ports") for task in ports.tasks()]
        if triton.supervised is not None:
            tasks.insert(0, asyncio.create_task(triton.supervised(), name="keep Triton running"))
        if ports.certificates is not None:
            tasks.append(asyncio.create_task(ports.certificates.run(), name="follow the files of TLS"))
        log.info("Polywand %s: %s, Triton at %s", __version__, ports, triton.url)
        stopping = asyncio.create_task(self._stop.wait(), name="wait for a signal")
        try:
            finished, _ = await asyncio.wait((*tasks, *serving, stopping), return_when=asyncio.FIRST_COMPLETED)
            for task in finished - {stopping}:
                log.critical("the task '%s' ended, which it must not: stopping", task.get_name())
                task.result()
        finally:
            health.drain()
            await asyncio.sleep(settings.drain_delay_seconds)
            parts.messages.drain(settings.drain_seconds)
            await grpc_server.drain(settings.drain_seconds)
            ports.stop()
            for task in (*tasks, stopping):
                task.cancel()
            await asyncio.gather(*tasks, *serving, stopping, return_exceptions=True)


def _leave(why: str) -> NoReturn:
    """End this process; its children and the embedded Triton's launcher detect that, and end as well."""
    log.critical("ending at once: %s", why)
    logging.shutdown()
    os._exit(1)


async def _publish_changes(health: Health, changed: asyncio.Event) -> None:
    was_ready = None
    while True:
        await changed.wait()
        changed.clear()
        health.publish()
        if health.ready:
            if not was_ready:
                log.info("ready")
        elif was_ready is not False:
            log.info("%s: %s", "not ready any more" if was_ready else "waiting", health.reason)
        was_ready = health.ready
