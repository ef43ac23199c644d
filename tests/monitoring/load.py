"""A short load of everything that metrics count, on the puppets."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import grpc
import numpy as np

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.running import Service
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

PAUSE_SECONDS = 0.1
SMALL = raw_image(np.zeros((256, 256, 3), np.uint8))


@contextmanager
def under_load(service: Service) -> Iterator[None]:
    """Click, drag, call and stream frames until the block ends."""
    over = threading.Event()
    with grpc.insecure_channel(service.target) as channel:
        stub = annotation_pb2_grpc.AnnotationServiceStub(channel)
        work = (_clicks, _segments, _frames, _mistakes)
        threads = [threading.Thread(target=_repeat, args=(one, stub, over)) for one in work]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()


def _repeat(work: Callable[..., None], stub: annotation_pb2_grpc.AnnotationServiceStub, over: threading.Event) -> None:
    for number in itertools.count():
        if over.is_set():
            return
        with suppress(grpc.RpcError):
            work(stub, number)
        time.sleep(PAUSE_SECONDS)


def _clicks(stub: annotation_pb2_grpc.AnnotationServiceStub, number: int) -> None:
    """An annotator clicks, then drags faster than the model answers."""
    with InteractStream(stub) as stream:
        stream.ask(SMALL)
        for x in range(20):
            stream.ask(prompt("counter", (10 + x, 128, POSITIVE)))
        for x in range(20):
            last = stream.send(prompt("disk", (10 + x, number % 200, POSITIVE)))
        while stream.receive().sequence != last:
            pass


def _segments(stub: annotation_pb2_grpc.AnnotationServiceStub, number: int) -> None:
    prompts = [prompt("counter", (x, number % 200, POSITIVE), object_id=str(x)) for x in range(5)]
    stub.Segment(pb.SegmentRequest(image=SMALL, prompts=prompts))


def _frames(stub: annotation_pb2_grpc.AnnotationServiceStub, number: int) -> None:
    """A new image each time, of which the service cannot keep all."""
    image = raw_image(np.full((1024, 1024, 3), number % 256, np.uint8))
    stub.Detect(pb.DetectRequest(model="finder", image=image))


def _mistakes(stub: annotation_pb2_grpc.AnnotationServiceStub, number: int) -> None:
    """A picture that is none, a model that fails, a tool that is not there."""
    requests = (
        pb.DetectRequest(model="finder", image=pb.Image(encoded=b"no picture")),
        pb.DetectRequest(model="fails", image=SMALL),
        pb.DetectRequest(model="none", image=SMALL),
    )
    stub.Segment(pb.SegmentRequest(image=SMALL, prompts=[prompt("none", (1, 1, POSITIVE))]))
    stub.Detect(requests[number % 3])
