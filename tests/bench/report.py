"""The tables: Markdown whose columns line up, so that a terminal and a README show the same text."""

from collections.abc import Iterable, Sequence

from tests.bench.results import Results
from tests.bench.samples import LEAST_VALUES, Samples
from tests.bench.targets import Target

NOTHING = "–"
QUICK = " It was a quick one: it shows that everything runs, not what it costs."
WAY_NAMES = {"bare": "bare model", "service": "Polywand", "json": "JSON over HTTP"}


def tables(results: Results, targets: Sequence[Target]) -> str:
    """All that was measured, for people."""
    sections = [
        _facts(results),
        _added(results),
        _by_click(results),
        _against_json(results),
        _crowds(results),
        _throughput(results),
        _drags(results),
        _floods(results),
        _memory(results),
        _targets(targets),
    ]
    return "\n\n".join(sections) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown with padded cells; the first column leans left, the others right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = ["-" * width if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]

    def padded(cells: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(aligned)} |"

    return "\n".join([padded(lines[0]), padded(rule), *(padded(line) for line in lines[1:])])


def number(value: float | None) -> str:
    """Three digits or so."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"


def percentiles(samples: Samples) -> str:
    """p50 / p90 / p99."""
    return " / ".join(number(samples.percentile(percent)) for percent in LEAST_VALUES) if samples else NOTHING


def size_of(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000 or unit == "MB":
            break
        count /= 1000
    return f"{number(count) if unit != 'B' else f'{count:.0f}'} {unit}"


def plural(count: int, noun: str) -> str:
    """1 stream, 4 streams."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _facts(results: Results) -> str:
    machine = results.machine
    libraries = ", ".join(f"{name} {version}" for name, version in dict(machine["libraries"]).items())  # type: ignore[call-overload]
    return (
        f"Commit {machine['commit']}, {machine['date']}: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB, Python {machine['python']}, Triton {machine['triton']}; {libraries}. "
        f"Load generator, service, Triton and JSON server share these cores. Load before: {machine['load_before']}. "
        f"The run took {results.seconds:.0f} s.{QUICK * bool(results.options['quick'])}\n\n"
        f"Milliseconds are p50 / p90 / p99, of n; {NOTHING} where n is too small for it."
    )


def _added(results: Results) -> str:
    rows = []
    for size in results.sizes:
        for kind, pairs in (("next click (1 inference, or 2)", size.next), ("first click (3)", size.first)):
            tails = pairs.service.percentile(99), pairs.bare.percentile(99)
            rows.append(
                [
                    f"{size.megapixels:g} MP, {kind}",
                    str(len(pairs.service)),
                    percentiles(pairs.bare),
                    percentiles(pairs.service),
                    percentiles(pairs.added),
                    number(None if None in tails else tails[0] - tails[1]),
                ]
            )
    header = ["one annotator", "n", "bare model", "Polywand", "added, pair by pair", "p99 - p99"]
    return "**What the service adds to the bare model**, ms\n\n" + table(header, rows)


def _by_click(results: Results) -> str:
    rows = [
        [
            f"{size.megapixels:g} MP",
            number(size.opened.median),
            *(percentiles(samples) for samples in size.by_click.values()),
            percentiles(size.undo),
        ]
        for size in results.sizes
    ]
    header = ["one annotator", "open", *(f"click {index}" for index in results.sizes[0].by_click), "undo"]
    return "**From sending a prompt to having its polygons**, ms\n\n" + table(header, rows)


def _against_json(results: Results) -> str:
    rows = [
        [
            f"{size.megapixels:g} MP, JPEG of {size_of(size.jpeg_bytes)}",
            str(len(size.json)),
            percentiles(size.json),
            number(size.json_parsing.median),
            number(size.first.service.median),
            number(size.next.service.median),
            f"{size.json.median / size.next.service.median:,.0f} ×",
            size_of(size.json_bytes.median),
            size_of(size.first_bytes.median),
            size_of(size.next_bytes.median),
            f"{size.json_bytes.median / size.next_bytes.median:,.0f} ×",
        ]
        for size in results.sizes
    ]
    header = ["one annotator", "n", "JSON, ms", "of which parsing", "first click, ms", "next click, ms", "faster",
              "JSON, a click", "first click", "next click", "fewer"]  # fmt: skip
    title = "**Against JSON over HTTP**: Polywand's clicks (medians; the first with its photo) and bytes both ways\n\n"
    return title + table(header, rows)


