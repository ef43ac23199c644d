"""Detection on a stream of frames, for the synchronous client."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator

import grpc

from polywand import errors, frames, wire
from polywand.errors import PolywandError
from polywand.frames import FRAMES_AHEAD, LARGE_FRAME_BYTES, FrameAnswer, FrameLog
from polywand.images import ImageLike
from polywand.results import Detections
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc as pb_grpc


class DetectStream:
    """One call of DetectStream: grpc's thread reads frames, another reads replies, the caller's consumes answers.

    Every frame has one of `FRAMES_AHEAD` permits from before it is read until its answer is consumed: this bounds all
    queues.
    """

    def __init__(
        self,
        stub: pb_grpc.AnnotationServiceStub,
        images: Iterable[ImageLike],
        options: pb.DetectRequest,
        detect_alone: Callable[[pb.DetectRequest], Detections],
        target: str,
        timeout_s: float,
    ) -> None:
        self._stub, self._images, self._options = stub, images, options
        self._detect_alone = detect_alone
        self._target, self._timeout_s = target, timeout_s
        self._log = FrameLog()
        self._permits = threading.Semaphore(FRAMES_AHEAD)
        self._answers: queue.SimpleQueue[FrameAnswer | PolywandError | None] = queue.SimpleQueue()
        self._abandoned = False
        self._images_error: Exception | None = None

    def answers(self) -> Generator[FrameAnswer, None, None]:
        """Run the call and yield its answers in the order of the frames."""
        call = self._stub.DetectStream(self._requests())
        reader = threading.Thread(target=self._read, args=(call,), name="polywand-detect-stream", daemon=True)
        reader.start()
        try:
            while (answer := self._next()) is not None:
                for due in self._log.put(*answer):
                    yield due
                    self._permits.release()
            if self._images_error is not None:
                raise self._images_error
            if self._log.any_open:
                raise errors.ended(self._target)
        finally:
            self._abandoned = True
            self._permits.release()
            call.cancel()  # type: ignore[no-untyped-call]
            reader.join()

    def _next(self) -> FrameAnswer | None:
        while (left_s := self._log.seconds_left(self._timeout_s)) > 0:
            try:
                answer = self._answers.get(timeout=left_s)
            except queue.Empty:
                continue  # the timeout is over, unless the oldest open frame is newer than this wait
            if isinstance(answer, PolywandError):
                raise answer
            return answer
        raise errors.no_answer(self._target, self._timeout_s)

    def _requests(self) -> Iterator[pb.DetectStreamRequest]:
        """Read frames. This runs in grpc's thread, so an error is kept for the caller's thread."""
        try:
            for _, image in zip(iter(self._acquire_permit, False), self._images, strict=False):  # the permit first
                if (request := self._request(image)) is not None:
                    yield request
        except Exception as error:
            self._images_error = error

    def _acquire_permit(self) -> bool:
        self._permits.acquire()
        return not self._abandoned

    def _request(self, image: ImageLike) -> pb.DetectStreamRequest | None:
        frame_id = self._log.add()
        try:
            request = wire.detect_request(image, self._options)
            if request.ByteSize() < LARGE_FRAME_BYTES:
                return pb.DetectStreamRequest(frame_id=frame_id, request=request)
            self._answers.put((frame_id, self._detect_alone(request)))
        except PolywandError as error:
            self._answers.put((frame_id, error))
        return None

    def _read(self, call: Iterable[pb.DetectStreamResponse]) -> None:
        try:
            for reply in call:
                self._answers.put(frames.answer(reply))
        except PolywandError as error:
            self._answers.put(error)
        except grpc.RpcError as error:
            self._answers.put(errors.from_rpc(error, self._target))
        else:
            self._answers.put(None)
