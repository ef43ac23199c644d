"""What one answer costs, stage by stage: real service, real Triton, photos of several sizes.

    make bench-stages    (or: python -m tests.bench.answers --model grabcut --answers 50)

For an interactor each round is a new object: what the tool starts from (a click, a box or extreme points; several
passes for tools that refine), one click more (one pass, or two where the mask has moved), and a click that contradicts
it beside it, which is what makes f-BRS work; for a detector it is a frame. Prints medians and 90th percentiles in
milliseconds, as the service times its stages and as the client waits.
"""

import argparse
import tempfile
import time
from pathlib import Path

import grpc
import numpy as np

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.bench.photos import photo_of
from tests.running import REPOSITORY, running_service
from tests.streams import EXTREME, NEGATIVE, POSITIVE, InteractStream, prompt

MEGAPIXELS = (0.5, 2, 12, 24)
STAGES = ("decode", "prepare", "triton", "geometry", "total")

WARM_UP = 5

Point = tuple[float, float, int]
Corners = tuple[float, float, float, float]


def measure_prompts(
    stub: annotation_pb2_grpc.AnnotationServiceStub, model: pb.Model, megapixels: float, count: int
) -> None:
    """Print one photo's rows for an interactor."""
    image = jpeg(megapixels)
    generator = np.random.default_rng(0)
    samples: dict[str, list[list[float]]] = {"start": [], "next click": [], "contradiction": []}
    with InteractStream(stub) as stream:
        opened = stream.ask(image)
        side = opened.image.width
        for number in range(count + WARM_UP):
            begun, box = start(model.interactor, side, generator)
            x, y = (0.3 * side, 0.8 * side) + generator.uniform(-0.02, 0.02, 2) * side
            clicks = [(x, y, POSITIVE), (x + 0.02 * side, y + 0.02 * side, NEGATIVE)]
            for kind, added in (("start", 0), ("next click", 1), ("contradiction", 2)):
                begin = time.perf_counter()
                reply = stream.ask(prompt(model.name, *begun, *clicks[:added], box=box, object_id=str(number)))
                waited = (time.perf_counter() - begin) * 1000
                assert reply.segmentation.shape.polygons, reply
                samples[kind].append(row(reply.timing, waited))
    print(f"\n{megapixels:g} megapixels; decoded once in {opened.timing.decode_us / 1000:.0f} ms")
    print_table(samples)


def start(needs: pb.InteractorSpec, side: float, generator: np.random.Generator) -> tuple[list[Point], Corners | None]:
    """Point at the portrait's woman in the way that a tool starts from, a little elsewhere each time."""
    jitter = generator.uniform(-0.02, 0.02, 4) * side
    left, top, right, bottom = np.array([0.03, 0.03, 0.71, 0.99]) * side + np.minimum(jitter, 0.009 * side)
    if needs.min_extreme_points:
        middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
        ends = [(left, bottom), (middle_x, top), (right, middle_y), (middle_x, bottom)]
        return [(float(x), float(y), EXTREME) for x, y in ends], None
    if needs.box == pb.BOX_USE_REQUIRED:
        return [], (float(left), float(top), float(right), float(bottom))
    return [(0.43 * side + float(jitter[0]), 0.25 * side + float(jitter[1]), POSITIVE)], None


def measure_frames(
    stub: annotation_pb2_grpc.AnnotationServiceStub, model: pb.Model, megapixels: float, count: int
) -> None:
    """Print one photo's row for a detector."""
    request = pb.DetectRequest(model=model.name, image=jpeg(megapixels))
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
    print(f"{'':14}" + "".join(f"{name:>16}" for name in (*STAGES, "client waits", "passes")))
    for kind, rows in samples.items():
        median, ninety = np.percentile(np.array(rows[WARM_UP:]), [50, 90], axis=0)
        print(f"{kind:14}" + "".join(f"{f'{m:.1f} / {n:.1f}':>16}" for m, n in zip(median, ninety, strict=True)))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", nargs="+", default=["wand_click", "wand_extreme", "wand_box", "wand_brs", "grabcut", "nanodet"]
    )
    parser.add_argument("--answers", type=int, default=30)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_service(Path(folder) / "log", f"--model-repository={REPOSITORY}") as service,
        grpc.insecure_channel(service.target, options=[("grpc.max_send_message_length", -1)]) as channel,
    ):
        service.wait_ready(*options.model)
        stub = annotation_pb2_grpc.AnnotationServiceStub(channel)
        listed = {model.name: model for model in stub.ListModels(pb.ListModelsRequest()).models}
        for name in options.model:
            measure = measure_frames if listed[name].kind == pb.MODEL_KIND_DETECTOR else measure_prompts
            print(f"\n{name}: milliseconds, median / 90th percentile of {options.answers}")
            for megapixels in MEGAPIXELS:
                measure(stub, listed[name], megapixels, options.answers)


if __name__ == "__main__":
    main()
