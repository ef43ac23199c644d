"""How long the service's event loop is held by one callback, while messages and answers are as large as they may be.

    python -m tests.bench.held_loop

Whatever holds the loop holds up the clicks of all annotators. For each kind of message, it prints how many were sent,
the longest callback in milliseconds of processor time, and its name. The model answers at once (`tests/puppets.py`).
"""

import argparse
import json
import sys
import tempfile
import time
from asyncio import events, tasks
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from google.protobuf.message import Message

from polywand_contract.raster import encode_rle
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.puppets import make_puppets
from tests.running import running_service
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

SERVE = "--write-held-to"
# Callbacks that are shorter are not written down.
SHORTEST_MS = 1.0
SIDE, SMALL_SIDE = 2048, 256
MOST_PROMPTS = 1000
MOST_LABELS = 2000
ROUNDS = 5
OPTIONS = {"grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1}
FORMS = [pb.OUTPUT_FORM_POLYGONS, pb.OUTPUT_FORM_RLE]
TOOL = "keeper"


def serve(path: Path, arguments: list[str]) -> None:
    """Be the service; write its long callbacks to a file, one JSON object a line."""
    from polywand_server.cli import main  # noqa: PLC0415 - only in this process

    tasks.Task = tasks._PyTask  # type: ignore[attr-defined,misc]  # tells which coroutine a callback continues
    run = events.Handle._run

    def timed(self: events.Handle) -> None:
        what = _name(self)
        begin = time.thread_time()
        run(self)
        held = (time.thread_time() - begin) * 1000
        if held >= SHORTEST_MS:
            with path.open("a") as file:
                print(json.dumps({"ms": held, "what": what}), file=file)

    events.Handle._run = timed  # type: ignore[method-assign]
    sys.argv = ["polywand-server", *arguments]
    main()


def _name(handle: events.Handle) -> str:
    """Name what a callback continues: the function and line where its task waits, or the callback itself."""
    task = getattr(handle._callback, "__self__", None)
    inner = task.get_coro() if isinstance(task, tasks.Task) else None
    if inner is None:
        return repr(handle)[:200]
    while (further := getattr(inner, "cr_await", None)) is not None and hasattr(further, "cr_frame"):
        inner = further
    frame = getattr(inner, "cr_frame", None)
    return f"{getattr(inner, '__qualname__', inner)}:{frame.f_lineno if frame is not None else '?'}"


@dataclass(frozen=True, slots=True)
class Held:
    """The long callbacks of a service, as its file tells them."""

    path: Path

    def longest(self) -> tuple[float, str]:
        """The longest since the last call, in milliseconds, and its name."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.path.write_text("")
        found = [json.loads(line) for line in lines if line]
        return max(((entry["ms"], entry["what"]) for entry in found), default=(0.0, ""))


def polygons_seed(vertices: int, rings: int, side: int = SIDE) -> pb.SeedMask:
    """Many small polygons, or one large one, with so many vertices in all. side: of the image, in pixels."""
    each = vertices // rings
    columns = int(np.ceil(np.sqrt(rings)))
    cell = side / columns
    seed = pb.SeedMask()
    for number in range(rings):
        turn = np.linspace(0, 2 * np.pi, each, endpoint=False)
        radius = cell * (0.35 + 0.1 * (np.arange(each) % 2))
        x = (number % columns + 0.5) * cell + radius * np.cos(turn)
        y = (number // columns + 0.5) * cell + radius * np.sin(turn)
        polygon = seed.polygons.polygons.add()
        polygon.exterior.coordinates.extend(np.stack([x, y], 1).ravel().tolist())
    return seed


def rle_seed() -> pb.SeedMask:
    """Run lengths of nearly the most bytes: vertical stripes, broken at random."""
    mask = np.random.default_rng(0).random((SIDE, SIDE)) > 0.5
    mask = np.repeat(np.repeat(mask[::8, ::4], 8, axis=0), 4, axis=1)
    return pb.SeedMask(rle=pb.RleMask(width=SIDE, height=SIDE, counts=encode_rle(mask)))


def with_seed(seed: pb.SeedMask, number: int) -> pb.Prompt:
    """A seed alone: its own outline is the answer, with every vertex."""
    message = prompt(TOOL, object_id=str(number))
    message.seed.CopyFrom(seed)
    message.output.CopyFrom(pb.OutputOptions(tolerance=0, forms=FORMS))
    return message


def cases() -> Iterator[tuple[str, Callable[[int], pb.Prompt]]]:
    """Each kind of prompt, by the number of its object."""
    yield "a click", lambda number: prompt(TOOL, (9, 9, POSITIVE), object_id=str(number))
    many = [(float(index % SIDE), float(index // SIDE), POSITIVE) for index in range(10_000)]
    yield "10000 points, refused by the tool", lambda number: prompt(TOOL, *many, object_id=str(number))
    for vertices, rings in ((20_000, 1), (20_000, 5_000)):
        seed = polygons_seed(vertices, rings)
        yield f"a seed of {vertices} vertices, {rings} rings", lambda number, seed=seed: with_seed(seed, number)
    runs = rle_seed()
    yield f"a seed of {len(runs.rle.counts)} bytes of run lengths", lambda number: with_seed(runs, number)


def calls(stub: annotation_pb2_grpc.AnnotationServiceStub) -> Iterator[tuple[str, Callable[[int], Message]]]:
    """Each kind of call without a stream."""
    image = raw_image(np.zeros((SMALL_SIDE, SMALL_SIDE, 3), np.uint8))  # so that a seed takes a millisecond to fill
    digest = stub.Segment(pb.SegmentRequest(image=image, prompts=[prompt(TOOL, (9, 9, POSITIVE))])).image.digest
    held = pb.Image(digest=digest)
    small = polygons_seed(40, 1, SMALL_SIDE)
    seeds = [with_seed(small, number) for number in range(MOST_PROMPTS)]
    yield f"Segment of {MOST_PROMPTS} seeds", lambda _: stub.Segment(pb.SegmentRequest(image=held, prompts=seeds))
    boxes = [prompt("upper_half", box=(9, 9, 100 + number, 200), mask=True) for number in range(64)]
    yield "Segment of 64 boxes", lambda _: stub.Segment(pb.SegmentRequest(image=held, prompts=boxes))
    labels = [pb.LabelMapping(model_label=f"{number}") for number in range(MOST_LABELS)]
    yield (
        f"Detect with {MOST_LABELS} labels, refused",
        lambda _: refusal_of(lambda: stub.Detect(pb.DetectRequest(model="finder", image=held, labels=labels))),
    )
    outlines = pb.PolygonOptions(model="upper_half", output=pb.OutputOptions(forms=FORMS))
    yield "Detect with outlines", lambda _: stub.Detect(pb.DetectRequest(model="finder", image=held, polygons=outlines))


def refusal_of(call: Callable[[], Message]) -> Message:
    """Return an empty message for a call that is refused."""
    try:
        call()
    except grpc.RpcError:
        return pb.DetectResponse()
    raise AssertionError("the call was not refused")


def main() -> None:
    """Run all cases, and print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        held = Held(folder / "held.jsonl")
        repository = folder / "repository"
        make_puppets(repository)
        program = (sys.executable, "-m", "tests.bench.held_loop", SERVE, str(held.path))
        with running_service(folder / "log", f"--model-repository={repository}", program=program) as service:
            service.wait_ready(TOOL)
            with grpc.insecure_channel(service.target, list(OPTIONS.items())) as channel:
                stub = annotation_pb2_grpc.AnnotationServiceStub(channel)
                print(f"{'messages':48}{'answer, bytes':>15}{'longest, ms':>13}  callback")
                with InteractStream(stub) as stream:
                    stream.ask(raw_image(np.zeros((SIDE, SIDE, 3), np.uint8)))
                    for title, make in cases():
                        measure(title, lambda number, make=make: stream.ask(make(number)), held)
                for title, call in calls(stub):
                    measure(title, call, held)


def measure(title: str, ask: Callable[[int], Message], held: Held) -> None:
    """Send one kind of message, one after another, and print its row. ask: returns the answer."""
    held.longest()
    replies = [ask(number) for number in range(ROUNDS)]
    longest, what = held.longest()
    nbytes = max(reply.ByteSize() for reply in replies)
    print(f"{f'{ROUNDS} x {title}':48}{nbytes:15}{longest:13.1f}  {what}", flush=True)


if __name__ == "__main__":
    if SERVE in sys.argv:
        at = sys.argv.index(SERVE)
        serve(Path(sys.argv[at + 1]), sys.argv[at + 2 :])
    else:
        argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
        main()
