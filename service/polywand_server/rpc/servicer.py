"""The contract's methods, from bytes to bytes: what they raise becomes a status here."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc.aio
from google.protobuf.message import DecodeError

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc as pb_grpc
from polywand_server.errors import PolywandError, for_client
from polywand_server.rpc.detect import DetectCalls
from polywand_server.rpc.info import ServerInfo
from polywand_server.rpc.interact import InteractCalls
from polywand_server.rpc.listing import list_models
from polywand_server.rpc.messages import Context, Messages
from polywand_server.rpc.segment import SegmentCalls
from polywand_server.rpc.status import abort, undecodable
from polywand_server.tools.registry import Registry


class AnnotationServicer(pb_grpc.AnnotationServiceServicer):
    """Serves the contract.

    Every method takes the call's context (see `interceptors`), reads messages from it, and returns or writes bytes.

    end: ends a stream with an error, from another task.
    """

    def __init__(
        self,
        info: ServerInfo,
        registry: Registry,
        messages: Messages,
        segment: SegmentCalls,
        interact: InteractCalls,
        detect: DetectCalls,
    ) -> None:
        self._info = info
        self._registry = registry
        self._messages = messages
        self._segment = segment
        self._interact = interact
        self._detect = detect

    async def GetServerInfo(self, context: Context) -> bytes:  # type: ignore[override]  # noqa: N802 (contract's name)
        """Describe this server."""
        async with _statuses(context):
            pb.GetServerInfoRequest.FromString(await self._messages.only(context))
            return self._info.write().SerializeToString()

    async def ListModels(self, context: Context) -> bytes:  # type: ignore[override]  # noqa: N802 (contract's name)
        """List the tools."""
        async with _statuses(context):
            request = pb.ListModelsRequest.FromString(await self._messages.only(context))
            return list_models(request, self._registry.tools).SerializeToString()

    async def Segment(self, context: Context) -> bytes:  # type: ignore[override]  # noqa: N802 (contract's name)
        """Outline objects on one image."""
        async with _statuses(context):
            return await self._segment.segment(context)

    async def Detect(self, context: Context) -> bytes:  # type: ignore[override]  # noqa: N802 (contract's name)
        """Detect on one image."""
        async with _statuses(context):
            return await self._detect.detect(context)

    async def Interact(  # type: ignore[override]  # noqa: N802 (contract's name)
        self, context: Context, end: Callable[[PolywandError], None]
    ) -> None:
        """Answer one annotator's stream."""
        async with _statuses(context):
            await self._interact.serve(context, end)

    async def DetectStream(  # type: ignore[override]  # noqa: N802 (contract's name)
        self, context: Context, end: Callable[[PolywandError], None]
    ) -> None:
        """Detect on frames as they come."""
        async with _statuses(context):
            await self._detect.detect_stream(context, end)


@asynccontextmanager
async def _statuses(context: Context) -> AsyncIterator[None]:
    """End the call with the status of what the block raises."""
    try:
        yield
    except DecodeError:
        await abort(context, undecodable())
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        await abort(context, for_client(error))
