"""Detection on a stream of frames, for the synchronous client."""

import threading
from collections.abc import Callable, Generator, Iterable
from functools import partial

import grpc

from polywand import errors, wire
from polywand.errors import PolywandError
from polywand.frames import LARGE_FRAME_BYTES, FrameLog, FrameResult
from polywand.images import ImageLike
from polywand.results import Detections
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc as pb_grpc

JOIN_S = 1.0  # for a thread that may wait for the caller's next image


class DetectStream:
    """One `detect_stream`: a thread reads the caller's frames, another the replies of one call after another.

    The caller's own thread consumes the answers. How far the frames are read ahead (`FrameLog.has_room`) bounds all.
    """

    def __init__(
        self,
        stub: pb_grpc.AnnotationServiceStub,
        images: Iterable[ImageLike],
        options: pb.DetectRequest,
        detect_alone: Callable[[pb.DetectRequest], Detections],
        target: str,
        timeout_s: float,
        *,
        reconnect: bool = True,
    ) -> None:
        self._stub, self._images, self._options = stub, images, options
        self._detect_alone = detect_alone
        self._target = target
        self._log = FrameLog(timeout_s, reconnects=reconnect)
        self._changed = threading.Condition()  # guards all below, and the log
        self._call: grpc.Call | None = None
        self._is_abandoned = False
        self._images_error: Exception | None = None

    def answers(self) -> Generator[FrameResult, None, None]:
        """Run the calls and yield their answers in the order of the frames."""
        feeder = threading.Thread(target=self._feed, name="polywand-frames", daemon=True)
        runner = threading.Thread(target=self._run, name="polywand-detect-stream", daemon=True)
        feeder.start()
        runner.start()
        try:
            while (result := self._next()) is not None:
                yield result
                with self._changed:
                    self._log.consumed()
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._is_abandoned = True
                call = self._call
                self._changed.notify_all()
            if call is not None:
                call.cancel()  # type: ignore[no-untyped-call]
            runner.join()
            feeder.join(JOIN_S)

    def _next(self) -> FrameResult | None:
        with self._changed:
            while True:
                if (result := self._log.pop_result()) is not None:
                    return result
                if not self._log.any_open:
                    if self._images_error is not None:
                        raise self._images_error
                    return None
                if self._log.ended is not None:
                    raise self._log.ended
                if (left_s := self._log.seconds_left()) <= 0:
                    raise self._log.timeout(self._target)
                self._changed.wait(left_s)

    def _feed(self) -> None:
        """Read frames. An error of the caller's iterator is kept for the caller's thread."""
        try:
            for _, image in zip(iter(self._wait_for_room, False), self._images, strict=False):  # the room first
                self._add(image)
        except Exception as error:
            self._images_error = error
        finally:
            with self._changed:
                self._log.complete()
                self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._log.has_room or self._is_abandoned)
            return not self._is_abandoned

    def _add(self, image: ImageLike) -> None:
        with self._changed:
            number = self._log.add()
        try:
            request = wire.detect_request(image, self._options)
            result = None if request.ByteSize() < LARGE_FRAME_BYTES else self._detect_alone(request)
        except PolywandError as error:
            self._put(number, error)
            return
        if result is not None:
            self._put(number, result)
            return
        with self._changed:
            self._log.send(number, request)
            self._changed.notify_all()

    def _put(self, number: int, result: Detections | PolywandError) -> None:
        with self._changed:
            self._log.put(number, result)
            self._changed.notify_all()

    def _run(self) -> None:
        while (stream := self._begin()) is not None:
            try:
                call = self._stub.DetectStream(iter(partial(self._next_request, stream), None))
            except ValueError:  # the channel was closed
                with self._changed:
                    self._log.end(errors.client_closed())
                    self._changed.notify_all()
                return
            with self._changed:
                self._call = call
                if self._is_abandoned:
                    call.cancel()  # type: ignore[no-untyped-call]
            self._read(call, stream)

    def _begin(self) -> int | None:
        """Wait until a call is needed, and begin it; None if none is any more."""
        with self._changed:
            while not self._is_abandoned and self._log.any_open and self._log.ended is None:
                if (due_s := self._log.stream_due_s()) == 0:
                    return self._log.begin()
                self._changed.wait(due_s)
        return None

    def _next_request(self, stream: int) -> pb.DetectStreamRequest | None:
        """Wait for the next frame to send on a call; None half-closes it. grpc's own thread calls this."""
        with self._changed:
            while self._log.is_sending(stream) and not self._is_abandoned:
                if (request := self._log.pop(stream)) is not None:
                    return request
                self._changed.wait()
        return None

    def _read(self, call: Iterable[pb.DetectStreamResponse], stream: int) -> None:
        end: PolywandError = errors.ended(self._target)
        is_final = True  # after an unexpected exception
        try:
            for reply in call:
                with self._changed:
                    self._log.answer(reply, stream)
                    self._changed.notify_all()
            is_final = False
        except grpc.RpcError as error:
            end = errors.from_rpc(error, self._target)
            is_final = errors.is_final(error, end)
        finally:
            with self._changed:
                self._log.lost(stream, end, is_final=is_final)
                self._changed.notify_all()
