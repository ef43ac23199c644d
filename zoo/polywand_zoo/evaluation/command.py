"""The command `polywand-zoo evaluate`."""

import sys
from pathlib import Path
from typing import Any

import click

from polywand.files import identities
from polywand.outputs import refuse_inputs
from polywand_common.console import Number

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(context_settings={"max_content_width": 110})
@click.argument("models", nargs=-1, required=True, metavar="MODEL[:VERSION]...")
@click.option("--grabcut", type=FOLDER, help="GrabCut: data_GT and boundary_GT in it.")
@click.option("--berkeley", type=FOLDER, help="Berkeley: images and masks in it.")
@click.option("--davis", type=FOLDER, help="DAVIS, 345 frames: img and gt in it.")
@click.option("--sbd", type=FOLDER, help="SBD: img, inst and val.txt in it.")
@click.option("--coco", type=FILE, help="Annotations in COCO's JSON: polygons or run lengths.")
@click.option("--objects", type=FILE, help="Of --coco, only the annotations whose ids stand in this file.")
@click.option("--masks", type=FOLDER, help="A folder of masks, inside where not black, named as those of --images.")
@click.option(
    "--images", type=FOLDER, help="Of --masks, or of --coco.  [default: images, beside the JSON, or its folder]"
)
@click.option("--limit", type=click.IntRange(1), help="Of each data set, so many objects at most, evenly spread.")
@click.option("--clicks", type=click.IntRange(1, 100), default=20, show_default=True, help="On an object, at most.")
@click.option("--stop-at", type=Number(0, 1), help="IoU from which no more clicks come.  [default: never]")
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
@click.option(
    "--precision",
    type=click.Choice(["served", "fp32"]),
    default="served",
    show_default=True,
    help="Of the ONNX way: what the model's configuration says (bfloat16, perhaps), or single precision.",
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
    precision: str,
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
    from polywand_zoo.evaluation.networks import Precision  # noqa: PLC0415
    from polywand_zoo.evaluation.objects import DataError  # noqa: PLC0415
    from polywand_zoo.evaluation.report import NothingMeasuredError, report  # noqa: PLC0415
    from polywand_zoo.evaluation.run import BY_USER  # noqa: PLC0415
    from polywand_zoo.evaluation.run import evaluate as run  # noqa: PLC0415
    from polywand_zoo.evaluation.sources import Sources, SourcesError  # noqa: PLC0415
    from polywand_zoo.evaluation.trials import Rules  # noqa: PLC0415

    wishes = Wishes(
        models=models,
        repository=repository,
        way=Way(way or ("service" if service else "auto")),
        service=service,
        tolerance=None if simplified else 0.0,
        precision=Precision(precision),
        threads=threads,
        baseline=baseline,
    )
    _spare_inputs(out, sources)
    try:
        data = Sources(**sources).read()
        out.mkdir(parents=True, exist_ok=True)
        length = sum(len(part.subjects) for part in data)
        with (
            line_up(wishes, lambda text: click.echo(text, err=True)) as rows,
            click.progressbar(length=length, label="Objects", show_pos=True, file=sys.stderr) as bar,
        ):
            results = run(rows, data, Rules(clicks, stop_at), lambda: bar.update(1))
        report(results, out, worst, with_groups=groups)
        if results.interrupted == BY_USER:
            raise KeyboardInterrupt  # the report is there; the exit code is that of an interruption
        if results.interrupted:
            raise click.ClickException(f"interrupted: {results.interrupted}")
        if not results.agrees:
            raise click.ClickException("the two ways differ by more than 0.5 % IoU")
    except SourcesError as error:
        raise click.UsageError(str(error)) from error
    except (DataError, ModelError, NothingMeasuredError, PolywandError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _spare_inputs(out: Path, sources: dict[str, Any]) -> None:
    """Refuse a folder of data as the one to write to, and a file of data as what is written."""
    given = [path for path in sources.values() if isinstance(path, Path)]
    refuse_inputs([out / "evaluation.json"], [path for path in given if path.is_file()])
    if identities([out]) & identities([path for path in given if path.is_dir()]):
        raise click.UsageError(f"'{out}' holds data: name another folder for --out.")
