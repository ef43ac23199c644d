"""`polywand`: the client on the command line."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
from numpy.typing import NDArray

import polywand
from polywand import overlay, report
from polywand.channel import DEFAULT_TARGET, TIMEOUT_S
from polywand.errors import IncompletePrompt, InvalidRequest, PolywandError
from polywand.images import read
from polywand.maskfiles import read_mask
from polywand.params import InClickOrder, LabelPair, Numbers, clicks_as_typed
from polywand.results import Box

PATH = click.Path(path_type=Path)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
THRESHOLD = click.option("--threshold", type=float, help="From which a pixel or detection counts.  [default: model's]")
TOLERANCE = click.option(
    "--tolerance", type=float, help="Simplification in pixels; 0 keeps every vertex.  [default: server's]"
)
MAX_POINTS = click.option("--max-points", type=int, help="Vertices of one outline at most.")
RANGE = click.option(
    "--range",
    "value_range",
    type=Numbers("low,high"),
    help="Which values of a file with more than 8 bits are black and white.  [default: by its values]",
)
VERSION = click.option("--version", default=0, help="Of the model; 0 is the highest that is ready.")


class _Group(click.Group):
    """Says in one sentence what went wrong, with exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PolywandError as error:
            raise click.ClickException(str(error)) from error


@click.group(
    cls=_Group,
    context_settings={
        "auto_envvar_prefix": "POLYWAND",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
        "show_default": True,
    },
)
@click.version_option(polywand.__version__, prog_name="polywand", message="%(prog)s %(version)s")
@click.option("--target", default=DEFAULT_TARGET, show_envvar=True, help="The server, as host:port.")
@click.option("--timeout", default=TIMEOUT_S, show_envvar=True, help="Seconds to wait for any one answer.")
@click.option("--tls", is_flag=True, show_envvar=True, help="Encrypt, trusting the roots that gRPC trusts.")
@click.pass_context
def main(ctx: click.Context, target: str, timeout: float, tls: bool) -> None:
    """Annotate images with a Polywand server: clicks in, polygons out.

    Coordinates are image pixels, x to the right, y down, pixel corners at integers. Every option is an environment
    variable too: POLYWAND_TARGET, POLYWAND_INTERACT_MODEL and so on.
    """
    credentials = grpc.ssl_channel_credentials() if tls else None
    ctx.obj = ctx.with_resource(polywand.connect(target, timeout=timeout, credentials=credentials))


@main.command()
@AS_JSON
@click.pass_obj
def models(client: polywand.Client, as_json: bool) -> None:
    """List the tools of the server."""
    tools = client.models()
    click.echo(json.dumps(report.models_json(tools)) if as_json else report.models_text(tools))


@main.command(cls=InClickOrder)
@click.argument("image", type=PATH)
@click.option("--model", required=True, help="An interactor; `polywand models` lists them.")
@click.option("--positive", type=Numbers("x,y"), multiple=True, help="A click on the object. Repeatable.")
@click.option("--negative", type=Numbers("x,y"), multiple=True, help="A click that is not on it. Repeatable.")
@click.option("--extreme", type=Numbers("x,y"), multiple=True, help="Where it reaches furthest. Repeatable.")
@click.option("--box", type=Numbers("x0,y0,x1,y1"), help="Around the object.")
@click.option(
    "--seed",
    "seed_file",
    type=PATH,
    metavar="MASK",
    help="Refine this mask of the object: an image file of IMAGE's size, inside where it is not black.",
)
@THRESHOLD
@TOLERANCE
@MAX_POINTS
@VERSION
@RANGE
@AS_JSON
@click.option("--overlay", "picture", type=PATH, help="Draw the answer on the image, into this file.")
@click.pass_context
def interact(
    ctx: click.Context,
    image: Path,
    model: str,
    positive: tuple[tuple[float, ...], ...],
    negative: tuple[tuple[float, ...], ...],
    extreme: tuple[tuple[float, ...], ...],
    box: tuple[float, ...] | None,
    seed_file: Path | None,
    threshold: float | None,
    tolerance: float | None,
    max_points: int | None,
    version: int,
    value_range: tuple[float, float] | None,
    as_json: bool,
    picture: Path | None,
) -> None:
    """Outline one object on IMAGE.

    Points count in the order in which they are typed: they are clicked one after another. A seed alone gives its own
    outline.
    """
    client: polywand.Client = ctx.obj
    points = clicks_as_typed(ctx, positive=positive, negative=negative, extreme=extreme)
    _check_picture(picture)
    with client.open(image, value_range=value_range) as session:
        seed = None if seed_file is None else _seed(seed_file, image, session)
        # Click by click, as an annotator would: networks refine what the clicks before led to.
        for count in range(len(points)):
            with suppress(IncompletePrompt):
                session.prompt(model, points=points[:count], box=box, seed=seed, version=version)
        found = session.prompt(
            model,
            points=points,
            box=box,
            seed=seed,
            version=version,
            threshold=threshold,
            tolerance=tolerance,
            max_points=max_points,
        )
    name = str(image)
    click.echo(json.dumps(report.segmentation_json(name, found)) if as_json else report.segmentation_text(name, found))
    if picture is not None:
        photo = overlay.load_rgb(read(image), value_range)
        drawn_box = None if box is None else Box(*box)
        _save(overlay.draw_segmentation(photo, found.polygons, points, drawn_box), picture)


