"""What one click costs, stage by stage: real service, real Triton, photos of several sizes.

    make bench            (or: python -m tests.bench.clicks --model grabcut --clicks 50)

Each round is a new object with a first click (two passes for tools that refine) and a second one (one pass). Prints
medians and 90th percentiles in milliseconds, as the service times its stages and as the client waits.
"""

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import grpc
import numpy as np
import skimage.data

from polywand.v1 import annotation_pb2 as pb
from polywand.v1 import annotation_pb2_grpc
from tests.running import REPOSITORY, running_service
from tests.streams import POSITIVE, InteractStream, prompt

MEGAPIXELS = (0.5, 2, 12, 24)
STAGES = ("wait", "prepare", "triton", "geometry", "total")


def photo(megapixels: float) -> np.ndarray:
    """A portrait scaled to a size, RGB uint8."""
    side = round((megapixels * 1e6) ** 0.5)
    return cv2.resize(skimage.data.astronaut(), (side, side), interpolation=cv2.INTER_CUBIC)


def measure(stub: annotation_pb2_grpc.AnnotationServiceStub, model: str, megapixels: float, clicks: int) -> None:
    """Print one photo's rows."""
    pixels = photo(megapixels)
    side = pixels.shape[0]
    encoded = cv2.imencode(".jpg", pixels[..., ::-1])[1].tobytes()
    generator = np.random.default_rng(0)
    samples: dict[str, list[list[float]]] = {"first click": [], "next click": []}
    with InteractStream(stub) as stream:
        opened = stream.ask(pb.Image(encoded=encoded)).timing
        for number in range(clicks + 5):
            jitter = generator.uniform(-0.02, 0.02, 4) * side
            points = [
                (0.43 * side + jitter[0], 0.25 * side + jitter[1], POSITIVE),
                (0.3 * side + jitter[2], 0.8 * side + jitter[3], POSITIVE),
            ]
            for kind, count in (("first click", 1), ("next click", 2)):
                begin = time.perf_counter()
                reply = stream.ask(prompt(model, *points[:count], object_id=str(number)))
                waited = (time.perf_counter() - begin) * 1000
                assert reply.segmentation.shape.polygons, reply
                if number >= 5:
                    stages = [getattr(reply.timing, f"{stage}_us") / 1000 for stage in STAGES]
                    samples[kind].append([*stages, waited, reply.timing.inferences])
    print(f"\n{megapixels:g} megapixels; decode {opened.decode_us / 1000:.0f} ms once")
    print(f"{'':12}" + "".join(f"{name:>16}" for name in (*STAGES, "client waits", "passes")))
    for kind, rows in samples.items():
        median, ninety = np.percentile(np.array(rows), [50, 90], axis=0)
        print(f"{kind:12}" + "".join(f"{f'{m:.1f} / {n:.1f}':>16}" for m, n in zip(median, ninety, strict=True)))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="wand_click")
    parser.add_argument("--clicks", type=int, default=60)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_service(Path(folder) / "log", f"--model-repository={REPOSITORY}") as service,
        grpc.insecure_channel(service.target, options=[("grpc.max_send_message_length", -1)]) as channel,
    ):
        service.wait_ready(options.model)
        print(f"{options.model}: milliseconds, median / 90th percentile of {options.clicks}")
        for megapixels in MEGAPIXELS:
            measure(annotation_pb2_grpc.AnnotationServiceStub(channel), options.model, megapixels, options.clicks)


if __name__ == "__main__":
    main()
