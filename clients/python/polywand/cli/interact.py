"""`polywand interact`: one object by clicks."""

from contextlib import suppress

import click
import grpc
import numpy as np
from numpy.typing import NDArray

import polywand
from polywand import outputs
from polywand.cli import as_json, as_text, printing
from polywand.cli.options import (
    AS_JSON,
    BOX,
    IMAGE,
    INTERACTOR,
    MASK_THRESHOLD,
    MAX_POINTS,
    OVERLAY,
    RANGE,
    TOLERANCE,
    VERSION,
    check_version,
)
from polywand.cli.params import ImageFile, InClickOrder, Numbers, clicks_as_typed
from polywand.cli.printing import RGB, Answer, Printer
from polywand.errors import IncompletePrompt, InvalidRequest
from polywand.files import Source
from polywand.prompts import Point
from polywand.results import Box, Segmentation
from polywand_common.texts import printable, shown


@click.command(cls=InClickOrder)
@IMAGE
@INTERACTOR
@click.option("--positive", type=Numbers("x,y"), multiple=True, help="A click on the object. Repeatable.")
@click.option("--negative", type=Numbers("x,y"), multiple=True, help="A click off the object. Repeatable.")
@click.option("--extreme", type=Numbers("x,y"), multiple=True, help="An extreme point of the object. Repeatable.")
@click.option("--box", type=BOX, help="A box around the object.")
@click.option(
    "--seed",
    type=ImageFile("mask"),
    help="Refine this mask of the object: an image file of IMAGE's size; what is neither black nor transparent is "
    "inside.",
)
@MASK_THRESHOLD
@TOLERANCE
@MAX_POINTS
@VERSION
@RANGE
@AS_JSON
@OVERLAY
@click.pass_context
def interact(
    ctx: click.Context,
    image: Source,
    model: str | None,
    positive: tuple[tuple[float, ...], ...],
    negative: tuple[tuple[float, ...], ...],
    extreme: tuple[tuple[float, ...], ...],
    box: tuple[float, ...] | None,
    seed: Source | None,
    threshold: float | None,
    tolerance: float | None,
    max_points: int | None,
    version: int,
    range: tuple[float, float] | None,
    json: bool,
    overlay: str | None,
) -> None:
    """Outline one object on IMAGE.

    Points are clicked one after another, in the order on the command line. A seed alone gives its own outline.
    """
    client: polywand.Client = ctx.obj
    points = clicks_as_typed(ctx, positive=positive, negative=negative, extreme=extreme)
    inputs = [image] if seed is None else [image, seed]
    printing.check_standard_input(inputs)
    check_version(version, model)
    if seed is not None:
        outputs.require_pictures("--seed")
    pictures = outputs.pictures(overlay, [image], [one.path for one in inputs])
    with printing.errors_printed(image.name, json), printing.opened(client, image, range) as session:
        mask = None if seed is None else _read_seed(seed, image, session)
        # Click by click, as an annotator would: networks refine the result of earlier clicks.
        for count, _ in enumerate(points):
            with suppress(IncompletePrompt):
                session.prompt(model or "", points=points[:count], box=box, seed=mask, version=version)
        found = session.prompt(
            model or "",
            points=points,
            box=box,
            seed=mask,
            version=version,
            threshold=threshold,
            tolerance=tolerance,
            max_points=max_points,
        )
    answer = Answer(
        as_text.segmentation(shown(image.name), found),
        as_json.segmentation(printable(image.name), found, session.width, session.height),
        lambda photo: _draw(photo, found, points, None if box is None else Box(*box)),
    )
    printer = Printer(json, dict(zip([image], pictures, strict=False)), range)
    ctx.exit(0 if printer.answer(image, answer) else 1)


def _draw(photo: RGB, found: Segmentation, points: list[Point], box: Box | None) -> RGB:
    from polywand import overlay  # noqa: PLC0415 - needs an extra

    return overlay.draw_segmentation(photo, found.polygons, points, box)


def _read_seed(seed: Source, image: Source, session: polywand.Session) -> NDArray[np.bool_]:
    """Read the seed mask. Raises InvalidRequest if its size is not the image's, or it is empty."""
    from polywand.maskfiles import read_mask  # noqa: PLC0415 - needs an extra

    mask = read_mask(seed.path)
    height, width = mask.shape
    if (width, height) != (session.width, session.height):
        raise InvalidRequest(
            f"{shown(seed.name)} has {width} x {height} pixels, "
            f"but {shown(image.name)} has {session.width} x {session.height}.",
            grpc.StatusCode.INVALID_ARGUMENT,
        )
    if not mask.any():
        message = f"{shown(seed.name)} is an empty mask: all of it is black or transparent."
        raise InvalidRequest(message, grpc.StatusCode.INVALID_ARGUMENT)
    return mask