@main.command()
@click.argument("images", type=PATH, nargs=-1, required=True, metavar="IMAGE...")
@click.option("--model", default="nanodet", help="A detector; `polywand models` lists them.")
@THRESHOLD
@click.option(
    "--label",
    "labels",
    type=LabelPair(),
    multiple=True,
    help="Keep this label of the model, under the task's name for it. Repeatable.  [default: all]",
)
@click.option("--max-detections", type=int, help="On one image, best first.  [default: 100]")
@click.option("--polygons", is_flag=True, help="Outline each object too, starting from its box.")
@click.option("--interactor", help="With --polygons: the tool that outlines.  [default: server's]")
@TOLERANCE
@MAX_POINTS
@VERSION
@RANGE
@AS_JSON
@click.option(
    "--overlay",
    "picture",
    type=PATH,
    help="Draw the answer into this file, for one IMAGE; for several, into this directory as NAME.png each.",
)
@click.pass_context
def detect(
    ctx: click.Context,
    images: tuple[Path, ...],
    model: str,
    threshold: float | None,
    labels: tuple[tuple[str, str], ...],
    max_detections: int | None,
    polygons: bool,
    interactor: str | None,
    tolerance: float | None,
    max_points: int | None,
    version: int,
    value_range: tuple[float, float] | None,
    as_json: bool,
    picture: Path | None,
) -> None:
    """Find objects on each IMAGE. One that fails does not stop the others; the exit code is then 1."""
    client: polywand.Client = ctx.obj
    if not polygons and (interactor, tolerance, max_points) != (None, None, None):
        raise click.UsageError("--interactor, --tolerance and --max-points say how outlines are made: add --polygons.")
    pictures = _pictures(images, picture)
    answers = client.detect_stream(
        images,
        model=model,
        version=version,
        threshold=threshold,
        labels=dict(labels),
        max_detections=max_detections,
        polygons=interactor or polygons,
        tolerance=tolerance,
        max_points=max_points,
        value_range=value_range,
    )
    failed = False
    for number, found in answers:
        name = str(images[number])
        try:
            if isinstance(found, PolywandError):
                raise found
            click.echo(
                json.dumps(report.detections_json(name, found)) if as_json else report.detections_text(name, found)
            )
            if pictures:
                _save(overlay.draw_detections(overlay.load_rgb(read(name), value_range), found), pictures[number])
        except PolywandError as error:
            failed = True
            text = str(error)
            click.echo(f"Error: {text if text.startswith(name) else f'{name}: {text}'}", err=True)
    ctx.exit(1 if failed else 0)


def _seed(path: Path, image: Path, session: polywand.Session) -> NDArray[np.bool_]:
    """Read the mask that the object starts from; it has to be as large as the image."""
    mask = read_mask(path)
    height, width = mask.shape
    if (width, height) != (session.width, session.height):
        raise InvalidRequest(
            f"{path} has {width} x {height} pixels, but {image} has {session.width} x {session.height}.",
            grpc.StatusCode.INVALID_ARGUMENT,
        )
    return mask


def _pictures(images: tuple[Path, ...], picture: Path | None) -> list[Path]:
    """Where the overlay of each image goes; empty when none is wanted."""
    if picture is None:
        return []
    if len(images) == 1 and not picture.is_dir():
        _check_picture(picture)
        return [picture]
    pictures = [picture / f"{image.stem}.png" for image in images]
    if len(set(pictures)) < len(pictures):
        raise click.UsageError("Two of the images have the same name, and so would their overlays.")
    inputs = {image.resolve() for image in images}
    for target in pictures:
        if target.resolve() in inputs:
            raise click.UsageError(f"The overlay would overwrite the image '{target}': name another folder.")
    try:
        picture.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.FileError(str(picture), error.strerror) from error
    return pictures


def _check_picture(picture: Path | None) -> None:
    if picture is not None and not overlay.can_write(picture):
        raise click.UsageError(f"'{picture}' does not end like a picture, such as .png or .jpg.")


def _save(image: overlay.RGB, path: Path) -> None:
    try:
        path.write_bytes(overlay.encode(image, path.suffix))
    except OSError as error:
        raise click.FileError(str(path), error.strerror) from error
