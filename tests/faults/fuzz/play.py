"""Playing a case over real gRPC, bytes in and bytes out, and noting what comes back."""

import asyncio
import time
from dataclasses import dataclass, field

import grpc
import grpc.aio
from google.rpc import status_pb2

from polywand_contract.v1 import annotation_pb2 as pb
from tests.faults.fuzz.case import INTERACT, SERVICE, UNARY, Await, Cancel, Case, Pause, Reading, Send
from tests.running import until

SLOWLY_SECONDS = 0.02  # between two replies
NEVER_READ_SECONDS = 1.0  # for one message, of a client that does not read
# Beyond a call's own deadline, for this client to notice it.
GRACE_SECONDS = 10.0
# What grpc.aio's client says where a call ended while it was writing: how the call ended is lost then.
LOST_TEXT = "Internal error from Core"
# What ends the sending of a client whose call has ended.
_ENDED = (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, asyncio.CancelledError)


@dataclass(slots=True)
class Record:
    """What came of a case.

    replies: serialised, in the order of their arrival. code, text, status: of the call's end; status is what its
    trailers hold. is_hung: no end came, from the service or from the client's own deadline. is_lost: an end came, and
    grpc.aio does not say which.
    """

    replies: list[bytes] = field(default_factory=list)
    code: grpc.StatusCode = grpc.StatusCode.OK
    text: str = ""
    status: status_pb2.Status | None = None
    is_hung: bool = False
    is_lost: bool = False
    begin: float = field(default_factory=time.monotonic)
    seconds: float = 0.0

    @property
    def outcome(self) -> str:
        """How the call ended, in a word."""
        return "hung" if self.is_hung else "lost" if self.is_lost else self.code.name


def open_channel(target: str) -> grpc.aio.Channel:
    """A connection of its own; messages of any size."""
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.enable_retries", 0),
    ]
    return grpc.aio.insecure_channel(target, options=options)


async def play(channel: grpc.aio.Channel, case: Case, deadline_seconds: float) -> Record:
    """Play a case to its end; never longer than the deadline and a little."""
    record = Record()
    playing = asyncio.create_task(_play(channel, case, record, deadline_seconds))
    await asyncio.wait((playing,), timeout=deadline_seconds + GRACE_SECONDS)
    record.seconds = time.monotonic() - record.begin
    if not playing.done():
        record.is_hung = True
        playing.cancel()
        return record
    call = playing.result()
    record.code, record.text = await call.code(), await call.details() or ""
    record.is_lost = record.text == LOST_TEXT
    record.status = _status(await call.trailing_metadata())
    return record


async def _play(channel: grpc.aio.Channel, case: Case, record: Record, deadline_seconds: float) -> grpc.aio.Call:
    compression = grpc.Compression.Gzip if case.gzip else grpc.Compression.NoCompression
    path = f"{SERVICE}/{case.method}"
    if case.method in UNARY:
        call = channel.unary_unary(path)(case.messages[0], timeout=deadline_seconds, compression=compression)
        reader = asyncio.create_task(_read_one(call, record))
    else:
        call = channel.stream_stream(path)(timeout=deadline_seconds, compression=compression)
        reader = asyncio.create_task(_read(call, case, record))
    try:
        await _take_steps(call, case, record, reader, deadline_seconds)
        await reader
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
    return call


async def _take_steps(
    call: grpc.aio.Call, case: Case, record: Record, reader: asyncio.Task[None], deadline_seconds: float
) -> None:
    for step in case.steps:
        match step:
            case Send(data):
                if case.method not in UNARY and not await _write(call, data, case.reading):
                    break
            case Await(messages):
                await until(
                    lambda messages=messages: reader.done() or accounted(case.method, record.replies) >= messages,
                    deadline_seconds + GRACE_SECONDS,
                )
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case Cancel():
                call.cancel()
                return
    if case.method not in UNARY:
        try:
            await call.done_writing()
        except _ENDED:
            return


async def _write(call: grpc.aio.StreamStreamCall, data: bytes, reading: Reading) -> bool:
    """Send a message; returns whether the next one can be sent."""
    # A service that feels that its replies are not read leaves messages on the wire: such a client goes on to its end.
    patience = NEVER_READ_SECONDS if reading == Reading.NEVER else None
    try:
        async with asyncio.timeout(patience):
            await call.write(data)
    except (TimeoutError, *_ENDED):
        return False
    return True


async def _read(call: grpc.aio.StreamStreamCall, case: Case, record: Record) -> None:
    if case.reading == Reading.NEVER:
        return
    try:
        while (reply := await call.read()) is not grpc.aio.EOF:
            record.replies.append(reply)
            if case.reading == Reading.SLOWLY:
                await asyncio.sleep(SLOWLY_SECONDS)
    except _ENDED:
        return


async def _read_one(call: grpc.aio.UnaryUnaryCall, record: Record) -> None:
    try:
        record.replies.append(await call)
    except _ENDED:
        return


def accounted(method: str, replies: list[bytes]) -> int:
    """How many messages the replies answer, those included that a newer one made superfluous."""
    if method != INTERACT:
        return len(replies)
    return sum(1 + pb.InteractResponse.FromString(reply).skipped for reply in replies)


def _status(trailers: grpc.aio.Metadata | None) -> status_pb2.Status | None:
    for key, value in trailers or ():
        if key == "grpc-status-details-bin":
            return status_pb2.Status.FromString(value)
    return None
