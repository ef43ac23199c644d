"""What Polywand set out to reach, and whether this run reached it."""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench.results import Results

ADDED_MEDIAN_MS = 5
ADDED_P99_MS = 15
THROUGHPUT_SHARE = 0.85
TIMES_FASTER = 10
BYTES_FRACTION = 1000
FLOOD_FACTOR = 2.5


@dataclass(frozen=True, slots=True)
class Target:
    """One target. measured: None when this run cannot tell. at_least: whether more is better."""

    what: str
    measured: float | None
    limit: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it was reached; None when this run cannot tell."""
        if self.measured is None:
            return None
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    @property
    def verdict(self) -> str:
        """For people."""
        return {True: "met", False: "NOT MET", None: "not measured"}[self.met]


def targets(results: Results) -> list[Target]:
    """Every target with what was measured."""
    return [*_added(results), *_throughput(results), *_against_json(results), *_drag(results), *_flood(results)]


def _added(results: Results) -> Iterator[Target]:
    for megapixels in (0.5, 24):
        size = results.size(megapixels)
        added = size.next.added.percentile(50) if size else None
        paired = size.next.added.percentile(99) if size else None
        tails = None
        if size and size.next.service.percentile(99) is not None:
            tails = size.next.service.percentile(99) - size.next.bare.percentile(99)
        where = f"{megapixels:g} MP: added to a next click"
        yield Target(f"{where}, median of the pairs", added, ADDED_MEDIAN_MS, "ms")
        yield Target(f"{where}, p99 of the pairs", paired, ADDED_P99_MS, "ms")
        yield Target(f"{where}, its p99 less the bare model's p99", tails, ADDED_P99_MS, "ms")


def _throughput(results: Results) -> Iterator[Target]:
    service, bare = results.throughput_of("service"), results.throughput_of("bare")
    annotators = results.throughput[0].annotators if results.throughput else 32
    share = service.median / bare.median if annotators == 32 and service else None
    yield Target("32 annotators: inferences a second, share of the bare model's", share, THROUGHPUT_SHARE, "×", True)


def _against_json(results: Results) -> Iterator[Target]:
    size = results.size(12)
    faster = size.json.median / size.next.service.median if size else None
    fraction = size.json_bytes.median / size.next_bytes.median if size else None
    yield Target("12 MP: times faster per click than JSON over HTTP", faster, TIMES_FASTER, "×", True)
    yield Target("12 MP: times fewer bytes per click after the first", fraction, BYTES_FRACTION, "×", True)


def _drag(results: Results) -> Iterator[Target]:
    for drag in results.drags:
        where = f"{drag.megapixels:g} MP, {drag.click} click dragged, oldest on screen"
        yield Target(f"{where}, 2 inferences + 20 ms", max(drag.oldest), drag.limit_ms, "ms")


def _flood(results: Results) -> Iterator[Target]:
    idle = next((flood for flood in results.floods if flood.streams == 0), None)
    for flood in results.floods:
        if flood.streams == 0 or idle is None:
            continue
        factor = None
        if flood.next.percentile(99) is not None and idle.next.percentile(99) is not None:
            factor = flood.next.percentile(99) / idle.next.percentile(99)
        many = "a DetectStream" if flood.streams == 1 else f"{flood.streams} DetectStreams"
        yield Target(f"clicks' p99 under {many}, times the idle p99", factor, FLOOD_FACTOR, "×")
