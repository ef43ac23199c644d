"""The command `polywand-zoo evaluate`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from polywand_zoo.evaluation.objects import DataError
    from polywand_zoo.evaluation.run import Results

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
TOLD_FLAWS = 10


@click.command(context_settings={"max_content_width": 110})
@click.argument("models", nargs=-1, required=True, metavar="MODEL[:VERSION]...")
@click.option("--grabcut", type=FOLDER, help="GrabCut: data_GT and boundary_GT in it.")
@click.option("--berkeley", type=FOLDER, help="Berkeley: images and masks in it.")
@click.option("--davis", type=FOLDER, help="DAVIS, 345 frames: img and gt in it.")
@click.option("--sbd", type=FOLDER, help="SBD: img, inst and val.txt in it.")
@click.option("--coco", type=FILE, help="Annotations in COCO's JSON: polygons or run lengths.")
@click.option("--objects", type=FILE, help="Of --coco, only the annotations whose ids stand in this file.")
@click.option("--masks", type=FOLDER, help="A folder of masks, inside where not black, named as those of --images.")
@click.option("--images", type=FOLDER, help="Images of --masks, or of --coco.  [default: images, beside the JSON]")
@click.option("--limit", type=click.IntRange(1), help="Of each data set, so many objects at most, evenly spread.")
@click.option("--clicks", type=click.IntRange(1, 100), default=20, show_default=True, help="On an object, at most.")
@click.option("--stop-at", type=click.FloatRange(0, 1), help="IoU from which no more clicks come.  [default: never]")
@click.option(
    "--way",
    type=click.Choice(["auto", "onnx", "service", "both"]),
    help="Straight on the model's ONNX graph, through the service (gRPC, polygons rasterised), or both, which have to "
    "agree.  [default: onnx where that is possible; service with --service]",
)
@click.option("--service", metavar="HOST:PORT", help="A running service; without, one is started when it is needed.")
@click.option("--baseline/--no-baseline", default=True, show_default=True, help="Also GrabCut, through the service.")
@click.option("--simplified", is_flag=True, help="Take the service's outlines as it simplifies them by default.")
@click.option(
    "--repository",
    type=FOLDER,
    default=Path("model_repository"),
    show_default=True,
    help="The model repository.",
)
@click.option("--threads", type=click.IntRange(0), default=0, help="Of the ONNX way.  [default: all cores]")
@click.option("--groups", is_flag=True, help="Also a table of sequences (DAVIS) or categories (COCO).")
@click.option("--worst", type=click.IntRange(0), default=12, show_default=True, help="Objects on a contact sheet.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("evaluation"),
    show_default=True,
    help="Folder to write evaluation.json, iou.png and worst-*.png to.",
)
def evaluate(
    models: tuple[str, ...],
    clicks: int,
    stop_at: float | None,
    way: str | None,
    service: str | None,
    baseline: bool,
    simplified: bool,
    repository: Path,
    threads: int,
    groups: bool,
    worst: int,
    out: Path,
    **sources: Any,
) -> None:
    """Measure how good interactors are on objects whose masks are known.

    The field's protocol: the next click falls on the middle of the largest error, up to 20 times; boxes, extreme and
    inside points are exact. NoC@85 is the mean number of clicks until the IoU is 85 %, "never" how many objects did not
    get to 80/85/90 %. "obeyed": prompts after which every click lies on its side of the outline; "lowered": clicks that
    cost more than 3 points of IoU.

    \b
    polywand-zoo evaluate wand_click --images photos --masks masks
    polywand-zoo evaluate wand_click --coco annotations.json --way both
    """
    from polywand import PolywandError  # noqa: PLC0415 - each command loads only what it needs
    from polywand_zoo.evaluation.lineup import Way, Wishes, line_up  # noqa: PLC0415
    from polywand_zoo.evaluation.modelfolder import ModelError  # noqa: PLC0415
    from polywand_zoo.evaluation.objects import DataError  # noqa: PLC0415
    from polywand_zoo.evaluation.run import evaluate as run  # noqa: PLC0415
    from polywand_zoo.evaluation.sources import Sources, SourcesError  # noqa: PLC0415
    from polywand_zoo.evaluation.trials import Rules  # noqa: PLC0415

    wishes = Wishes(
        models=models,
        repository=repository,
        way=Way(way or ("service" if service else "auto")),
        service=service,
        tolerance=None if simplified else 0.0,
        threads=threads,
        baseline=baseline,
    )
    try:
        data = Sources(**sources).read()
        length = sum(len(part.subjects) for part in data)
        with (
            line_up(wishes, lambda text: click.echo(text, err=True)) as rows,
            click.progressbar(length=length, label="Objects", show_pos=True, file=sys.stderr) as bar,
        ):
            results = run(rows, data, Rules(clicks, stop_at), lambda: bar.update(1))
        _report(results, out, worst, groups=groups)
    except SourcesError as error:
        raise click.UsageError(str(error)) from error
    except (DataError, ModelError, PolywandError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _report(results: "Results", out: Path, worst_count: int, *, groups: bool) -> None:
    """Print the tables and write the files."""
    from polywand_zoo.evaluation.plots import draw_curves  # noqa: PLC0415
    from polywand_zoo.evaluation.report import write_json  # noqa: PLC0415
    from polywand_zoo.evaluation.sheet import draw_sheet, worst  # noqa: PLC0415
    from polywand_zoo.evaluation.tables import agreement_lines, group_table, main_table  # noqa: PLC0415

    _tell_flaws(results.flaws)
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "evaluation.json"]
    write_json(results, written[0])
    if not results.count:
        raise click.ClickException(f"there is nothing to measure: not one object could be used (see {written[0]})")
    click.echo(main_table(results))
    if groups:
        click.echo(f"\n{group_table(results) or 'No sequences and no categories.'}")
    for row in results.rows:
        click.echo(f"\nMasks of {row.name}: {row.tool.masks}.")
    written.append(out / "iou.png")
    draw_curves(results, written[-1])
    for row in results.rows:
        cases = worst(results.outcomes[row.name], worst_count)
        if cases:
            written.append(out / f"worst-{row.tool.model}-{row.tool.version}-{row.tool.way}.png")
            draw_sheet(row.name, cases, written[-1])
    click.echo(f"\nWritten: {', '.join(map(str, written))}")
    for line in agreement_lines(results):
        click.echo(line)
    if not results.agrees:
        raise click.ClickException("the two ways differ by more than 0.5 % mean IoU: one of them has drifted")


def _tell_flaws(flaws: Sequence["DataError"]) -> None:
    if not flaws:
        return
    click.echo(f"{len(flaws)} left out:", err=True)
    for flaw in flaws[:TOLD_FLAWS]:
        click.echo(f"  {flaw}", err=True)
    if len(flaws) > TOLD_FLAWS:
        click.echo(f"  ... and {len(flaws) - TOLD_FLAWS} more; evaluation.json has them all", err=True)
