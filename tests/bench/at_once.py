"""A script that waits for /readyz, and then detects and clicks: it works at once, as often as it is tried.

python -m tests.bench.at_once [--times 20] [--model-repository FOLDER]
"""

import argparse
import tempfile
from pathlib import Path

import grpc
import skimage.data

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.running import REPOSITORY, Service, running_service, wait_for
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

CLICKED = ("grabcut", "wand_brs", "wand_click")


def detect_and_click(service: Service, *tools: str) -> None:
    """Wait until the service says that it is ready, and use its tools at once; the first error ends it."""
    wait_for(lambda: service.get("/readyz")[0] == 200, 120, service)
    image = raw_image(skimage.data.astronaut())
    with grpc.insecure_channel(service.target) as channel:
        stub = annotation_pb2_grpc.AnnotationServiceStub(channel)
        assert stub.Detect(pb.DetectRequest(model="nanodet", image=image), timeout=60).detections
        with InteractStream(stub) as stream:
            stream.ask(image)
            for tool in tools:
                reply = stream.ask(prompt(tool, (220, 130, POSITIVE)))
                assert reply.segmentation.shape.polygons, reply


def main() -> None:
    """Start the service so many times, and say how often the script worked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--model-repository", type=Path, default=REPOSITORY)
    options = parser.parse_args()
    tools = [name for name in CLICKED if (options.model_repository / name.removesuffix("_click")).is_dir()]
    worked = 0
    for number in range(1, options.times + 1):
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            with running_service(log, f"--model-repository={options.model_repository}") as service:
                try:
                    detect_and_click(service, *tools)
                    worked += 1
                except (AssertionError, grpc.RpcError) as error:
                    print(f"start {number}: {error}", flush=True)
    print(f"it worked at once in {worked} of {options.times} starts, with nanodet, {', '.join(tools)}")
    raise SystemExit(worked != options.times)


if __name__ == "__main__":
    main()
