"""Many annotators at once: realistic ones who think between clicks, and tireless ones who show the throughput."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.bench.annotator import Annotator
from tests.bench.bare import BareModel
from tests.bench.json_client import JsonAnnotator
from tests.bench.machine import Memory
from tests.bench.photos import Photo, photos
from tests.bench.player import Answer, Player
from tests.bench.samples import Samples
from tests.bench.servers import Servers

THINK_SECONDS = 0.7  # between an answer and the next click, on average
LEAST_THINK_SECONDS = 0.2
OBJECTS_PER_PHOTO = 3
RAMP_UP_SECONDS = 1.0

# The three ways to have a click answered: each makes one annotator's connection.
WAYS: dict[str, Callable[[Servers], Any]] = {
    "bare": lambda servers: BareModel(servers.triton, servers.model),
    "service": lambda servers: Annotator(servers.target, servers.tool),
    "json": lambda servers: JsonAnnotator(servers.json_url),
}


@dataclass(slots=True)
class CrowdResult:
    """What so many annotators saw together. memory: the server's while they were there."""

    way: str
    megapixels: float
    annotators: int
    seconds: float = 0
    clicks: Samples = field(default_factory=Samples)
    undo: Samples = field(default_factory=Samples)
    opened: Samples = field(default_factory=Samples)
    inferences: int = 0
    skipped: int = 0
    memory: Memory | None = None

    @property
    def clicks_per_second(self) -> float:
        """Answered, undo not counted."""
        return len(self.clicks) / self.seconds

    @property
    def inferences_per_second(self) -> float:
        """Of the network."""
        return self.inferences / self.seconds

    def count(self, answer: Answer) -> None:
        """Take note of a click's answer."""
        self.clicks.append(answer.wait_ms)
        self.inferences += answer.inferences
        self.skipped += answer.skipped


async def measure_crowd(servers: Servers, way: str, megapixels: float, annotators: int, seconds: float) -> CrowdResult:
    """Annotators who open a photo, click, think, undo, and go on to the next object and photo."""
    return await _measure(servers, CrowdResult(way, megapixels, annotators), seconds, _annotate)


async def measure_throughput(
    servers: Servers, way: str, megapixels: float, annotators: int, seconds: float
) -> CrowdResult:
    """Annotators who click as soon as they are answered, on the photo that they have; no undo.

    Counts what is answered within the given seconds, after a moment in which everybody has begun.
    """
    result = CrowdResult(way, megapixels, annotators, seconds=seconds)
    return await _measure(servers, result, RAMP_UP_SECONDS + seconds, _click_on)


async def _measure(servers: Servers, result: CrowdResult, seconds: float, play: Callable[..., Any]) -> CrowdResult:
    everyone = photos(result.megapixels)
    async with AsyncExitStack() as stack:
        players = [await stack.enter_async_context(WAYS[result.way](servers)) for _ in range(result.annotators)]
        firsts = [number % len(everyone) for number in range(len(players))]
        albums = [everyone[first:] + everyone[:first] for first in firsts]
        await asyncio.gather(*(player.open(album[0]) for player, album in zip(players, albums, strict=True)))
        begin = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number, (player, album) in enumerate(zip(players, albums, strict=True)):
                group.create_task(play(player, album, np.random.default_rng(number), begin + seconds, result))
        result.seconds = result.seconds or time.perf_counter() - begin
        if result.way in servers.pids:
            result.memory = servers.memory(result.way)
    return result


async def _annotate(
    player: Player, album: Sequence[Photo], generator: np.random.Generator, end: float, result: CrowdResult
) -> None:
    # Everyone is somewhere else in the work: at another object of the photo, at another moment of thinking.
    done = int(generator.integers(OBJECTS_PER_PHOTO))
    await _think(generator, end)
    while time.perf_counter() < end:
        photo = album[done // OBJECTS_PER_PHOTO % len(album)]
        clicks = photo.clicks(generator)
        for count in range(1, len(clicks) + 1):
            result.count(await player.click(str(done), clicks[:count]))
            await _think(generator, end)
            if time.perf_counter() >= end:
                return
        undone = await player.undo(str(done), clicks[:-1])
        if undone is not None:
            result.undo.append(undone.wait_ms)
        await _think(generator, end)
        done += 1
        if done % OBJECTS_PER_PHOTO == 0:
            opened = await player.open(album[done // OBJECTS_PER_PHOTO % len(album)])
            if opened is not None:
                result.opened.append(opened.wait_ms)


async def _think(generator: np.random.Generator, end: float) -> None:
    seconds = LEAST_THINK_SECONDS + generator.exponential(THINK_SECONDS - LEAST_THINK_SECONDS)
    await asyncio.sleep(min(seconds, max(end - time.perf_counter(), 0)))


async def _click_on(
    player: Player, album: Sequence[Photo], generator: np.random.Generator, end: float, result: CrowdResult
) -> None:
    begin = end - result.seconds
    number = 0
    while True:
        clicks = album[0].clicks(generator)
        for count in range(1, len(clicks) + 1):
            answer = await player.click(str(number), clicks[:count])
            now = time.perf_counter()
            if now >= end:
                return
            if now >= begin:
                result.count(answer)
        number += 1
