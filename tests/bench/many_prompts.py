"""Prompts per second on one photo: many in one Segment call, and the same one after another on a stream.

    python -m tests.bench.many_prompts [--prompts 64] [--rounds 5] [--tools wand_box wand_click]

Each tool gets boxes, and wand_click gets clicks too. Rounds of both ways take turns. Each row shows the best round of
each, the least processor time of a prompt, of the service with its Triton, in milliseconds (which other work on the
machine changes little), and what the median call spent. Every round uses other prompts, so that nothing is remembered.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import psutil
import skimage.data

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1.annotation_pb2_grpc import AnnotationServiceStub
from polywand_server.lanes import EXPECTED_SECONDS
from tests.running import Service, copy_newest, running_service
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

TOOLS = ("wand_box", "wand_click")
STAGES = ("wait", "prepare", "triton", "geometry")
SMALLEST_SIDE, LARGEST_SIDE = 40, 200


@dataclass(slots=True)
class Rates:
    """Prompts per second and processor time of a prompt in ms, round by round. timings: of the calls."""

    title: str
    stream: list[float] = field(default_factory=list)
    segment: list[float] = field(default_factory=list)
    stream_cpu: list[float] = field(default_factory=list)
    segment_cpu: list[float] = field(default_factory=list)
    timings: list[pb.Timing] = field(default_factory=list)

    def __str__(self) -> str:
        ratio = max(self.segment) / max(self.stream)
        timing = sorted(self.timings, key=lambda timing: timing.total_us)[len(self.timings) // 2]
        stages = "  ".join(f"{stage} {getattr(timing, f'{stage}_us') / 1000:.0f}" for stage in STAGES)
        rates = f"{max(self.stream):9.1f}{max(self.segment):9.1f}{ratio:7.2f}"
        rates += f"{min(self.stream_cpu):9.1f}{min(self.segment_cpu):9.1f}"
        return f"{self.title:22}{rates}{timing.total_us / 1000:9.0f}{timing.inferences:6}   {stages}"


def prompts(tool: str, kind: str, count: int, numbers: np.random.Generator, side: int) -> list[pb.Prompt]:
    """Prompts of a kind at random places of an image of this size."""
    found = []
    for number in range(count):
        width, height = numbers.uniform(SMALLEST_SIDE, LARGEST_SIDE, 2)
        x, y = numbers.uniform(0, side - width), numbers.uniform(0, side - height)
        if kind == "boxes":
            found.append(prompt(tool, box=(x, y, x + width, y + height), object_id=str(number)))
        else:
            found.append(prompt(tool, (x, y, POSITIVE), object_id=str(number)))
    return found


def kinds(tools: list[str]) -> Iterator[tuple[str, str]]:
    """Tools and kinds of prompts."""
    for tool in tools:
        yield tool, "boxes"
        if tool == "wand_click":
            yield tool, "clicks"


def processor_ms(service: Service) -> float:
    """Processor time of the service and all its processes so far, in milliseconds."""
    root = psutil.Process(service.process.pid)
    times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return sum(time.user + time.system for time in times) * 1000


def measure(service: Service, stub: AnnotationServiceStub, tools: list[str], count: int, rounds: int) -> list[Rates]:
    """Let both ways take turns."""
    pixels = skimage.data.astronaut()
    image, numbers = raw_image(pixels), np.random.default_rng(1)
    found = []
    for tool, kind in kinds(tools):
        rates = Rates(f"{tool}, {count} {kind}")
        for turn in range(rounds + 1):
            asked = prompts(tool, kind, count, numbers, len(pixels))
            with InteractStream(stub) as stream:
                stream.ask(image)
                began, used = time.perf_counter(), processor_ms(service)
                for message in asked:
                    assert stream.ask(message, 60).HasField("segmentation")
                by_stream = count / (time.perf_counter() - began), (processor_ms(service) - used) / count
            time.sleep(EXPECTED_SECONDS)  # until then, calls of many prompts would give way to the stream
            began, used = time.perf_counter(), processor_ms(service)
            response = stub.Segment(pb.SegmentRequest(image=image, prompts=asked))
            by_segment = count / (time.perf_counter() - began), (processor_ms(service) - used) / count
            assert all(result.HasField("segmentation") for result in response.results)
            if turn:  # the first is for warming up
                for rate, cpu, (value, used) in (
                    (rates.stream, rates.stream_cpu, by_stream),
                    (rates.segment, rates.segment_cpu, by_segment),
                ):
                    rate.append(value)
                    cpu.append(used)
                rates.timings.append(response.timing)
        found.append(rates)
        print(rates, flush=True)
    return found


def main() -> None:
    """Start a service, measure, and print a row for each kind of prompts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=64, help="in one call")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tools", nargs="+", default=list(TOOLS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        repository = copy_newest(Path(name) / "models", "wand", "nanodet")
        with running_service(Path(name) / "log", f"--model-repository={repository}") as service:
            service.wait_ready("nanodet", *options.tools)
            with grpc.insecure_channel(service.target) as channel:
                print(
                    f"{'':22}{'stream':>9}{'segment':>9}{'ratio':>7}{'call, ms':>9}{'inf.':>6}   stages of a call, ms"
                )
                measure(service, AnnotationServiceStub(channel), options.tools, options.prompts, options.rounds)


if __name__ == "__main__":
    main()
