"""A well-behaved client, whose every call has to succeed whatever others do: it lists models, and it clicks."""

import itertools
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
import numpy as np

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1.annotation_pb2_grpc import AnnotationServiceStub
from tests.streams import POSITIVE, InteractStream, prompt

PATIENCE_SECONDS = 30.0
LIST_PAUSE_SECONDS = 0.05
CLICK_PAUSE_SECONDS = 0.2
CLICKS_OF_A_STREAM = 8
MARGIN = 40  # of clicks from the photo's edge, in pixels


@dataclass(slots=True)
class Failure:
    """A call that did not succeed. begin, end: by the monotonic clock, seconds."""

    what: str
    begin: float
    end: float


@dataclass(slots=True)
class Bystander:
    """Two threads at work between entering and leaving the context.

    target: of the service. photo: an image file, and its width and height.
    list_seconds, click_seconds: of all calls that succeeded, as this client saw them. failures: all others.
    """

    target: str
    photo: bytes
    size: tuple[int, int]
    list_seconds: list[float] = field(default_factory=list)
    click_seconds: list[float] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Bystander":
        self._stopped.clear()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._list, self._click)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE_SECONDS)

    def work_once(self) -> None:
        """One round of both, in this thread; for a service that is to be measured as it is after its first calls."""
        with self._channel() as channel:
            AnnotationServiceStub(channel).ListModels(pb.ListModelsRequest(), timeout=PATIENCE_SECONDS)
            self._stream(AnnotationServiceStub(channel), clicks=2)

    def _channel(self) -> grpc.Channel:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        return grpc.insecure_channel(self.target, options=options)

    def _list(self) -> None:
        with self._channel() as channel:
            stub = AnnotationServiceStub(channel)
            while not self._stopped.wait(LIST_PAUSE_SECONDS):
                self._note(self.list_seconds, lambda: stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_SECONDS))

    def _click(self) -> None:
        while not self._stopped.is_set():
            with self._channel() as channel:
                self._stream(AnnotationServiceStub(channel), CLICKS_OF_A_STREAM)

    def _stream(self, stub: AnnotationServiceStub, clicks: int) -> None:
        """A new stream, an image, and clicks, the first of which runs a detection too."""
        width, height = self.size
        places = np.random.default_rng(len(self.click_seconds)).uniform(
            MARGIN, (width - MARGIN, height - MARGIN), (clicks, 2)
        )
        with InteractStream(stub) as stream:
            if not self._note([], lambda: _image(stream, self.photo)):
                return
            for (x, y), number in zip(places, itertools.count()):
                if self._stopped.wait(CLICK_PAUSE_SECONDS):
                    return
                message = prompt("wand_click", (float(x), float(y), POSITIVE), object_id=str(number % 3))
                if not self._note(self.click_seconds, lambda message=message: _outline(stream, message)):
                    return

    def _note(self, seconds: list[float], call: Callable[[], object]) -> bool:
        begin = time.monotonic()
        try:
            call()
        except Exception as error:
            what = "no answer in time" if isinstance(error, queue.Empty) else f"{type(error).__name__}: {error}"[:500]
            self.failures.append(Failure(what, begin, time.monotonic()))
            self._stopped.wait(1)
            return False
        seconds.append(time.monotonic() - begin)
        return True


def _image(stream: InteractStream, photo: bytes) -> None:
    reply = stream.ask(pb.Image(encoded=photo), PATIENCE_SECONDS)
    assert reply.HasField("image"), f"an image was answered with {reply}"


def _outline(stream: InteractStream, message: pb.Prompt) -> None:
    reply = stream.ask(message, PATIENCE_SECONDS)
    assert reply.HasField("segmentation"), f"a click was answered with {reply}"
