"""One annotator's session: an image, then prompts, each answered with polygons."""

from __future__ import annotations  # `help` shows the names of types, such as ImageLike

import os
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Self

import grpc

from polywand import errors, images
from polywand.channel import call_timeout
from polywand.images import ImageLike, KnownImages, ValueRangeLike
from polywand.ledger import Ledger
from polywand.options import BoxLike
from polywand.prompts import PointsLike, Prompts
from polywand.results import Segmentation
from polywand.seeds import SeedLike
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc as pb_grpc

CLOSE_GRACE_S = 1.0  # for the server to end the stream; then the call is cancelled


class Session:
    """A session on the server, with a current image; made by `Client.open`, closed by `with` or `close`.

    Several threads may prompt for several objects at the same time: the answers do not wait for each other.

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
        stub: pb_grpc.AnnotationServiceStub,
        image: ImageLike,
        target: str,
        timeout_s: float,
        value_range: ValueRangeLike | None = None,
        *,
        known: KnownImages | None = None,
        reconnect: bool = True,
    ) -> None:
        """Open a session; see `Client.open`. known: the images that the client's servers may hold."""
        self._stub, self._target, self._timeout_s = stub, target, timeout_s
        self._process = os.getpid()
        self._prompts = Prompts()
        self._known = known or KnownImages()
        self._ledger = Ledger(known=self._known, reconnects=reconnect)
        self._changed = threading.Condition()  # guards all below, ledger and prompts; notifies senders and runner
        self._calls: list[grpc.Call] = []
        self._threads: list[threading.Thread] = []
        self._start()
        try:
            self.set_image(image, value_range)
        except BaseException:
            self.close()
            raise

    def set_image(
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
        message = images.to_message(image, value_range)
        by_digest = self._known.by_digest(message)
        with self._changed:
            waiter = self._ask(pb.InteractRequest(image=message), timeout_s, by_digest)
        info: pb.ImageInfo = self._wait(waiter, timeout_s)
        self.width, self.height = info.width, info.height

    def prompt(
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
        """Ask for the outline of one object. The arguments are its whole prompt: to undo a point, leave it out.

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
        with self._changed:
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
            waiter = self._ask(pb.InteractRequest(prompt=message), timeout_s)
        answer: Segmentation = self._wait(waiter, timeout_s)
        return answer

    def forget(self, object_id: str | None = None, *, timeout: float | None = None) -> None:
        """Free an object of the current image, or all: the server forgets it, and has room for another.

        A server allows 1000 objects on an image. A prompt that still waits for this object raises Superseded; a later
        one with the same id starts anew.

        object_id: None is all objects. timeout: seconds; None is that of the session.
        Raises InvalidRequest when the id is too long, or Unavailable.
        """
        timeout_s = call_timeout(timeout, self._timeout_s)
        with self._changed:
            waiter = self._ask(self._prompts.forget(object_id), timeout_s)
        self._wait(waiter, timeout_s)

    def close(self) -> None:
        """End the session. Prompts that still wait raise Closed."""
        self._end(errors.Closed())
        threads, ends_at = self._threads, time.monotonic() + CLOSE_GRACE_S  # no more threads come after the end
        for thread in threads:
            thread.join(max(0.0, ends_at - time.monotonic()))
        with self._changed:
            calls = list(self._calls)
        for call in calls:
            call.cancel()  # type: ignore[no-untyped-call]
        for thread in threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, message: pb.InteractRequest, timeout_s: float, by_digest: pb.Image | None = None) -> Future[Any]:
        if os.getpid() != self._process:
            raise errors.Closed("This session was opened in another process, before a fork: open one in this process.")
        waiter: Future[Any] = Future()
        self._ledger.add(message, waiter, timeout_s, by_digest)
        self._changed.notify_all()
        return waiter

    def _wait(self, waiter: Future[Any], timeout_s: float) -> Any:
        try:
            return waiter.result(timeout_s)
        except TimeoutError:
            with self._changed:
                refusal = self._ledger.refusal(waiter)
            raise refusal or errors.no_answer(self._target, timeout_s) from None

    def _end(self, error: errors.PolywandError) -> None:
        with self._changed:
            self._ledger.end(error)
            self._changed.notify_all()

    def _start(self) -> None:
        """Start the runner: the thread that begins a stream whenever one is needed, and reads it."""
        thread = threading.Thread(target=self._run, name="polywand-session", daemon=True)
        self._threads = [*(thread for thread in self._threads if thread.is_alive()), thread]
        thread.start()

    def _run(self) -> None:
        while (stream := self._begin()) is not None:
            try:
                call = self._stub.Interact(iter(partial(self._next, stream), None))
            except ValueError:  # the channel was closed
                self._end(errors.client_closed())
                return
            with self._changed:
                self._calls.append(call)
            self._read(call, stream)
            with self._changed:
                self._calls.remove(call)
                if threading.current_thread() is not self._threads[-1]:
                    return  # this stream was drained, and another thread is the runner now

    def _begin(self) -> int | None:
        """Wait until a stream is needed, and begin it; None ends the session."""
        with self._changed:
            while self._ledger.ended is None:
                if (due_s := self._ledger.stream_due_s()) == 0:
                    return self._ledger.begin()
                self._changed.wait(due_s)
        return None

    def _next(self, stream: int) -> pb.InteractRequest | None:
        """Wait for the next message to send on a stream; None half-closes it. grpc's own thread calls this."""
        with self._changed:
            while self._ledger.is_current(stream):
                if (request := self._ledger.pop(stream)) is not None:
                    return request
                self._changed.wait(self._ledger.pause_s())
        return None

    def _read(self, call: Iterable[pb.InteractResponse], stream: int) -> None:
        """Read a stream to its end. When it is left before, start another thread for the next stream."""
        was_current = True
        end: errors.PolywandError = errors.ended(self._target)
        is_final = True  # after an unexpected exception
        try:
            for reply in call:
                with self._changed:
                    if isinstance(self._ledger.answer(reply, stream), pb.ImageInfo):
                        self._prompts.clear()
                    if was_current and self._ledger.ended is None and not self._ledger.is_current(stream):
                        was_current = False
                        self._start()
                    self._changed.notify_all()  # a retry may be due
            is_final = False
        except grpc.RpcError as error:
            end = errors.from_rpc(error, self._target)
            is_final = errors.is_final(error, end)
        finally:
            with self._changed:
                self._ledger.lost(stream, end, is_final=is_final)
                self._changed.notify_all()
