"""`polywand segment`: the objects in any number of boxes on one image."""

import click

import polywand
from polywand import outputs
from polywand.cli import as_json, as_text, printing
from polywand.cli.boxes import NamedBox, read_boxes
from polywand.cli.options import (
    AS_JSON,
    BOX,
    IMAGE,
    INTERACTOR,
    MASK_THRESHOLD,
    MAX_POINTS,
    OVERLAY,
    RANGE,
    ROI,
    TOLERANCE,
    VERSION,
    check_version,
)
from polywand.cli.params import ImageFile
from polywand.cli.printing import RGB, Answer, Printer
from polywand.errors import InvalidRequest
from polywand.files import Source
from polywand.results import Box, SegmentResult
from polywand_common.console import Command, complain
from polywand_common.texts import printable, shown


@click.command(cls=Command)
@IMAGE
@INTERACTOR
@click.option("--box", type=BOX, multiple=True, help="A box around an object. Repeatable.")
@click.option(
    "--boxes",
    type=ImageFile("file"),
    help="A file of boxes: CSV with the columns x0, y0, x1, y1 and perhaps id; or JSON, as `polywand detect --json` "
    "prints it.",
)
@ROI
@MASK_THRESHOLD
@TOLERANCE
@MAX_POINTS
@VERSION
@RANGE
@AS_JSON
@OVERLAY
@click.pass_context
def segment(
    ctx: click.Context,
    image: Source,
    model: str | None,
    box: tuple[tuple[float, ...], ...],
    boxes: Source | None,
    roi: tuple[float, ...] | None,
    threshold: float | None,
    tolerance: float | None,
    max_points: int | None,
    version: int,
    range: tuple[float, float] | None,
    json: bool,
    overlay: str | None,
) -> None:
    """Outline the object in each box on IMAGE. If one fails, the others go on, and the exit code is 1."""
    client: polywand.Client = ctx.obj
    printing.check_standard_input([image] if boxes is None else [image, boxes])
    prompts = [NamedBox(Box(*edges)) for edges in box] + ([] if boxes is None else _read(boxes, ctx))
    check_version(version, model)
    if not prompts:
        raise click.UsageError("No boxes: add --box or --boxes.")
    pictures = outputs.pictures(overlay, [image], [] if boxes is None else [boxes.path])
    with printing.errors_printed(image.name, json):
        results = client.segment(
            image,
            [polywand.Prompt(box=prompt.box, object_id=prompt.id) for prompt in prompts],
            roi=roi,
            model=model or "",
            version=version,
            threshold=threshold,
            tolerance=tolerance,
            max_points=max_points,
            value_range=range,
        )
    answer = Answer(
        as_text.segments(shown(image.name), prompts, results),
        as_json.segments(printable(image.name), prompts, results),
        lambda photo: _draw(photo, prompts, results),
    )
    is_drawn = Printer(json, dict(zip([image], pictures, strict=False)), range).answer(image, answer)
    failed = [(number, result.error) for number, result in enumerate(results) if result.error is not None]
    for number, error in failed:
        complain(f"{shown(image.name)}: box {number}: {printing.message(error)}")
    ctx.exit(0 if is_drawn and not failed else 1)


def _read(boxes: Source, ctx: click.Context) -> list[NamedBox]:
    try:
        return read_boxes(boxes)
    except InvalidRequest as error:
        raise click.BadParameter(str(error).removeprefix("boxes: "), ctx, param_hint="'--boxes'") from error


def _draw(photo: RGB, prompts: list[NamedBox], results: list[SegmentResult]) -> RGB:
    from polywand import overlay  # noqa: PLC0415 - needs an extra

    shapes = [() if result.outline is None else result.outline.polygons for result in results]
    return overlay.draw_objects(photo, shapes, [prompt.box for prompt in prompts])
