"""`polywand detect`: objects on any number of images."""

import click

import polywand
from polywand import checks, outputs
from polywand.cli import as_json, as_text, printing
from polywand.cli.batch import detect_each
from polywand.cli.options import AS_JSON, MAX_POINTS, RANGE, ROI, TOLERANCE, VERSION, check_version
from polywand.cli.params import ImageFile, LabelOption
from polywand.cli.printing import RGB, Answer, Printer
from polywand.cli.progress import progress
from polywand.cli.toolnames import ToolName
from polywand.errors import PolywandError
from polywand.files import Source
from polywand.options import LabelMapping
from polywand.results import Detections
from polywand_common.console import Command, Number, Whole
from polywand_common.texts import printable, shown


@click.command(cls=Command)
@click.argument("images", type=ImageFile(), nargs=-1, required=True, metavar="IMAGE...")
@click.option("--model", type=ToolName("detector"), help="A detector.  [default: server's choice]")
@click.option(
    "--threshold",
    type=Number(0, 1),
    metavar="NUMBER",
    help="Score from which a detection counts.  [default: model's]",
)
@click.option(
    "--label",
    type=LabelOption(),
    multiple=True,
    help="Keep this label of the model, rename it, from this score on. Repeatable.  [default: all]",
)
@click.option(
    "--max-detections",
    type=Whole(1, checks.MAX_DETECTIONS),
    metavar="NUMBER",
    help="Most detections on one image, best first.  [default: 100]",
)
@ROI
@click.option("--polygons", is_flag=True, help="Outline each object too, from its box.")
@click.option(
    "--interactor",
    type=ToolName("interactor"),
    help="With --polygons: the tool that outlines.  [default: server's choice]",
)
@TOLERANCE
@MAX_POINTS
@VERSION
@RANGE
@AS_JSON
@click.option(
    "--overlay",
    type=click.Path(),
    help="Draw the answer into this file, for one IMAGE; or into this folder, as NAME.png each. "
    "It is a folder if it ends in /, is one, or has no suffix.",
)
@click.option("-q", "--quiet", is_flag=True, help="Show no progress bar.")
@click.pass_context
def detect(
    ctx: click.Context,
    images: tuple[Source, ...],
    model: str | None,
    threshold: float | None,
    label: tuple[LabelMapping, ...],
    max_detections: int | None,
    roi: tuple[float, ...] | None,
    polygons: bool,
    interactor: str | None,
    tolerance: float | None,
    max_points: int | None,
    version: int,
    range: tuple[float, float] | None,
    json: bool,
    overlay: str | None,
    quiet: bool,
) -> None:
    """Find objects on each IMAGE. If one fails, the others go on, and the exit code is 1."""
    client: polywand.Client = ctx.obj
    if not polygons and (interactor, tolerance, max_points) != (None, None, None):
        raise click.UsageError("--interactor, --tolerance and --max-points are options of outlines: add --polygons.")
    check_version(version, model)
    printing.check_standard_input(images)
    printer = Printer(json, dict(zip(images, outputs.pictures(overlay, images), strict=False)), range)
    answers = detect_each(
        client,
        images,
        {
            "model": model or "",
            "version": version,
            "threshold": threshold,
            "labels": label,
            "max_detections": max_detections,
            "roi": roi,
            "polygons": polygons,
            "interactor": interactor or "",
            "tolerance": tolerance,
            "max_points": max_points,
            "value_range": range,
        },
    )
    all_ok = True
    with progress(len(images), quiet) as bar:
        for number, found in answers:
            bar.hide()
            all_ok &= _print(printer, images[number], found)
            images[number].discard()
            bar.advance()
    ctx.exit(0 if all_ok else 1)


def _print(printer: Printer, image: Source, found: Detections | PolywandError) -> bool:
    if isinstance(found, PolywandError):
        printer.failure(image, found)
        return False
    answer = Answer(
        as_text.detections(shown(image.name), found),
        as_json.detections(printable(image.name), found),
        lambda photo: _draw(photo, found),
    )
    return printer.answer(image, answer)


def _draw(photo: RGB, found: Detections) -> RGB:
    from polywand import overlay  # noqa: PLC0415 - needs an extra

    return overlay.draw_detections(photo, found)
