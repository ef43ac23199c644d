"""How long an annotator waits when Triton dies: it is killed again and again while one clicks on.

    make bench-outage      (or: python -m tests.bench.outage --kills 5)

Per kill, in milliseconds: from the kill to the service's word that Triton is ready again, from that word to the first
good answer on the stream that was open all the time, and how many prompts were answered with UNAVAILABLE meanwhile. The
prompts come one after another, each as soon as the one before is answered, 20 ms after an error.
"""

import argparse
import re
import tempfile
import time
from datetime import datetime
from pathlib import Path

import grpc
import psutil

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.bench.photos import photos
from tests.running import REPOSITORY, Service, running_service
from tests.streams import POSITIVE, InteractStream, prompt

MODELS = ("wand_click", "grabcut", "nanodet")
READY_AGAIN = re.compile(r"^(\S+ \S+) WARNING .*tritonserver runs again", re.MULTILINE)
PAUSE_SECONDS = 0.02


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_service(Path(folder) / "log", f"--model-repository={REPOSITORY}") as service,
        grpc.insecure_channel(service.target) as channel,
        InteractStream(annotation_pb2_grpc.AnnotationServiceStub(channel)) as stream,
    ):
        service.wait_ready(*MODELS)
        photo = photos(0.5)[0]
        stream.ask(pb.Image(encoded=photo.jpeg))
        print(f"{'kill':>4} {'ready after, ms':>16} {'first good answer after that, ms':>33} {'unavailable':>12}")
        for number in range(options.kills):
            killed, good, refused = measure(service, stream, photo.width / 2, photo.height / 2, number)
            ready = datetime.strptime(
                READY_AGAIN.findall(service.log.read_text())[-1], "%Y-%m-%d %H:%M:%S,%f"
            ).timestamp()
            print(f"{number + 1:>4} {(ready - killed) * 1000:>16.0f} {(good - ready) * 1000:>33.0f} {refused:>12}")


def measure(service: Service, stream: InteractStream, x: float, y: float, number: int) -> tuple[float, float, int]:
    """Kill Triton and click on: when it was killed, when the first good answer came (Unix time), errors between."""
    children = psutil.Process(service.process.pid).children(recursive=True)
    killed = time.time()
    next(child for child in children if child.name() == "tritonserver").kill()
    refused = 0
    while True:
        # Each a place of its own, so that no answer comes from memory.
        reply = stream.ask(prompt("wand_click", (x + number, y + refused / 100, POSITIVE)))
        if reply.HasField("segmentation"):
            return killed, time.time(), refused
        refused += 1
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
