"""The report: tables and sentences on the terminal, and the files."""

from collections.abc import Sequence
from pathlib import Path

import click

from polywand_zoo.evaluation.objects import DataError
from polywand_zoo.evaluation.plots import draw_curves
from polywand_zoo.evaluation.record import write_json
from polywand_zoo.evaluation.run import Results
from polywand_zoo.evaluation.sheet import draw_sheet, worst
from polywand_zoo.evaluation.tables import agreement_lines, group_table, main_table

TOLD_FLAWS = 10


class NothingMeasuredError(Exception):
    """No object could be used."""


def report(results: Results, out: Path, worst_count: int, *, with_groups: bool) -> None:
    """Print the tables, and write evaluation.json, iou.png and contact sheets of so many objects to a folder.

    Raises:
        NothingMeasuredError: there are no figures; the JSON says why.
    """
    if results.interrupted:
        click.echo(f"\nInterrupted; so far {results.count} objects:", err=True)
    _tell_flaws(results.flaws)
    record = out / "evaluation.json"
    write_json(results, record)
    if not results.count:
        raise NothingMeasuredError(f"there is nothing to measure: no object could be used (see {record})")
    click.echo(main_table(results))
    if with_groups:
        click.echo(f"\n{group_table(results) or 'There are no sequences and no categories.'}")
    for row in results.rows:
        click.echo(f"\nMasks of {row.name}: {row.tool.masks}.")
    curves = out / "iou.png"
    draw_curves(results, curves)
    sheets = _draw_sheets(results, out, worst_count)
    click.echo(f"\nWritten: {', '.join(map(str, (record, curves, *sheets)))}")
    for line in agreement_lines(results):
        click.echo(line)


def _draw_sheets(results: Results, out: Path, count: int) -> list[Path]:
    sheets = []
    for row in results.rows:
        cases = worst(results.outcomes[row.name], count)
        if cases:
            sheets.append(out / f"worst-{row.tool.model}-{row.tool.version}-{row.tool.way}.png")
            draw_sheet(row.name, cases, sheets[-1])
    return sheets


def _tell_flaws(flaws: Sequence[DataError]) -> None:
    if not flaws:
        return
    click.echo(f"{len(flaws)} left out:", err=True)
    for flaw in flaws[:TOLD_FLAWS]:
        click.echo(f"  {flaw}", err=True)
    if len(flaws) > TOLD_FLAWS:
        click.echo(f"  ... and {len(flaws) - TOLD_FLAWS} more; evaluation.json has them all", err=True)
