"""A hand that drags a click: sixty prompts a second, and how old the answer is that the annotator looks at."""

import asyncio
import math
import time
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from tests.bench.annotator import Annotator
from tests.bench.bare import BareModel
from tests.bench.photos import Click, Photo, photos
from tests.bench.samples import Samples
from tests.bench.servers import Servers

PROMPTS_PER_SECOND = 60
TURNS_PER_SECOND = 0.5
RADIUS = 0.05  # of the photo's sides
BARE_INFERENCES = 40  # before and after every drag
SLACK_MS = 20  # beyond two inferences


@dataclass(frozen=True, slots=True)
class Shown:
    """One answer on the screen. at_ms: when it came, since the drag began. Ages: since its prompt was sent."""

    at_ms: float
    age_ms: float
    age_when_replaced_ms: float


@dataclass(slots=True)
class DragResult:
    """Drags of the first or the second click of an object, in the bare model's time. shown: by drag."""

    click: str
    megapixels: float
    sent: int = 0
    skipped: int = 0
    bare: Samples = field(default_factory=Samples)
    shown: list[list[Shown]] = field(default_factory=list)

    @property
    def ages(self) -> Samples:
        """Of the answers when they came."""
        return Samples(answer.age_ms for drag in self.shown for answer in drag)

    @property
    def oldest(self) -> Samples:
        """Of the answers when the next one took their place: as old as the screen ever was.

        Not of those that a drag's last answer replaced: no prompt hurries that one, and the hand is still.
        """
        return Samples(answer.age_when_replaced_ms for drag in self.shown for answer in drag[:-1])

    @property
    def limit_ms(self) -> float:
        """Two inferences of the bare model and some slack: an answer that the next prompt hurries is one inference."""
        return 2 * self.bare.median + SLACK_MS

    def share_above(self, limit_ms: float) -> float:
        """The part of the time in which the answer on the screen was older than that."""
        late = total = 0.0
        for answer in (answer for drag in self.shown for answer in drag):
            total += answer.age_when_replaced_ms - answer.age_ms
            late += max(0.0, answer.age_when_replaced_ms - max(answer.age_ms, limit_ms))
        return late / total


async def measure_drag(servers: Servers, click: str, megapixels: float, seconds: float, drags: int) -> DragResult:
    """Drag the first or the second click of fresh objects in circles."""
    result = DragResult(click, megapixels)
    photo = photos(megapixels)[0]
    async with Annotator(servers.target, servers.tool) as annotator, BareModel(servers.triton, servers.model) as bare:
        await annotator.open(photo)
        for number in range(drags):
            object_id = f"drag {number}"
            await annotator.click(object_id, _hand(photo, click, 0))
            result.bare.extend([await bare.infer() for _ in range(BARE_INFERENCES)])
            await _drag(annotator, object_id, photo, result, round(seconds * PROMPTS_PER_SECOND))
            result.bare.extend([await bare.infer() for _ in range(BARE_INFERENCES)])
    return result


def _hand(photo: Photo, click: str, seconds: float) -> list[Click]:
    """The prompt at a moment of the drag."""
    angle = 2 * math.pi * TURNS_PER_SECOND * seconds
    around = RADIUS * np.array([math.cos(angle), math.sin(angle)])
    start = np.array(photo.subject.start)
    if click == "first":
        return [photo.at(start + around)]
    return [photo.at(start), photo.at(np.array(photo.subject.on[0]) + around)]


async def _drag(annotator: Annotator, object_id: str, photo: Photo, result: DragResult, prompts: int) -> None:
    sent: dict[int, float] = {}
    came: list[tuple[int, float]] = []

    last = annotator.sequence + prompts

    async def move() -> None:
        begin = time.perf_counter()
        for number in range(prompts):
            await asyncio.sleep(max(0.0, begin + number / PROMPTS_PER_SECOND - time.perf_counter()))
            now = time.perf_counter()
            sequence = await annotator.send(object_id, _hand(photo, result.click, number / PROMPTS_PER_SECOND))
            sent[sequence] = now

    async def watch() -> None:
        # The newest prompt is always answered, so the last reply is that of the last prompt.
        while not came or came[-1][0] != last:
            reply = await annotator.receive()
            came.append((reply.sequence, time.perf_counter()))
            result.skipped += reply.skipped

    async with asyncio.TaskGroup() as group:
        group.create_task(move())
        group.create_task(watch())
    result.sent += len(sent)
    begin = min(sent.values())
    result.shown.append(
        [
            Shown((at - begin) * 1000, (at - sent[sequence]) * 1000, (next_at - sent[sequence]) * 1000)
            for (sequence, at), (_, next_at) in pairwise(came)
        ]
    )
