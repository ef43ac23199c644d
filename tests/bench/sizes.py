"""One annotator on photos of one size: the service and the bare model click for click, the JSON server in between."""

import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import numpy as np

from tests.bench.annotator import Annotator
from tests.bench.bare import BareModel
from tests.bench.json_client import JsonAnnotator
from tests.bench.photos import Click, Photo, photos
from tests.bench.player import Answer
from tests.bench.samples import Samples
from tests.bench.servers import Servers

# Of wand_click at a first click, most of the time; of others one.
FIRST_INFERENCES = 3
OBJECTS_PER_PHOTO = 4
WARM_UP_OBJECTS = 3
JSON_SHARE = 0.35  # of the time; its clicks take seconds
LEAST_JSON_CLICKS = 3
LONGEST = 1.6  # times the time that was given, for the sake of enough samples


@dataclass(slots=True)
class Pairs:
    """Waits for the same number of inferences, of the service and the bare model, one right after the other."""

    service: Samples = field(default_factory=Samples)
    bare: Samples = field(default_factory=Samples)

    @property
    def added(self) -> Samples:
        """What the service added, pair by pair."""
        return Samples(service - bare for service, bare in zip(self.service, self.bare, strict=True))


@dataclass(slots=True)
class SizeResult:
    """Milliseconds and bytes at one photo size.

    by_click: the service's waits by click index from 1; undo is the step back after an object's last click.
    json_parsing: the part of json in which the client parses the mask.
    next_bytes, first_bytes, json_bytes: sent and received for one click. first_bytes includes the photo, sent once.
    """

    megapixels: float
    jpeg_bytes: float = 0
    opened: Samples = field(default_factory=Samples)
    by_click: dict[int, Samples] = field(default_factory=dict)
    undo: Samples = field(default_factory=Samples)
    first: Pairs = field(default_factory=Pairs)
    next: Pairs = field(default_factory=Pairs)
    json: Samples = field(default_factory=Samples)
    json_parsing: Samples = field(default_factory=Samples)
    first_bytes: Samples = field(default_factory=Samples)
    next_bytes: Samples = field(default_factory=Samples)
    json_bytes: Samples = field(default_factory=Samples)


async def measure_size(servers: Servers, megapixels: float, seconds: float, least_pairs: int) -> SizeResult:
    """Click until the time is over and there are enough pairs of next clicks."""
    result = SizeResult(megapixels, jpeg_bytes=float(np.mean([len(photo.jpeg) for photo in photos(megapixels)])))
    generator = np.random.default_rng(0)
    async with AsyncExitStack() as stack:
        annotator = await stack.enter_async_context(Annotator(servers.target, servers.tool))
        bare = await stack.enter_async_context(BareModel(servers.triton, servers.model))
        peer = await stack.enter_async_context(JsonAnnotator(servers.json_url))
        warm_up = SizeResult(megapixels)
        for number, photo in zip(range(WARM_UP_OBJECTS), walk(megapixels), strict=False):
            await _object(annotator, bare, photo, await annotator.open(photo), f"warm {number}", generator, warm_up)
        await peer.open(photos(megapixels)[0])
        await peer.click("", photos(megapixels)[0].clicks(generator)[:1])

        begin, json_seconds = time.perf_counter(), 0.0
        current, opened = None, None
        for number, photo in enumerate(walk(megapixels)):
            if photo is not current:
                current, opened = photo, await annotator.open(photo)
                result.opened.append(opened.wait_ms)
                # For it a detector looks at the photo, which the bare model has no part in.
                await annotator.click("before", photo.clicks(generator)[:1])
                await peer.open(photo)
            clicks = await _object(annotator, bare, photo, opened, str(number), generator, result)
            elapsed = time.perf_counter() - begin
            if json_seconds < JSON_SHARE * elapsed:
                answer = await peer.click("", clicks[: 1 + number % len(clicks)])
                json_seconds += answer.wait_ms / 1000
                result.json.append(answer.wait_ms)
                result.json_parsing.append(answer.parse_ms)
                result.json_bytes.append(answer.sent + answer.received)
            enough = len(result.next.service) >= least_pairs and len(result.json) >= LEAST_JSON_CLICKS
            if (elapsed > seconds and enough) or elapsed > LONGEST * seconds:
                break
    return result


def walk(megapixels: float) -> Iterator[Photo]:
    """Photo after photo, each as often as it has objects."""
    while True:
        for photo in photos(megapixels):
            for _ in range(OBJECTS_PER_PHOTO):
                yield photo


async def _object(
    annotator: Annotator,
    bare: BareModel,
    photo: Photo,
    opened: Answer,
    object_id: str,
    generator: np.random.Generator,
    result: SizeResult,
) -> tuple[Click, ...]:
    """Click one object; service and bare model run as many inferences, and chance says who is first."""
    clicks = photo.clicks(generator)
    for count in range(1, len(clicks) + 1):
        points = clicks[:count]
        if generator.random() < 0.5:
            answer = await annotator.click(object_id, points)
            floor = await _inferences(bare, answer.inferences)
        else:
            expected = FIRST_INFERENCES if count == 1 else 1  # most of the time
            floor = await _inferences(bare, expected)
            answer = await annotator.click(object_id, points)
            if answer.inferences != expected:
                floor = await _inferences(bare, answer.inferences)
        pairs = result.first if count == 1 else result.next
        pairs.service.append(answer.wait_ms)
        pairs.bare.append(floor)
        result.by_click.setdefault(count, Samples()).append(answer.wait_ms)
        size = answer.sent + answer.received
        if count == 1:
            result.first_bytes.append(size + opened.sent + opened.received)
        else:
            result.next_bytes.append(size)
    result.undo.append((await annotator.undo(object_id, clicks[:-1])).wait_ms)
    return clicks


async def _inferences(bare: BareModel, count: int) -> float:
    return sum([await bare.infer() for _ in range(count)])
