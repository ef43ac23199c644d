"""Tables for the terminal, in Markdown."""

from collections.abc import Sequence

from polywand_zoo.evaluation.prompts import STARTS, Kind
from polywand_zoo.evaluation.run import Results
from polywand_zoo.evaluation.scores import LEVELS, Agreement, Scores, agreement, grouped, score

SHOWN_IOU = (1, 2, 3, 5, 10, 20)
START_HEADS = {Kind.BOX: "box", Kind.EXTREME: "extreme", Kind.BOX_INSIDE: "box + inside"}
ALL = "all"
NOTHING = "-"


def main_table(results: Results) -> str:
    """Make one line per tool and data set, and one over all sets where there are several; each object counts once."""
    lines = []
    for name, outcomes in results.outcomes.items():
        sets = grouped(outcomes, lambda outcome: outcome.subject.data)
        parts = [*sets.items(), *([(ALL, outcomes)] if len(sets) > 1 else [])]
        lines += [(data, name, score(part, results.rules.max_clicks)) for data, part in parts]
    return _scores_table(("data", "tool"), [((data, name), scores) for data, name, scores in lines], results)


def group_table(results: Results) -> str:
    """Make one line per tool and sequence (or category); "" where there are none."""
    lines = [
        ((data, group or NOTHING, name), score(part, results.rules.max_clicks))
        for name, outcomes in results.outcomes.items()
        for data, inside in grouped(outcomes, lambda outcome: outcome.subject.data).items()
        for group, part in grouped(inside, lambda outcome: outcome.subject.group).items()
        if any(outcome.subject.group for outcome in inside)
    ]
    return _scores_table(("data", "group", "tool"), sorted(lines, key=lambda line: line[0]), results) if lines else ""


def agreement_lines(results: Results) -> list[str]:
    """Make a sentence for each tool that was run in two ways."""
    compared = [(row, agreement(results.likenesses[row.name])) for row in results.rows if row.twin is not None]
    return [
        f"{row.tool.model}, the same {found.prompts} prompts: {row.tool.way} {found.first:.4f}, "
        f"{row.twin.way if row.twin else ''} {found.second:.4f} mean IoU; {_verdict(found)}"
        for row, found in compared
    ]


def _verdict(found: Agreement) -> str:
    said = "they agree" if found.holds else "THEY DO NOT AGREE"
    return f"{said} ({found.typical:.2%} apart on average; the masks' IoU with each other {found.mutual:.4f})"


def _scores_table(heads: tuple[str, ...], lines: Sequence[tuple[tuple[str, ...], Scores]], results: Results) -> str:
    clicks = results.rules.max_clicks
    shown = sorted({clicks, *(number for number in SHOWN_IOU if number < clicks)})
    columns = [
        *heads, "objects", *(f"NoC@{level:.0%}".rstrip("%") for level in LEVELS), "never",
        *(f"IoU@{number}" for number in shown), *START_HEADS.values(), "obeyed", "lowered", "ms",
    ]  # fmt: skip
    cells = [[*keys, *_cells(scores, shown)] for keys, scores in lines]
    return markdown(columns, cells, left=len(heads))


def _cells(scores: Scores, shown: Sequence[int]) -> list[str]:
    has_clicks = bool(scores.iou)
    return [
        str(scores.objects),
        *(f"{scores.noc[level]:.2f}" if has_clicks else NOTHING for level in LEVELS),
        "/".join(str(scores.never[level]) for level in LEVELS) if has_clicks else NOTHING,
        *(f"{scores.iou[number - 1]:.3f}" if has_clicks else NOTHING for number in shown),
        *(f"{scores.starts[kind]:.3f}" if kind in scores.starts else NOTHING for kind in STARTS),
        *(NOTHING if share is None else f"{share:.1%}" for share in (scores.obeyed, scores.lowered)),
        f"{1000 * scores.seconds:.0f}",
    ]


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Lay out a table whose columns line up; the first ones to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if index < left else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    return "\n".join(line(cells) for cells in (heads, rule, *rows))