def _crowds(results: Results) -> str:
    rows = []
    for crowd in results.crowds:
        photo = "" if crowd.way == "bare" else f", {crowd.megapixels:g} MP"
        memory = NOTHING if crowd.memory is None else f"{crowd.memory.server:,.0f}"
        rows.append(
            [
                f"{crowd.annotators} at {WAY_NAMES[crowd.way]}{photo}",
                str(len(crowd.clicks)),
                percentiles(crowd.clicks),
                percentiles(crowd.undo),
                percentiles(crowd.opened),
                f"{crowd.clicks_per_second:.1f}",
                memory,
            ]
        )
    left_out = "".join(f"\n\nLeft out: {text}." for text in results.left_out)
    header = ["annotators who think", "n", "click, ms", "undo, ms", "next photo, ms", "clicks/s", "server, MB"]
    return f"**Annotators with 0.7 s between an answer and the next click**\n\n{table(header, rows)}{left_out}"


def _throughput(results: Results) -> str:
    rows = []
    for way in ("bare", "service"):
        blocks = [block for block in results.throughput if block.way == way]
        clicks = Samples(wait for block in blocks for wait in block.clicks)
        per_block = results.throughput_of(way)
        rows.append(
            [
                WAY_NAMES[way],
                number(per_block.median),
                ", ".join(map(number, per_block)),
                str(len(clicks)),
                percentiles(clicks),
            ]
        )
    header = ["no pause between clicks", "inferences/s, median", "each block", "n", "click, ms"]
    annotators, megapixels = results.throughput[0].annotators, results.throughput[0].megapixels
    return f"**Throughput of {annotators} annotators**, {megapixels:g} MP\n\n" + table(header, rows)


def _drags(results: Results) -> str:
    rows = [
        [
            f"{drag.click} click, {drag.megapixels:g} MP",
            str(drag.sent),
            str(drag.skipped),
            number(drag.bare.median),
            percentiles(drag.ages),
            percentiles(drag.oldest),
            number(max(drag.oldest)),
            number(drag.limit_ms),
            f"{100 * drag.share_above(drag.limit_ms):.1f} %",
        ]
        for drag in results.drags
    ]
    header = ["dragging the", "prompts", "skipped", "bare inference", "age on arrival", "age when replaced", "oldest",
              "2 inferences + 20", "time above"]  # fmt: skip
    return "**A drag, 60 prompts a second**: how old is what the screen shows, ms\n\n" + table(header, rows)


def _floods(results: Results) -> str:
    rows = [
        [
            plural(flood.streams, "stream") if flood.streams else "none",
            str(len(flood.next)),
            percentiles(flood.next),
            str(len(flood.first)),
            percentiles(flood.first),
            number(flood.frames_per_second) if flood.streams else NOTHING,
        ]
        for flood in results.floods
    ]
    header = ["DetectStream, 2 MP frames", "n", "next click, ms", "n", "first click, ms", "frames/s"]
    return "**One annotator beside a flood of frames**, 2 MP\n\n" + table(header, rows)


def _memory(results: Results) -> str:
    rows = [
        [name, f"{memory.server:,.0f}", f"{memory.children:,.0f}"]
        for name, memory in (
            ("at the start", results.memory_start),
            *(
                (f"{plural(crowd.annotators, 'annotator')}, {crowd.megapixels:g} MP", crowd.memory)
                for crowd in results.crowds
                if crowd.way == "service" and crowd.memory is not None
            ),
            ("at the end, nobody connected", results.memory_end),
        )
    ]
    return "**Memory**, MB (PSS)\n\n" + table(["", "service", "Triton and its models"], rows)


def _targets(targets: Sequence[Target]) -> str:
    rows = [
        [
            target.what,
            f"at {'least' if target.at_least else 'most'} {number(target.limit)} {target.unit}",
            NOTHING if target.measured is None else f"{number(target.measured)} {target.unit}",
            target.verdict,
        ]
        for target in targets
    ]
    return "**Targets**\n\n" + table(["", "target", "measured", ""], rows)
