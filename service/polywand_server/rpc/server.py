"""The gRPC server: its options, and the services on it."""

import asyncio
import logging

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from polywand_contract.v1 import annotation_pb2, annotation_pb2_grpc
from polywand_server.config import Limits, Settings
from polywand_server.ops.health import Health
from polywand_server.rpc.interceptors import Calls
from polywand_server.rpc.servicer import AnnotationServicer

SERVICE_NAME: str = annotation_pb2.DESCRIPTOR.services_by_name["AnnotationService"].full_name

# Of all connections, that wait to be taken; each costs some 10 kB.
PENDING_CALLS = 10_000
# Of a stream, beyond the message that is being read: a sender 50 ms away still reaches 80 MB/s.
READ_AHEAD_BYTES = 4 << 20
# Of a call's headers, names and values.
METADATA_BYTES = 16 * 1024
# For the last bytes of finished calls to leave.
FLUSH_SECONDS = 0.5

log = logging.getLogger(__name__)


class GrpcServer:
    """A gRPC server that listens nowhere before `bind`, and answers nothing before `start`."""

    def __init__(
        self,
        settings: Settings,
        most_connections: int,
        calls: Calls,
        servicer: AnnotationServicer,
        health: Health,
    ) -> None:
        self._calls = calls
        self._server = grpc.aio.server(interceptors=[self._calls], options=_options(settings.limits, most_connections))
        annotation_pb2_grpc.add_AnnotationServiceServicer_to_server(servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(health, self._server)
        if not settings.reflection:
            return
        names = (SERVICE_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    def bind(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        """Listen at HOST:PORT, with TLS if there are credentials; returns the port. Raises RuntimeError."""
        if credentials is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, credentials)

    async def start(self) -> None:
        """Answer calls."""
        await self._server.start()

    async def drain(self, seconds: float) -> None:
        """Accept no more calls, and wait with a limit for those that run."""
        log.info("draining: not ready from now on; running requests have %g s to finish", seconds)
        stopped = asyncio.create_task(self._server.stop(seconds + FLUSH_SECONDS), name="stop gRPC")
        await asyncio.sleep(0)  # no call begins any more, before it counts that there is none
        try:
            async with asyncio.timeout(seconds):
                await self._calls.idle()
            log.info("drained")
        except TimeoutError:
            log.warning("requests still ran after %g s: they are cancelled", seconds)
        # The last replies leave. Streams of health checks would stay for ever, and are cut.
        await self._server.stop(FLUSH_SECONDS)
        await stopped


def _options(limits: Limits, most_connections: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", -1),
        # A message that unpacks to a thousand times its size is an attack: images are packed by themselves.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.max_concurrent_streams", limits.streams_of_connection),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * METADATA_BYTES),
        ("grpc.max_allowed_incoming_connections", most_connections),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_connection_idle_ms", 10 * 60_000),
        ("grpc.http2.max_ping_strikes", 2),
        # Past its own number, 1,000, gRPC refuses calls of any client by chance, and a client that begins and
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
    ]
