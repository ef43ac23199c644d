"""gRPC health as those see it who watch: any number of them, whoever leaves, whoever does not read."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from polywand_server.admission.quotas import Accounts
from polywand_server.auth.authenticator import Authenticator
from polywand_server.config import Access
from polywand_server.ops.health import Health
from polywand_server.rpc.ingress import Ingress
from polywand_server.rpc.interceptors import Calls

SERVICE = "polywand.v1.AnnotationService"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
    health_pb2.HealthCheckResponse.SERVICE_UNKNOWN,
)
SOON_SECONDS = 30


class Served:
    """Health on a port. is_ready: what it is to say."""

    def __init__(self) -> None:
        self.is_ready = True
        self.health = Health(("", SERVICE), lambda: self.is_ready, lambda: "no tool is ready")
        self._channels: list[grpc.aio.Channel] = []
        self.port = 0

    def stub(self) -> health_pb2_grpc.HealthStub:
        """Of a connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=options)
        self._channels.append(channel)
        return health_pb2_grpc.HealthStub(channel)

    def watch(self, service: str = SERVICE) -> grpc.aio.UnaryStreamCall:
        return self.stub().Watch(health_pb2.HealthCheckRequest(service=service))

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    opened, authenticator = Served(), Authenticator(Access())
    server = grpc.aio.server(
        interceptors=[Calls(SERVICE, Ingress(1), authenticator, Accounts(authenticator.quotas_of), None)]
    )
    health_pb2_grpc.add_HealthServicer_to_server(opened.health, server)
    opened.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield opened
    await opened.close()
    await server.stop(0)


async def status(watch: grpc.aio.UnaryStreamCall) -> int:
    return (await asyncio.wait_for(watch.read(), SOON_SECONDS)).status


async def test_those_who_stay_hear_of_the_drain_whoever_has_left_and_whoever_does_not_read(served: Served) -> None:
    watches = [served.watch() for _ in range(6)]
    deaf = [served.watch("") for _ in range(2)]
    assert [await status(watch) for watch in watches] == [SERVING] * 6
    for gone in (watches[0], watches[3]):
        gone.cancel()
        await asyncio.wait_for(gone.code(), SOON_SECONDS)
    for _ in range(50):
        served.is_ready = not served.is_ready
        served.health.publish()
        await asyncio.sleep(0)
    served.health.drain()
    for stays in (watches[1], watches[2], watches[4], watches[5]):
        while await status(stays) == SERVING:
            pass
    late = served.watch()
    assert await status(late) == NOT_SERVING
    for watch in deaf:
        watch.cancel()


async def test_every_change_is_told_and_nothing_else(served: Served) -> None:
    watch = served.watch()
    assert await status(watch) == SERVING
    for is_ready in (False, True, False):
        served.health.publish()  # nothing has changed
        served.is_ready = is_ready
        served.health.publish()
        assert await status(watch) == (SERVING if is_ready else NOT_SERVING)


async def test_an_unknown_service_is_told_so_in_the_way_of_each_method(served: Served) -> None:
    assert await status(served.watch("no such service")) == SERVICE_UNKNOWN
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub().Check(health_pb2.HealthCheckRequest(service="no such service"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == f"service: there is no such service; there are: '', '{SERVICE}'"


async def test_nothing_is_kept_of_those_who_have_left(served: Served) -> None:
    for _ in range(20):
        watch = served.watch()
        assert await status(watch) == SERVING
        watch.cancel()
    deadline = asyncio.get_running_loop().time() + SOON_SECONDS
    while served.health._watchers:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)
