"""What one answer costs, stage by stage: real service, real Triton, photos of several sizes.

    make bench-stages    (or: python -m tests.bench.answers --model grabcut --answers 50)

For an interactor each round is a new object with a first click (two passes for tools that refine) and a second one
(one pass); for a detector it is a frame. Prints medians and 90th percentiles in milliseconds, as the service times its
stages and as the client waits.
"""

import argparse
import tempfile
import time
from pathlib import Path

import grpc
import numpy as np

from polywand.v1 import annotation_pb2 as pb
from polywand.v1 import annotation_pb2_grpc
from tests.bench.photos import photo_of
from tests.running import REPOSITORY, running_service
from tests.streams import POSITIVE, InteractStream, prompt

MEGAPIXELS = (0.5, 2, 12, 24)
STAGES = ("decode", "prepare", "triton", "geometry", "total")

WARM_UP = 5


def measure_clicks(stub: annotation_pb2_grpc.AnnotationServiceStub, model: str, megapixels: float, count: int) -> None:
    """Print one photo's rows for an interactor."""
    image = jpeg(megapixels)
    generator = np.random.default_rng(0)
    samples: dict[str, list[list[float]]] = {"first click": [], "next click": []}
    with InteractStream(stub) as stream:
        opened = stream.ask(image)
        side = opened.image.width
        for number in range(count + WARM_UP):
            jitter = generator.uniform(-0.02, 0.02, 4) * side
            points = [
                (0.43 * side + jitter[0], 0.25 * side + jitter[1], POSITIVE),
                (0.3 * side + jitter[2], 0.8 * side + jitter[3], POSITIVE),
            ]
            for kind, clicks in (("first click", 1), ("next click", 2)):
                begin = time.perf_counter()
                reply = stream.ask(prompt(model, *points[:clicks], object_id=str(number)))
                waited = (time.perf_counter() - begin) * 1000
                assert reply.segmentation.shape.polygons, reply
                samples[kind].append(row(reply.timing, waited))
    print(f"\n{megapixels:g} megapixels; decoded once in {opened.timing.decode_us / 1000:.0f} ms")
    print_table(samples)


def measure_frames(stub: annotation_pb2_grpc.AnnotationServiceStub, model: str, megapixels: float, count: int) -> None:
    """Print one photo's row for a detector."""
    request = pb.DetectRequest(model=model, image=jpeg(megapixels))
    rows = []
    for _ in range(count + WARM_UP):
        begin = time.perf_counter()
        reply = stub.Detect(request)
        rows.append(row(reply.timing, (time.perf_counter() - begin) * 1000))
    print(f"\n{megapixels:g} megapixels")
    print_table({"frame": rows})


def jpeg(megapixels: float) -> pb.Image:
    """A portrait scaled to a size, as a JPEG."""
    return pb.Image(encoded=photo_of("astronaut", megapixels).jpeg)


def row(timing: pb.Timing, waited_ms: float) -> list[float]:
    """One answer's figures."""
    return [*(getattr(timing, f"{stage}_us") / 1000 for stage in STAGES), waited_ms, timing.inferences]


def print_table(samples: dict[str, list[list[float]]]) -> None:
    """Print median / 90th percentile per column, without the warm-up."""
    print(f"{'':12}" + "".join(f"{name:>16}" for name in (*STAGES, "client waits", "passes")))
    for kind, rows in samples.items():
        median, ninety = np.percentile(np.array(rows[WARM_UP:]), [50, 90], axis=0)
        print(f"{kind:12}" + "".join(f"{f'{m:.1f} / {n:.1f}':>16}" for m, n in zip(median, ninety, strict=True)))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["wand_click", "grabcut", "nanodet"])
    parser.add_argument("--answers", type=int, default=30)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_service(Path(folder) / "log", f"--model-repository={REPOSITORY}") as service,
        grpc.insecure_channel(service.target, options=[("grpc.max_send_message_length", -1)]) as channel,
    ):
        service.wait_ready(*options.model)
        stub = annotation_pb2_grpc.AnnotationServiceStub(channel)
        kinds = {model.name: model.kind for model in stub.ListModels(pb.ListModelsRequest()).models}
        for model in options.model:
            measure = measure_frames if kinds[model] == pb.MODEL_KIND_DETECTOR else measure_clicks
            print(f"\n{model}: milliseconds, median / 90th percentile of {options.answers}")
            for megapixels in MEGAPIXELS:
                measure(stub, model, megapixels, options.answers)


if __name__ == "__main__":
    main()
