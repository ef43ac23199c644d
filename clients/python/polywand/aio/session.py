"""One annotator's stream under asyncio: prompts to await, or to send while dragging."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from polywand import errors, images
from polywand.answers import Update
from polywand.errors import PolywandError
from polywand.images import ImageLike, ValueRangeLike
from polywand.keywords import keywords_of
from polywand.ledger import Ledger
from polywand.prompts import PromptOptions, Prompts
from polywand.results import Segmentation
from polywand.session import CLOSE_GRACE_S
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc as pb_grpc


class Session:
    """A stream to the server, with a current image; made by `Client.open`, used with `async with`.

    Tasks of one event loop may share it; prompts for several objects do not wait for each other.

    width, height: of the current image in pixels, after EXIF orientation.
    """

    width: int
    height: int

    def __init__(
        self,
        stub: Callable[[], "pb_grpc.AnnotationServiceAsyncStub"],
        image: ImageLike,
        target: str,
        timeout_s: float,
        value_range: ValueRangeLike | None = None,
    ) -> None:
        self._stub, self._first_image, self._first_range = stub, image, value_range
        self._target, self._timeout_s = target, timeout_s
        self._prompts = Prompts()
        self._ledger = Ledger()
        self._unread: dict[str, Update] = {}  # newest wins: at most one of each object
        self._something_to_send = asyncio.Event()
        self._something_to_read = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    async def set_image(self, image: ImageLike, value_range: ValueRangeLike | None = None) -> None:
        """Make an image the current one; all objects of the last one are forgotten.

        image: a path, the bytes of a file, or uint8 [H, W, 3] RGB or [H, W] grey. The session keeps it until the next
        image: the server may remove the image of an idle session.
        value_range: which values of a PNG or TIFF file with more than 8 bits are black and white, such as (0, 1023).
        Raises InvalidRequest when it cannot be read, QuotaExceeded when the server stays full, Unavailable when it
        cannot be reached.
        """
        message = await asyncio.to_thread(images.to_message, image, value_range)
        waiter: asyncio.Future[pb.ImageInfo] = asyncio.get_running_loop().create_future()
        self._ask(pb.InteractRequest(image=message), waiter)
        await self._wait(waiter)

    @keywords_of(Prompts.message, PromptOptions)
    async def prompt(self, model: str, **prompt: Unpack[PromptOptions]) -> Segmentation:
        """Ask for the outline of one object and wait for it; the arguments are those of `PromptOptions`.

        Returns the answer to this prompt, or to a newer one of the same object that overtook it. While the server is
        full, or Triton or the model is unavailable, the prompt is sent again with growing delays, until the client's
        timeout; then QuotaExceeded or Unavailable is raised. An image that the server removed is sent again first.
        Raises IncompletePrompt, InvalidRequest, QuotaExceeded, Unavailable, ServerError, or Superseded when a new image
        replaced this one. Only the end of the stream (Draining, or Unavailable without a server) ends the session.
        """
        waiter: asyncio.Future[Segmentation] = asyncio.get_running_loop().create_future()
        self._ask(pb.InteractRequest(prompt=self._prompts.message(model, **prompt)), waiter)
        answer: Segmentation = await self._wait(waiter)
        return answer

    @keywords_of(Prompts.message, PromptOptions)
    def send(self, model: str, **prompt: Unpack[PromptOptions]) -> int:
        """Ask for the outline of one object without waiting: the answer comes through `updates`.

        Returns the prompt's sequence. A prompt that still waits to be sent is replaced by a newer one of its object.
        Raises the error that ended the stream, if it has ended.
        """
        return self._ask(pb.InteractRequest(prompt=self._prompts.message(model, **prompt)), None)

    async def updates(self) -> AsyncGenerator[Update, None]:
        """Yield every answer about objects of the current image, to `send` and to `prompt`, as it comes.

        While the server is full or Triton is unavailable, prompts are sent again instead of being answered, until the
        client's timeout, or until a newer prompt of the object replaces them.
        Of answers that come faster than they are consumed, the newest of each object is kept. Ends with the session,
        and raises Unavailable when the stream fails. For one consumer.
        """
        while True:
            await self._something_to_read.wait()
            while self._unread:
                yield self._unread.pop(next(iter(self._unread)))
            if isinstance(self._ledger.ended, errors.Closed):
                return
            if self._ledger.ended is not None:
                raise self._ledger.ended.with_traceback(None)
            self._something_to_read.clear()

    async def close(self) -> None:
        """End the stream. Prompts that still wait raise Closed."""
        self._end(errors.Closed())
        if self._reader is not None:
            await asyncio.wait([self._reader], timeout=CLOSE_GRACE_S)
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def __aenter__(self) -> Self:
        self._reader = asyncio.create_task(self._read(self._stub()), name="polywand-session")
        try:
            await self.set_image(self._first_image, self._first_range)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _ask(self, message: pb.InteractRequest, waiter: asyncio.Future[Any] | None) -> int:
        if self._reader is None:
            raise RuntimeError("this session is not open: use it with `async with client.open(image) as session`")
        if asyncio.get_running_loop() is not self._reader.get_loop():
            raise RuntimeError("this session belongs to another event loop, or thread: open one in this loop")
        sequence = self._ledger.add(message, waiter, self._timeout_s)
        self._something_to_send.set()
        return sequence

    async def _wait(self, waiter: asyncio.Future[Any]) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await waiter
        except TimeoutError:
            raise self._ledger.refusal(waiter) or errors.no_answer(self._target, self._timeout_s) from None

    def _end(self, error: PolywandError) -> None:
        self._ledger.end(error)
        self._something_to_send.set()
        self._something_to_read.set()

    async def _requests(self) -> AsyncIterator[pb.InteractRequest]:
        while self._ledger.ended is None:
            if (request := self._ledger.pop()) is not None:
                yield request
                continue
            self._something_to_send.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._ledger.pause_s()):
                    await self._something_to_send.wait()

    def _publish(self, answer: list[Update] | pb.ImageInfo) -> None:
        if isinstance(answer, pb.ImageInfo):
            self._prompts.forget()
            self._unread.clear()
            self.width, self.height = answer.width, answer.height
            return
        for update in answer:
            self._unread.pop(update.object_id, None)
            self._unread[update.object_id] = update
            self._something_to_read.set()

    async def _read(self, stub: "pb_grpc.AnnotationServiceAsyncStub") -> None:
        end: PolywandError = errors.ended(self._target)
        try:
            async for reply in stub.Interact(self._requests()):
                self._publish(self._ledger.answer(reply))
                self._something_to_send.set()  # a retry may be due
        except grpc.aio.AioRpcError as error:
            end = errors.from_rpc(error, self._target)
        except asyncio.CancelledError:  # by `close`, which has set the reason, or by the client's
            end = errors.client_closed()
        finally:
            self._end(end)
