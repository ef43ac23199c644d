"""Two hundred annotators at once, each on its own connection."""

from contextlib import ExitStack

import cv2
import psutil

from polywand_contract.v1.annotation_pb2 import Image
from polywand_contract.v1.annotation_pb2_grpc import AnnotationServiceStub
from tests.faults.clients import own_connection
from tests.faults.conftest import PATIENCE_SECONDS
from tests.faults.footprint import INTERACT_STREAMS, MASK_MEMORY, TASKS, descriptors, wait_for_rest
from tests.faults.models import QUICK_SIDE
from tests.running import Service, images_in_use, wait_for
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

STREAMS = 200
FIRST_STREAMS = 32  # before threads and files are counted, so that those are there which every service keeps
IMAGE_BYTES = 256 * 256 * 3
MAP_BYTES = QUICK_SIDE * QUICK_SIDE * 4
# gRPC and the executors start threads and open files as they need them, and keep some: up to 8 were seen. A service
# that kept one for each stream would have 200 more.
SPARE = 50


def threads(service: Service) -> int:
    """Threads of the service's own process."""
    return psutil.Process(service.process.pid).num_threads()


def answered(stack: ExitStack, service: Service, image: Image, count: int) -> list[InteractStream]:
    """Open streams, each with the same photo and an answer, until the stack is left."""
    channels = [stack.enter_context(own_connection(service)) for _ in range(count)]
    streams = [stack.enter_context(InteractStream(AnnotationServiceStub(channel))) for channel in channels]
    for number, stream in enumerate(streams):
        stream.send(image)
        stream.send(prompt("quick", (10 + number, 30 + number % 7, POSITIVE)))
    for stream in streams:
        assert stream.receive(PATIENCE_SECONDS).image.width == 256
        assert stream.receive(PATIENCE_SECONDS).HasField("segmentation")
    return streams


def test_two_hundred_streams_are_answered_counted_and_leave_nothing(sturdy, astronaut):
    image = raw_image(cv2.resize(astronaut, (256, 256)))
    tasks_before = sturdy.metric(TASKS)
    with ExitStack() as stack:
        answered(stack, sturdy, image, FIRST_STREAMS)
    wait_for_rest(sturdy)
    threads_before, files_before = threads(sturdy), descriptors(sturdy)
    with ExitStack() as stack:
        streams = answered(stack, sturdy, image, STREAMS)
        assert sturdy.metric(INTERACT_STREAMS) == STREAMS
        assert IMAGE_BYTES <= images_in_use(sturdy) < 2 * IMAGE_BYTES  # they share it
        assert sturdy.metric(MASK_MEMORY) >= STREAMS * MAP_BYTES
        assert descriptors(sturdy) >= STREAMS
        for stream in streams[::2]:  # half of them leave in order, the others are cut
            stream.finish()
            assert stream.receive_end().name == "OK"
    wait_for_rest(sturdy)
    wait_for(lambda: descriptors(sturdy) <= files_before + SPARE, 120, sturdy)
    wait_for(lambda: threads(sturdy) <= threads_before + SPARE, 120, sturdy)
    wait_for(lambda: sturdy.metric(TASKS) <= tasks_before, 120, sturdy)
