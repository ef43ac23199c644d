"""A client in a process of its own, to be killed.

python -m tests.faults.victim TARGET upload     a small image and a click, then an image of 60 MB
python -m tests.faults.victim TARGET prompts    a small image and a click, then four prompts that take a minute
"""

import sys
import threading

import grpc
import numpy as np

from polywand_contract.v1 import annotation_pb2_grpc
from tests.faults.clients import BRIGHT
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

UPLOAD_BYTES = 60_000_000
FIRST_CLICK, SECOND_CLICK = (10, 10, POSITIVE), (20, 20, POSITIVE)


def main(target: str, what: str) -> None:
    """Do it, and wait for the end."""
    channel = grpc.insecure_channel(target, options=[("grpc.max_send_message_length", -1)])
    with InteractStream(annotation_pb2_grpc.AnnotationServiceStub(channel)) as stream:
        stream.ask(BRIGHT)
        stream.ask(prompt("shade", FIRST_CLICK))
        if what == "upload":
            stream.send(raw_image(np.zeros((4000, UPLOAD_BYTES // 12_000, 3), np.uint8)))
        else:
            send_prompts(stream)
        threading.Event().wait()


def send_prompts(stream: InteractStream) -> None:
    """Send as many prompts as the service takes to Triton at once; `shade` begins one of them, and the others wait."""
    for number in range(4):
        stream.send(prompt("shade", FIRST_CLICK, SECOND_CLICK, object_id=str(number)))


if __name__ == "__main__":
    main(*sys.argv[1:])
