"""Clients that read late or never, and one that works as an annotator does."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator

import grpc
import numpy as np
from numpy.typing import NDArray

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.running import Service
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

END_SECONDS = 300.0
# Of a connection whose client reads nothing: then the service can send 64 kB, and not some MB, before it has to wait.
NARROW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))
BRIGHT = raw_image(np.full((64, 64, 3), 255, np.uint8))  # all of it is `shade`'s object


def own_connection(service: Service, *more: tuple[str, int]) -> grpc.Channel:
    """A channel that shares its connection with no other; it takes messages of any size. more: options of gRPC's."""
    options = [
        *more,
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
    ]
    return grpc.insecure_channel(service.target, options=options)


def status(reply: pb.InteractResponse) -> grpc.StatusCode:
    """OK for an answer, the error's code for an error."""
    if reply.HasField("error"):
        return next(code for code in grpc.StatusCode if code.value[0] == reply.error.code)
    return grpc.StatusCode.OK


def comb(side: int, tooth: int = 2) -> pb.Image:
    """Bright teeth on a bright bar: for `shade` one object, with as long an outline as an image can have.

    side: of the image in pixels. tooth: width of a tooth, and of the gap beside it.
    """
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[:, np.arange(side) // tooth % 2 == 0] = pixels[:tooth] = 255
    return raw_image(pixels)


def requests(messages: Iterable[pb.Image | pb.Prompt]) -> Iterator[pb.InteractRequest]:
    """Put messages into requests, with sequences from 1."""
    for sequence, message in enumerate(messages, 1):
        yield pb.InteractRequest(sequence=sequence, **{type(message).__name__.lower(): message})


def unfinished(messages: Iterable[pb.Image | pb.Prompt], end: threading.Event) -> Iterator[pb.Image | pb.Prompt]:
    """The messages, and then nothing until the end: a client that may still go on."""
    yield from messages
    end.wait()


class Talk:
    """An Interact stream of messages that are known beforehand, sent as fast as they go; half-closed after the last.

    sent: messages that gRPC has taken so far. replies: so far, in the order of their arrival.
    before_reading: is called before each reply is read.
    """

    def __init__(
        self,
        stub: annotation_pb2_grpc.AnnotationServiceStub,
        messages: Iterable[pb.Image | pb.Prompt],
        before_reading: Callable[[], object] = lambda: None,
    ) -> None:
        self.sent = 0
        self.replies: list[pb.InteractResponse] = []
        self._before_reading = before_reading
        self.call = stub.Interact(self._counted(requests(messages)))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def ended(self) -> bool:
        """Whether nothing will come any more."""
        return not self._reader.is_alive()

    def end(self) -> grpc.StatusCode:
        """Wait for the stream's end and return its status."""
        self._reader.join(END_SECONDS)
        assert not self._reader.is_alive(), f"no end within {END_SECONDS} s after {len(self.replies)} replies"
        return self.call.code()

    def _counted(self, messages: Iterator[pb.InteractRequest]) -> Iterator[pb.InteractRequest]:
        for message in messages:
            yield message
            self.sent += 1

    def _read(self) -> None:
        try:
            self._before_reading()
            for reply in self.call:
                self.replies.append(reply)
                self._before_reading()
        except grpc.RpcError:
            pass  # `end` tells the status


class Annotator:
    """An annotator: clicks somewhere, waits for the answer, corrects it, takes that back, and goes on, until stopped.

    replies: to every click, in order. A thread of its own; whatever ends the stream is raised by `stop`.
    """

    PAUSE_SECONDS = 0.02

    def __init__(
        self,
        stub: annotation_pb2_grpc.AnnotationServiceStub,
        image: NDArray[np.uint8],
        *,
        model: str = "quick",
        version: int = 0,
        seed: int = 0,
    ) -> None:
        self.replies: list[pb.InteractResponse] = []
        self._model, self._version = model, version
        self._image = image
        self._random = np.random.default_rng(seed)
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(stub,), daemon=True)
        self._thread.start()

    def __enter__(self) -> "Annotator":
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(END_SECONDS)

    def stop(self) -> list[pb.InteractResponse]:
        """Stop after this click and return all replies. Fails if the stream has ended or left a click unanswered."""
        self.__exit__()
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure
        return self.replies

    def _run(self, stub: annotation_pb2_grpc.AnnotationServiceStub) -> None:
        try:
            with InteractStream(stub) as stream:
                stream.ask(raw_image(self._image))
                while not self._stopped.is_set():
                    for clicks in self._clicks():
                        self.replies.append(stream.ask(prompt(self._model, *clicks, version=self._version)))
                        time.sleep(self.PAUSE_SECONDS)
        except BaseException as failure:
            self._failure = failure

    def _clicks(self) -> Iterator[list[tuple[float, float, int]]]:
        height, width = self._image.shape[:2]
        first, second = ((*(self._random.uniform(0.1, 0.9, 2) * (width, height)), POSITIVE) for _ in range(2))
        yield [first]
        yield [first, second]
        yield [first]
