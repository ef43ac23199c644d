"""One annotator's session under asyncio: prompts to await, or to send while dragging."""

from __future__ import annotations  # `help` shows the names of types, such as ImageLike

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from polywand import errors, images
from polywand.aio.changes import Changes
from polywand.answers import Update
from polywand.channel import call_timeout
from polywand.errors import PolywandError
from polywand.images import ImageLike, KnownImages, ValueRangeLike
from polywand.ledger import Ledger
from polywand.options import BoxLike
from polywand.prompts import PointsLike, Prompts
from polywand.results import Segmentation
from polywand.seeds import SeedLike
from polywand.session import CLOSE_GRACE_S
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc as pb_grpc


class Session:
    """A session on the server, with a current image; made by `AsyncClient.open`, used with `async with`.

    Tasks of one event loop may share it; prompts for several objects do not wait for each other.

    A session outlives its server: when that stops or is lost, the session goes on with a new stream, to any replica. It
    sends the image's digest there, or the image itself if the server does not hold it, and the newest prompts that have
    no answer yet. A caller only waits longer, at most until its timeout, and gets Unavailable then. The logger
    "polywand" gets a line of level INFO for each such change.

    width, height: of the current image in pixels, after EXIF orientation.
    """

    width: int
    height: int

    def __init__(
        self,
        stub: Callable[[], pb_grpc.AnnotationServiceAsyncStub],
        image: ImageLike,
        target: str,
        timeout_s: float,
        value_range: ValueRangeLike | None = None,
        *,
        known: KnownImages | None = None,
        reconnect: bool = True,
    ) -> None:
        """Make a session; see `AsyncClient.open`. known: the images that the client's servers may hold."""
        self._stub, self._first_image, self._first_range = stub, image, value_range
        self._target, self._timeout_s = target, timeout_s
        self._prompts = Prompts()
        self._known = known or KnownImages()
        self._ledger = Ledger(known=self._known, reconnects=reconnect)
        self._unread: dict[str, Update] = {}  # newest wins: at most one of each object
        self._changes = Changes()  # of the ledger; senders and runner wait for it
        self._something_to_read = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def set_image(
        self, image: ImageLike, value_range: ValueRangeLike | None = None, *, timeout: float | None = None
    ) -> None:
        """Make an image the current one; all objects of the last one are forgotten.

        image: a path, a file's bytes, pixels, `Pixels` or an image of Pillow; see `ImageLike`. The session keeps it
        until the next one, in case it has to be sent again. One that this client has sent before is sent by its digest.
        value_range: the values that are black and white in an image with more than 8 bits, such as (0, 1023); None:
        chosen from its values.
        timeout: seconds; None is that of the session.
        Raises InvalidRequest when it cannot be read, QuotaExceeded when the server stays full, Unavailable when none
        can be reached.
        """
        timeout_s = call_timeout(timeout, self._timeout_s)
        message = await asyncio.to_thread(images.to_message, image, value_range)
        by_digest = await asyncio.to_thread(self._known.by_digest, message)
        waiter: asyncio.Future[pb.ImageInfo] = asyncio.get_running_loop().create_future()
        self._ask(pb.InteractRequest(image=message), waiter, timeout_s, by_digest)
        await self._wait(waiter, timeout_s)

    async def prompt(
        self,
        model: str = "",
        *,
        points: PointsLike | None = None,
        positive: Iterable[Sequence[float]] = (),
        negative: Iterable[Sequence[float]] = (),
        extreme: Iterable[Sequence[float]] = (),
        box: BoxLike | None = None,
        seed: SeedLike | None = None,
        object_id: str = "",
        version: int = 0,
        threshold: float | None = None,
        tolerance: float | None = None,
        max_points: int | None = None,
        polygons: bool = True,
        mask: bool = False,
        png: bool = False,
        timeout: float | None = None,
    ) -> Segmentation:
        """Ask for the outline of one object and wait for it. The arguments are its whole prompt.

        model: an interactor; "" is the server's choice. version: of this model; 0 is the highest that is ready.
        points: all clicks in their order, such as [(x, y), (x, y, "negative")]; see `PointsLike`.
        positive, negative, extreme: instead of `points`: (x, y) each, or arrays [N, 2]. They are ordered by when they
        first appeared in the session, so adding points refines the last answer.
        box: (x0, y0, x1, y1) around the object.
        seed: an existing annotation to refine, as a mask or as polygons; see `SeedLike`. Without points and box the
        answer is the seed's own outline.
        object_id: the caller's id for the object, if there are several on the image.
        threshold: probability from which a pixel counts, above 0 and below 1; None is the model's own.
        tolerance: largest distance of the simplified outline from the exact one, in pixels, 0 to 1000; 0 keeps every
        vertex, None is the server's choice.
        max_points: most vertices, over all rings, 3 to 100000; None is no limit.
        polygons, mask, png: in which forms to send the outline; its box is always sent.
        timeout: seconds; None is that of the session.

        Returns the answer to this prompt, or to a newer one of the same object that overtook it. While the server is
        full, away, or without its Triton or the model, the prompt is sent again with growing delays, until the timeout;
        then QuotaExceeded or Unavailable is raised. An image that the server removed is sent again first.
        Raises IncompletePrompt, InvalidRequest, QuotaExceeded, Unavailable, ServerError, or Superseded when a new image
        replaced this one or the object was forgotten.
        """
        timeout_s = call_timeout(timeout, self._timeout_s)
        message = self._prompts.message(
            model,
            points=points,
            positive=positive,
            negative=negative,
            extreme=extreme,
            box=box,
            seed=seed,
            object_id=object_id,
            version=version,
            threshold=threshold,
            tolerance=tolerance,
            max_points=max_points,
            polygons=polygons,
            mask=mask,
            png=png,
        )
        waiter: asyncio.Future[Segmentation] = asyncio.get_running_loop().create_future()
        self._ask(pb.InteractRequest(prompt=message), waiter, timeout_s)
        answer: Segmentation = await self._wait(waiter, timeout_s)
        return answer

    def send(
        self,
        model: str = "",
        *,
        points: PointsLike | None = None,
        positive: Iterable[Sequence[float]] = (),
        negative: Iterable[Sequence[float]] = (),
        extreme: Iterable[Sequence[float]] = (),
        box: BoxLike | None = None,
        seed: SeedLike | None = None,
        object_id: str = "",
        version: int = 0,
        threshold: float | None = None,
        tolerance: float | None = None,
        max_points: int | None = None,
        polygons: bool = True,
        mask: bool = False,
        png: bool = False,
        timeout: float | None = None,
    ) -> int:
        """Ask for the outline of one object without waiting: the answer comes through `updates`.

        model: an interactor; "" is the server's choice. version: of this model; 0 is the highest that is ready.
        points: all clicks in their order, such as [(x, y), (x, y, "negative")]; see `PointsLike`.
        positive, negative, extreme: instead of `points`: (x, y) each, or arrays [N, 2]. They are ordered by when they
        first appeared in the session, so adding points refines the last answer.
        box: (x0, y0, x1, y1) around the object.
        seed: an existing annotation to refine, as a mask or as polygons; see `SeedLike`. Without points and box the
        answer is the seed's own outline.
        object_id: the caller's id for the object, if there are several on the image.
        threshold: probability from which a pixel counts, above 0 and below 1; None is the model's own.
        tolerance: largest distance of the simplified outline from the exact one, in pixels, 0 to 1000; 0 keeps every
        vertex, None is the server's choice.
        max_points: most vertices, over all rings, 3 to 100000; None is no limit.
        polygons, mask, png: in which forms to send the outline; its box is always sent.
        timeout: seconds for which it may be sent again; None is that of the session.

        Returns the prompt's sequence. A prompt that still waits to be sent is replaced by a newer one of its object.
        Raises the error that ended the session, if it has ended.
        """
        timeout_s = call_timeout(timeout, self._timeout_s)
        message = self._prompts.message(
            model,
            points=points,
            positive=positive,
            negative=negative,
            extreme=extreme,
            box=box,
            seed=seed,
            object_id=object_id,
            version=version,
            threshold=threshold,
            tolerance=tolerance,
            max_points=max_points,
            polygons=polygons,
            mask=mask,
            png=png,
        )
        return self._ask(pb.InteractRequest(prompt=message), None, timeout_s)

    async def forget(self, object_id: str | None = None, *, timeout: float | None = None) -> None:
        """Free an object of the current image, or all: the server forgets it, and has room for another.

        A server allows 1000 objects on an image. A prompt that still waits for this object raises Superseded; a later
        one with the same id starts anew.

        object_id: None is all objects. timeout: seconds; None is that of the session.
        Raises InvalidRequest when the id is too long, or Unavailable.
        """
        timeout_s = call_timeout(timeout, self._timeout_s)
        message = self._prompts.forget(object_id)
        for name in list(self._unread) if object_id is None else [object_id]:
            self._unread.pop(name, None)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ask(message, waiter, timeout_s)
        await self._wait(waiter, timeout_s)

    async def updates(self) -> AsyncGenerator[Update, None]:
        """Yield every answer about objects of the current image, to `send` and to `prompt`, as it comes.

        While the server is full, away or without its Triton, prompts are sent again instead of being answered, until
        their timeout, or until a newer prompt of the object replaces them.
        Of answers that come faster than they are consumed, the newest of each object is kept. Ends with the session,
        and raises the error that ended it if it was not closed. For one consumer.
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
        """End the session. Prompts that still wait raise Closed."""
        self._end(errors.Closed())
        if self._tasks:
            tasks = list(self._tasks)  # no more come after the end
            await asyncio.wait(tasks, timeout=CLOSE_GRACE_S)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._stub()  # is the client open?
        self._start()
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

    def _ask(
        self,
        message: pb.InteractRequest,
        waiter: asyncio.Future[Any] | None,
        timeout_s: float,
        by_digest: pb.Image | None = None,
    ) -> int:
        if self._loop is None:
            raise RuntimeError("this session is not open: use it with `async with client.open(image) as session`")
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("this session belongs to another event loop, or thread: open one in this loop")
        sequence = self._ledger.add(message, waiter, timeout_s, by_digest)
        self._changes.notify()
        return sequence

    async def _wait(self, waiter: asyncio.Future[Any], timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter
        except TimeoutError:
            raise self._ledger.refusal(waiter) or errors.no_answer(self._target, timeout_s) from None

    def _end(self, error: PolywandError) -> None:
        self._ledger.end(error)
        self._changes.notify()
        self._something_to_read.set()

    def _start(self) -> None:
        """Start the runner: the task that begins a stream whenever one is needed, and reads it."""
        task = asyncio.create_task(self._run(), name="polywand-session")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        is_runner = True
        while is_runner and (stream := await self._begin()) is not None:
            is_runner = await self._read(stream)

    async def _begin(self) -> int | None:
        """Wait until a stream is needed, and begin it; None ends the session."""
        while self._ledger.ended is None:
            if (due_s := self._ledger.stream_due_s()) == 0:
                return self._ledger.begin()
            await self._changes.wait(due_s)
        return None

    async def _requests(self, stream: int) -> AsyncIterator[pb.InteractRequest]:
        """Yield the messages to send on a stream; the end half-closes it."""
        while self._ledger.is_current(stream):
            if (request := self._ledger.pop(stream)) is not None:
                yield request
            else:
                await self._changes.wait(self._ledger.pause_s())

    def _publish(self, answer: list[Update] | pb.ImageInfo) -> None:
        if isinstance(answer, pb.ImageInfo):
            self._prompts.clear()
            self._unread.clear()
            self.width, self.height = answer.width, answer.height
            return
        for update in answer:
            self._unread.pop(update.object_id, None)
            self._unread[update.object_id] = update
            self._something_to_read.set()

    async def _read(self, stream: int) -> bool:
        """Read a stream to its end; when it is left before, start a task for the next one, and return False."""
        is_runner = True
        end: PolywandError = errors.ended(self._target)
        is_final = True  # after an unexpected exception
        try:
            async for reply in self._stub().Interact(self._requests(stream)):
                self._publish(self._ledger.answer(reply, stream))
                if is_runner and self._ledger.ended is None and not self._ledger.is_current(stream):
                    is_runner = False
                    self._start()
                self._changes.notify()  # a retry may be due
            is_final = False
        except grpc.aio.AioRpcError as error:
            end = errors.from_rpc(error, self._target)
            is_final = errors.is_final(error, end)
        except PolywandError as error:  # the client was closed
            end = error
        except asyncio.CancelledError:  # by `close`, which has set the reason, or by the client's
            end = errors.client_closed()
        finally:
            self._publish(self._ledger.lost(stream, end, is_final=is_final))
            self._changes.notify()
            if self._ledger.ended is not None:
                self._something_to_read.set()
        return is_runner
