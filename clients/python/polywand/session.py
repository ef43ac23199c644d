"""One annotator's stream: an image, then prompts, each answered with polygons."""

import os
import threading
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from polywand import errors, images
from polywand.images import ImageLike, ValueRangeLike
from polywand.keywords import keywords_of
from polywand.ledger import Ledger
from polywand.prompts import PromptOptions, Prompts
from polywand.results import Segmentation
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc as pb_grpc

CLOSE_GRACE_S = 1.0  # for the server to end the stream; then the call is cancelled


class Session:
    """A stream to the server, with a current image; made by `Client.open`, closed by `with` or `close`.

    Several threads may prompt for several objects at the same time: the answers do not wait for each other.

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
    ) -> None:
        self._target, self._timeout_s = target, timeout_s
        self._process = os.getpid()
        self._prompts = Prompts()
        self._ledger = Ledger()
        self._changed = threading.Condition()  # guards ledger and prompts; notifies the sender
        self._call = stub.Interact(iter(self._next, None))
        self._reader = threading.Thread(target=self._read, name="polywand-session", daemon=True)
        self._reader.start()
        try:
            self.set_image(image, value_range)
        except BaseException:
            self.close()
            raise

    def set_image(self, image: ImageLike, value_range: ValueRangeLike | None = None) -> None:
        """Make an image the current one; all objects of the last one are forgotten.

        image: a path, the bytes of a file, or uint8 [H, W, 3] RGB or [H, W] grey. The session keeps it until the next
        image: the server may remove the image of an idle session.
        value_range: which values of a PNG or TIFF file with more than 8 bits are black and white, such as (0, 1023).
        Raises InvalidRequest when it cannot be read, QuotaExceeded when the server stays full, Unavailable when it
        cannot be reached.
        """
        message = images.to_message(image, value_range)
        with self._changed:
            waiter = self._ask(pb.InteractRequest(image=message))
        info: pb.ImageInfo = self._wait(waiter)
        self.width, self.height = info.width, info.height

    @keywords_of(Prompts.message, PromptOptions)
    def prompt(self, model: str, **prompt: Unpack[PromptOptions]) -> Segmentation:
        """Ask for the outline of one object; the arguments are those of `PromptOptions`.

        Returns the answer to this prompt, or to a newer one of the same object that overtook it. While the server is
        full, or Triton or the model is unavailable, the prompt is sent again with growing delays, until the client's
        timeout; then QuotaExceeded or Unavailable is raised. An image that the server removed is sent again first.
        Raises IncompletePrompt, InvalidRequest, QuotaExceeded, Unavailable, ServerError, or Superseded when a new image
        replaced this one. Only the end of the stream (Draining, or Unavailable without a server) ends the session.
        """
        with self._changed:
            waiter = self._ask(pb.InteractRequest(prompt=self._prompts.message(model, **prompt)))
        answer: Segmentation = self._wait(waiter)
        return answer

    def close(self) -> None:
        """End the stream. Prompts that still wait raise Closed."""
        self._end(errors.Closed())
        self._reader.join(CLOSE_GRACE_S)
        self._call.cancel()  # type: ignore[no-untyped-call]
        self._reader.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, message: pb.InteractRequest) -> Future[Any]:
        if os.getpid() != self._process:
            raise errors.Closed("This session was opened in another process, before a fork: open one in this process.")
        waiter: Future[Any] = Future()
        self._ledger.add(message, waiter, self._timeout_s)
        self._changed.notify()
        return waiter

    def _wait(self, waiter: Future[Any]) -> Any:
        try:
            return waiter.result(self._timeout_s)
        except TimeoutError:
            with self._changed:
                refusal = self._ledger.refusal(waiter)
            raise refusal or errors.no_answer(self._target, self._timeout_s) from None

    def _end(self, error: errors.PolywandError) -> None:
        with self._changed:
            self._ledger.end(error)
            self._changed.notify()

    def _next(self) -> pb.InteractRequest | None:
        """Wait for the next message to send; None ends the stream. grpc's own thread calls this."""
        with self._changed:
            while self._ledger.ended is None:
                if (request := self._ledger.pop()) is not None:
                    return request
                self._changed.wait(self._ledger.pause_s())
        return None

    def _read(self) -> None:
        end: errors.PolywandError = errors.ended(self._target)
        try:
            for reply in self._call:
                with self._changed:
                    if isinstance(self._ledger.answer(reply), pb.ImageInfo):
                        self._prompts.forget()
                    self._changed.notify()  # a retry may be due
        except grpc.RpcError as error:
            end = errors.from_rpc(error, self._target)
        finally:
            self._end(end)
