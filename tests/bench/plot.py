"""The plot: four panels that tell at a glance what the tables say in full."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from tests.bench.drag import DragResult
from tests.bench.report import WAY_NAMES, number, plural
from tests.bench.results import Results
from tests.bench.samples import LEAST_VALUES, Samples
from tests.bench.targets import FLOOD_FACTOR

INCHES, DOTS_PER_INCH = (12.0, 9.6), 150  # twice a README's width
COLOURS = {"bare": "#8a8f98", "service": "#0b7a75", "json": "#d9622b"}
PALE, FAINT, TEXT, LIMIT = "#7fb8b4", "#d8dce2", "#24292f", "#b3261e"
MARGINS = {"left": 0.07, "right": 0.985, "top": 0.915, "bottom": 0.105, "hspace": 0.42, "wspace": 0.17}
BARS = "bar: median, line: p99 (p90 of few)"
CROWD_MEGAPIXELS = 2.0
DRAG_SHOWN_MS = 1000
BEHIND = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1}
STYLE = {
    "font.size": 13,
    "axes.titlesize": 14.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 26,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": TEXT,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "axes.labelcolor": TEXT,
    "legend.frameon": False,
    "legend.fontsize": 12,
}


def draw(results: Results, path: Path) -> None:
    """Write the plot as a PNG."""
    machine = results.machine
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=INCHES)
        panels = figure.subplots(2, 2, gridspec_kw=MARGINS)
        for axes, panel in zip(panels.flat, (_sizes, _crowds, _drag, _flood), strict=True):
            panel(axes, results)
        figure.text(
            0.99, 0.012, f"{machine['cpu']}, {machine['cores']} cores, shared by clients, servers and Triton; "
            f"commit {machine['commit']}", fontsize=11, color=COLOURS["bare"], ha="right",
        )  # fmt: skip
        figure.savefig(path, dpi=DOTS_PER_INCH)


def _titled(axes: Axes, title: str, explained: str) -> None:
    axes.set_title(title)
    axes.text(0, 1.03, explained, transform=axes.transAxes, fontsize=12)
    axes.tick_params(length=0)


def _sizes(axes: Axes, results: Results) -> None:
    _titled(axes, "A click, by the photo's size", f"one annotator, next clicks; {BARS}")
    _bars(
        axes,
        {
            f"{size.megapixels:g} MP": {"bare": size.next.bare, "service": size.next.service, "json": size.json}
            for size in results.sizes
        },
    )


def _crowds(axes: Axes, results: Results) -> None:
    sizes = sorted({crowd.megapixels for crowd in results.crowds})
    megapixels = CROWD_MEGAPIXELS if CROWD_MEGAPIXELS in sizes else sizes[0]
    _titled(axes, f"A click, with more annotators ({megapixels:g} MP)", BARS)
    groups: dict[str, dict[str, Samples]] = {}
    for annotators in sorted({crowd.annotators for crowd in results.crowds}):
        crowds = {way: results.crowd(way, None if way == "bare" else megapixels, annotators) for way in COLOURS}
        groups[plural(annotators, "annotator")] = {way: crowd.clicks for way, crowd in crowds.items() if crowd}
    _bars(axes, groups)


def _bars(axes: Axes, groups: dict[str, dict[str, Samples]]) -> None:
    """Groups of bars, one for each way to be answered."""
    heights = []
    for place, samples_of in enumerate(groups.values()):
        for (way, colour), offset in zip(COLOURS.items(), (-0.29, 0, 0.29), strict=True):
            samples = samples_of.get(way)
            if not samples:
                continue
            middle, tail, x = samples.median, _tail(samples), place + offset
            heights += [middle, tail]
            axes.bar(x, middle, 0.27, color=colour)
            axes.plot([x, x], [middle, tail], color=colour, linewidth=2)
            axes.plot([x - 0.07, x + 0.07], [tail, tail], color=colour, linewidth=2)
            axes.annotate(_duration(middle), (x, middle), (0, -14), textcoords="offset points", ha="center",
                          color="white", fontsize=10.5)  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(min(heights) / 2.5, max(heights) * 5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{_duration(value)}{' ms' * (value < 1000)}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.legend(
        [Patch(color=colour) for colour in COLOURS.values()],
        [WAY_NAMES[way] for way in COLOURS],
        loc="upper left", ncols=3, columnspacing=1.2, handlelength=1.2,
    )  # fmt: skip


def _duration(milliseconds: float) -> str:
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g} s"
    return f"{milliseconds:.0f}" if milliseconds >= 10 else f"{milliseconds:.1f}"


def _tail(samples: Samples) -> float:
    return samples.percentile(99) or samples.percentile(90) or max(samples)


def _drag(axes: Axes, results: Results) -> None:
    drag = next((drag for drag in reversed(results.drags) if drag.click == "second"), results.drags[0])
    _titled(
        axes,
        "A drag at 60 prompts a second",
        f"age of the answer on the screen, {drag.click} click, {drag.megapixels:g} MP",
    )
    times, ages = _sawtooth(drag)
    axes.fill_between(times, ages, color=COLOURS["service"], alpha=0.25, linewidth=0)
    axes.plot(times, ages, color=COLOURS["service"], linewidth=1.4)
    axes.axhline(drag.limit_ms, color=LIMIT, linewidth=1.8, linestyle="--")
    axes.annotate(
        f"two bare inferences + 20 ms = {number(drag.limit_ms)} ms", (times[0], drag.limit_ms), (4, 5),
        textcoords="offset points", color=LIMIT, fontsize=12, bbox=BEHIND,
    )  # fmt: skip
    axes.set_ylim(0, max(*ages, drag.limit_ms) * 1.25)
    axes.set_xlim(times[0], times[-1])
    axes.set_xlabel("milliseconds of one drag")
    axes.set_ylabel("ms")


def _sawtooth(drag: DragResult) -> tuple[list[float], list[float]]:
    """The age over the time, from the middle of the last drag."""
    shown = drag.shown[-1]
    begin = max(0.0, shown[-1].at_ms / 2 - DRAG_SHOWN_MS / 2)
    times, ages = [], []
    for answer in shown:
        if begin <= answer.at_ms <= begin + DRAG_SHOWN_MS:
            replaced = answer.at_ms + answer.age_when_replaced_ms - answer.age_ms
            times += [answer.at_ms, replaced]
            ages += [answer.age_ms, answer.age_when_replaced_ms]
    return times, ages


def _flood(axes: Axes, results: Results) -> None:
    _titled(axes, "A click, beside a flood of frames", "streams of 2 MP frames that never pause")
    everything = [flood.next for flood in results.floods]
    percent = 99 if min(map(len, everything)) >= LEAST_VALUES[99] else 90
    tails = [samples.percentile(percent) or max(samples) for samples in everything]
    for place, (flood, tail) in enumerate(zip(results.floods, tails, strict=True)):
        for offset, value, colour, name in (
            (-0.19, flood.next.median, COLOURS["service"], "median"),
            (0.19, tail, PALE, f"p{percent}"),
        ):
            axes.bar(place + offset, value, 0.34, color=colour, label=None if place else name)
            axes.annotate(f"{number(value)} ms", (place + offset, value), (0, 4), textcoords="offset points",
                          ha="center", fontsize=11.5)  # fmt: skip
    axes.axhline(FLOOD_FACTOR * tails[0], color=LIMIT, linewidth=1.8, linestyle="--")
    axes.annotate(
        f"{FLOOD_FACTOR:g} times the p{percent} without", (-0.45, FLOOD_FACTOR * tails[0]), (0, 5),
        textcoords="offset points", color=LIMIT, fontsize=12, bbox=BEHIND,
    )  # fmt: skip
    axes.set_ylim(0, max(FLOOD_FACTOR * tails[0], *tails) * 1.3)
    axes.set_xticks(
        range(len(results.floods)),
        [
            f"{plural(flood.streams, 'stream')}\n{flood.frames_per_second:.0f} frames/s" if flood.streams else "none"
            for flood in results.floods
        ],
    )
    axes.set_ylabel("ms")
    axes.legend(loc="upper left", ncols=2)
