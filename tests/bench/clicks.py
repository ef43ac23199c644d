"""What a click costs at Polywand, above the bare model and against JSON over HTTP: one run, a table, a plot, JSON.

    make bench    (or: python -m tests.bench.clicks --quick)

Plays annotators on the real service. In the same run, interleaved, against the same Triton and model: the bare model
(NVIDIA's client over gRPC with the tensors ready) and a click server with JSON over HTTP. Prints Markdown tables;
writes them, `clicks.png` and `clicks.json` into the output folder.
"""

import argparse
import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import orjson

from tests.bench.bare import BareModel
from tests.bench.crowd import measure_crowd, measure_throughput
from tests.bench.drag import measure_drag
from tests.bench.flood import CLICKED_MEGAPIXELS, FloodResult, measure_flood
from tests.bench.machine import facts
from tests.bench.photos import photos
from tests.bench.plot import draw
from tests.bench.report import tables
from tests.bench.results import Results, plain
from tests.bench.servers import Servers, running_servers
from tests.bench.sizes import measure_size
from tests.bench.targets import targets

TOOL, MODEL, DETECTOR = "wand_click", "wand", "nanodet"
STREAMS = (0, 1, 4)  # of frames, beside an annotator
THROUGHPUT_MEGAPIXELS = 2
SETTLE_SECONDS = 3  # for the last streams to be gone
# A crowd at the JSON server is left out when each of its clicks would take longer than this many blocks.
LONGEST_JSON_BLOCKS = 2.5

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured.

    seconds: of one block. size_blocks: per photo size. least_pairs: of next clicks there.
    flood_clicks: next clicks in a block at least, so that all blocks together have a p99.
    """

    quick: bool = False
    megapixels: Sequence[float] = (0.5, 2, 12, 24)
    annotators: Sequence[int] = (1, 8, 32)
    seconds: float = 5
    size_blocks: int = 5
    least_pairs: int = 240
    throughput_rounds: int = 3
    drag_seconds: float = 3
    drags: int = 2
    flood_rounds: int = 3
    flood_clicks: int = 50


FULL = Settings()
QUICK = Settings(
    quick=True, megapixels=(0.5, 12), annotators=(1, 8), seconds=1.5, size_blocks=2, least_pairs=20,
    throughput_rounds=1, drag_seconds=1.5, drags=1, flood_rounds=1, flood_clicks=12,
)  # fmt: skip


def parse() -> tuple[Settings, Path]:
    """Read the command line: what to measure, and the folder for the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", nargs="+", type=float, help="photo sizes (default: 0.5 2 12 24)")
    parser.add_argument("--annotators", nargs="+", type=int, help="at the same time (default: 1 8 32)")
    parser.add_argument("--seconds", type=float, help="length of a block (default: 5); most things take several")
    parser.add_argument("--output", type=Path, default=Path("build/bench"), help="folder (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="about a minute: shows that it runs, not what it costs")
    options = vars(parser.parse_args())
    chosen = {name: options[name] for name in ("megapixels", "annotators", "seconds") if options[name] is not None}
    return replace(QUICK if options["quick"] else FULL, **chosen), options["output"]


async def run(servers: Servers, settings: Settings) -> Results:
    """Measure everything."""
    async with BareModel(servers.triton, servers.model) as bare:
        machine = facts(await bare.triton_version())
    start = servers.memory()
    results = Results(machine, asdict(settings), memory_start=start, memory_end=start)
    await _sizes(servers, settings, results)
    await _drags(servers, settings, results)
    await _floods(servers, settings, results)
    await _throughput(servers, settings, results)
    await _crowds(servers, settings, results)
    await asyncio.sleep(SETTLE_SECONDS)
    results.memory_end = servers.memory()
    return results


async def _sizes(servers: Servers, settings: Settings, results: Results) -> None:
    for megapixels in settings.megapixels:
        log.info(f"one annotator, {megapixels:g} MP: service, bare model and JSON in turns")
        seconds = settings.size_blocks * settings.seconds
        results.sizes.append(await measure_size(servers, megapixels, seconds, settings.least_pairs))


async def _drags(servers: Servers, settings: Settings, results: Results) -> None:
    for megapixels in sorted({min(settings.megapixels), max(settings.megapixels)}):
        for click in ("second", "first"):
            log.info(f"dragging the {click} click, {megapixels:g} MP")
            drag = await measure_drag(servers, click, megapixels, settings.drag_seconds, settings.drags)
            results.drags.append(drag)


async def _floods(servers: Servers, settings: Settings, results: Results) -> None:
    results.floods = [FloodResult(streams) for streams in STREAMS]
    for number in range(settings.flood_rounds):
        for flood in results.floods:
            log.info(f"clicks beside {flood.streams} streams of frames, block {number + 1}")
            await measure_flood(servers, flood, settings.seconds, settings.flood_clicks)


async def _throughput(servers: Servers, settings: Settings, results: Results) -> None:
    annotators = max(settings.annotators)
    for number in range(settings.throughput_rounds):
        for way in ("service", "bare"):
            log.info(f"throughput, {annotators} annotators without a pause, {way}, block {number + 1}")
            block = await measure_throughput(servers, way, THROUGHPUT_MEGAPIXELS, annotators, settings.seconds)
            results.throughput.append(block)


async def _crowds(servers: Servers, settings: Settings, results: Results) -> None:
    for annotators in settings.annotators:
        for megapixels in settings.megapixels:
            # The bare model knows no photos: once is enough.
            for way in ("service", "json") if megapixels != settings.megapixels[0] else ("bare", "service", "json"):
                if way == "json" and _too_slow(results, settings, megapixels, annotators):
                    continue
                log.info(f"{annotators} annotators who think, {megapixels:g} MP, {way}")
                crowd = await measure_crowd(servers, way, megapixels, annotators, settings.seconds)
                results.crowds.append(crowd)


def _too_slow(results: Results, settings: Settings, megapixels: float, annotators: int) -> bool:
    size = results.size(megapixels)
    assert size is not None  # sizes are measured first
    seconds = size.json.median / 1000 * annotators
    if seconds <= LONGEST_JSON_BLOCKS * settings.seconds:
        return False
    results.left_out.append(
        f"JSON over HTTP with {annotators} annotators at {megapixels:g} MP: a single click of each would take up to "
        f"{seconds:.0f} s"
    )
    return True


def main() -> None:
    """Run the benchmark."""
    begin = time.monotonic()
    settings, folder = parse()
    logging.basicConfig(format="%(relativeCreated)7.0f ms  %(message)s")
    log.setLevel(logging.INFO)
    folder.mkdir(parents=True, exist_ok=True)
    log.info("making photos")
    for megapixels in {*settings.megapixels, CLICKED_MEGAPIXELS, THROUGHPUT_MEGAPIXELS}:
        photos(megapixels)
    log.info("starting the servers")
    with running_servers(folder / "service.log", TOOL, MODEL, DETECTOR) as servers:
        results = asyncio.run(run(servers, settings))
    results.seconds = time.monotonic() - begin
    reached = targets(results)
    text = tables(results, reached)
    (folder / "clicks.md").write_text(text)
    (folder / "clicks.json").write_bytes(orjson.dumps(plain({"results": results, "targets": reached})))
    draw(results, folder / "clicks.png")
    print(text)
    log.info(f"written: {folder}/clicks.md, clicks.png, clicks.json")


if __name__ == "__main__":
    main()
