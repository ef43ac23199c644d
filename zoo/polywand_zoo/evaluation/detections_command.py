"""The command `polywand-zoo evaluate-detections`."""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

import click

from polywand import files
from polywand.outputs import refuse_inputs
from polywand_common.console import Number

if TYPE_CHECKING:  # each command loads only what it needs
    from polywand_zoo.evaluation.detections import Found

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NOTHING = "-"


@click.command(context_settings={"max_content_width": 110})
@click.argument("interactors", nargs=-1, required=True, metavar="INTERACTOR...")
@click.option("--detector", default="nanodet", show_default=True, help="Whose boxes are outlined.")
@click.option("--coco", type=FILE, required=True, help="Annotations in COCO's JSON: polygons or run lengths.")
@click.option("--images", type=FOLDER, help="Their images.  [default: images, beside the JSON, or its folder]")
@click.option("--limit", type=click.IntRange(1), help="So many photos at most, evenly spread.")
@click.option("--threshold", type=Number(0, 1), help="Score of a detection.  [default: the detector's own]")
@click.option(
    "--same-from",
    type=Number(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="IoU of the boxes from which a detection is an object of its label.",
)
@click.option("--service", metavar="HOST:PORT", help="A running service; without, one is started.")
@click.option(
    "--repository", type=FOLDER, default=Path("model_repository"), show_default=True, help="The model repository."
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write every match to this JSON file.")
def evaluate_detections(
    interactors: tuple[str, ...],
    detector: str,
    coco: Path,
    images: Path | None,
    limit: int | None,
    threshold: float | None,
    same_from: float,
    service: str | None,
    repository: Path,
    out: Path | None,
) -> None:
    """Measure how good the polygons of detections are, on photos whose objects are known.

    The service detects, and outlines every box by each INTERACTOR in turn. A detection is an object where it has its
    label (the category's name) and about its box; each object is found once at most. "box" is the mean IoU of the boxes
    of these, "filled box" what their masks would have if the detected box were all, and "outline" what the polygons
    have. Objects whose category is no label of the detector do not count.

    \b
    polywand-zoo evaluate-detections wand_box grabcut --coco annotations.json
    """
    import polywand  # noqa: PLC0415 - each command loads only what it needs
    from polywand_zoo.evaluation.coco import photos_of, read_coco  # noqa: PLC0415
    from polywand_zoo.evaluation.detections import Asked, first_photos, measure, photos  # noqa: PLC0415
    from polywand_zoo.evaluation.modelfolder import ModelError  # noqa: PLC0415
    from polywand_zoo.evaluation.objects import DataError  # noqa: PLC0415
    from polywand_zoo.evaluation.server import own_service  # noqa: PLC0415

    if out is not None:
        refuse_inputs([out], [coco])
    try:
        data = first_photos(read_coco(coco, images or photos_of(coco)), limit)
        with ExitStack() as stack:
            target = service or stack.enter_context(own_service(repository, (detector, *interactors)))
            client = stack.enter_context(polywand.connect(target))
            length = photos(data) * len(interactors)
            bar = stack.enter_context(click.progressbar(length=length, label="Photos", show_pos=True, file=sys.stderr))
            asked = [Asked(detector, interactor, threshold, same_from) for interactor in interactors]
            results = [measure(client, data, one, lambda: bar.update(1)) for one in asked]
    except (DataError, ModelError, polywand.PolywandError, OSError) as error:
        raise click.ClickException(str(error)) from error
    for flaw in results[0].flaws:
        click.echo(f"Left out: {flaw}", err=True)
    click.echo(_table(results))
    if out is not None:
        text = json.dumps([_record(found) for found in results], indent=1) + "\n"
        try:
            files.write(out, text.encode())
        except polywand.PolywandError as error:
            raise click.ClickException(str(error)) from error


def _table(results: Sequence["Found"]) -> str:
    from polywand_zoo.evaluation.tables import markdown  # noqa: PLC0415

    columns = ["detector", "interactor", "photos", "objects", "detected", "matched", "box", "filled box", "outline"]
    return markdown([*columns, "ms a photo"], [_row(found) for found in results], left=2)


def _row(found: "Found") -> list[str]:
    matches = found.matches
    means = (
        [match.box_iou for match in matches],
        [match.filled_box_iou for match in matches],
        [match.outline_iou for match in matches],
    )
    return [
        found.asked.detector,
        found.asked.interactor,
        *(str(count) for count in (len(found.seconds), found.objects, found.detections, len(matches))),
        *(f"{fmean(values):.3f}" if values else NOTHING for values in means),
        f"{1000 * median(found.seconds):.0f}" if found.seconds else NOTHING,
    ]


def _record(found: "Found") -> dict[str, object]:
    said = asdict(found)
    del said["flaws"]
    return said
