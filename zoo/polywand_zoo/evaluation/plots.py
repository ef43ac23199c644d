"""The plot: mean IoU over clicks, a panel for each data set, a line for each tool."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from polywand_zoo.evaluation.run import Results
from polywand_zoo.evaluation.scores import LEVELS, grouped, score

INCHES_PER_PANEL, DOTS_PER_INCH = (6.0, 4.4), 130
COLUMNS = 3
# Okabe and Ito's palette: stays apart for most colour-blind eyes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#24292f")
DASHES = ("-", "--", ":", "-.")
FAINT = "#d8dce2"


def draw_curves(results: Results, path: Path) -> None:
    """Write the plot as a PNG. Tools that do not start with clicks have no line."""
    sets = list(dict.fromkeys(outcome.subject.data for found in results.outcomes.values() for outcome in found))
    columns = min(COLUMNS, max(1, len(sets)))
    rows = -(-max(1, len(sets)) // columns)
    figure = Figure(figsize=(INCHES_PER_PANEL[0] * columns, INCHES_PER_PANEL[1] * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, data in zip(panels.flat, sets, strict=False):
        _panel(axes, data, results)
    for axes in panels.flat[len(sets) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=DOTS_PER_INCH)


def _panel(axes: Axes, data: str, results: Results) -> None:
    clicks = results.rules.max_clicks
    for number, (name, outcomes) in enumerate(results.outcomes.items()):
        part = grouped(outcomes, lambda outcome: outcome.subject.data).get(data, [])
        scores = score(part, clicks) if part else None
        if scores is None or not scores.iou:
            continue
        axes.plot(
            range(1, clicks + 1),
            scores.iou,
            color=COLOURS[number % len(COLOURS)],
            linestyle=DASHES[number // len(COLOURS) % len(DASHES)],
            marker="o",
            markersize=3.5,
            label=f"{name}: {scores.noc[LEVELS[-1]]:.1f} clicks to {LEVELS[-1]:.0%}",
        )
        axes.set_title(f"{data}, {scores.objects} objects", loc="left", fontweight="bold")
    axes.axhline(LEVELS[-1], color="#8a8f98", linewidth=1, linestyle=":")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=FAINT)
    axes.set_axisbelow(True)
    axes.set_xlim(0.5, clicks + 0.5)
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("clicks")
    axes.set_ylabel("mean IoU")
    if axes.get_lines()[:-1]:
        axes.legend(loc="lower right", frameon=False)
