"""`polywand`: the client on the command line."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
from numpy.typing import NDArray

import polywand
from polywand import channel, checks, files, outputs, report
from polywand import overlay as drawing
from polywand.batch import detect_each
from polywand.errors import IncompletePrompt, InvalidRequest, PolywandError, ServerError
from polywand.files import STANDARD_INPUT, Source
from polywand.maskfiles import read_mask
from polywand.params import InClickOrder, LabelPair, Numbers, Text, ValueRange, clicks_as_typed
from polywand.results import Box, Detections
from polywand_common.console import Command, Group, Number, complain, echo
from polywand_common.texts import printable, shown

# click makes an option's environment variable from the parameter's name, so both names are the same, also `json`.
AS_JSON = click.option("--json", is_flag=True, help="Print JSON, one object per line; for a failure, the error.")
MASK_THRESHOLD = click.option(
    "--threshold",
    type=Number(0, 1, min_open=True, max_open=True),
    help="Probability from which a pixel counts.  [default: model's]",
)
SCORE_THRESHOLD = click.option(
    "--threshold", type=Number(0, 1), help="Score from which a detection counts.  [default: model's]"
)
TOLERANCE = click.option(
    "--tolerance",
    type=Number(0, checks.MAX_TOLERANCE),
    help="Simplification in pixels; 0 keeps every vertex.  [default: server's]",
)
MAX_POINTS = click.option(
    "--max-points", type=click.IntRange(checks.MIN_POINTS, checks.MAX_POINTS), help="Most vertices of one outline."
)
RANGE = click.option(
    "--range",
    type=ValueRange(),
    help="The values that are black and white, in a file with more than 8 bits.  [default: from its values]",
)
VERSION = click.option(
    "--version",
    default=0,
    type=click.IntRange(0, checks.MAX_VERSION),
    help="Version of the model; 0 is the highest that is ready.",
)


class _Group(Group):
    """Turns PolywandError into one sentence and exit code 1."""

    catches_signals = True

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PolywandError as error:
            raise click.ClickException(_message(error)) from error


@click.group(
    cls=_Group,
    context_settings={
        "auto_envvar_prefix": "POLYWAND",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
        "show_default": True,
    },
)
@click.version_option(
    polywand.__version__, prog_name="polywand", message="%(prog)s %(version)s", allow_from_autoenv=False
)
@click.option("--target", default=channel.DEFAULT_TARGET, show_envvar=True, help="The server, as host:port.")
@click.option(
    "--timeout",
    default=channel.TIMEOUT_S,
    type=Number(channel.MIN_TIMEOUT_S, channel.MAX_TIMEOUT_S),
    show_envvar=True,
    help="Seconds to wait for any one answer.",
)
@click.option("--tls", is_flag=True, show_envvar=True, help="Use TLS, with the root certificates that gRPC trusts.")
@click.pass_context
def main(ctx: click.Context, target: str, timeout: float, tls: bool) -> None:
    """Annotate images with a Polywand server: clicks in, polygons out.

    Coordinates are image pixels, x to the right, y down, pixel corners at integers. IMAGE may be - for standard input.
    Every option can also be set by an environment variable: POLYWAND_TARGET, POLYWAND_INTERACT_MODEL,
    POLYWAND_DETECT_JSON and so on; semicolons separate the values of a repeatable option. Exit codes: 1 when anything
    failed, 2 when the command is wrong.
    """
    credentials = grpc.ssl_channel_credentials() if tls else None
    try:
        ctx.obj = ctx.with_resource(polywand.connect(target, timeout=timeout, credentials=credentials))
    except InvalidRequest as error:
        raise click.BadParameter(_message(error), ctx, param_hint="'--target'") from error


@main.command(cls=Command)
@AS_JSON
@click.pass_obj
def models(client: polywand.Client, json: bool) -> None:
    """List the tools of the server."""
    with _errors_reported(None, json):
        tools = client.models()
        echo(report.line(report.models_json(tools)) if json else report.models_text(tools))


@main.command(cls=InClickOrder)
@click.argument("image", type=Source)
@click.option("--model", type=Text(), required=True, help="An interactor; `polywand models` lists them.")
@click.option("--positive", type=Numbers("x,y"), multiple=True, help="A click on the object. Repeatable.")
@click.option("--negative", type=Numbers("x,y"), multiple=True, help="A click off the object. Repeatable.")
@click.option("--extreme", type=Numbers("x,y"), multiple=True, help="An extreme point of the object. Repeatable.")
@click.option("--box", type=Numbers("x0,y0,x1,y1"), help="A box around the object.")
@click.option(
    "--seed",
    type=Source,
    metavar="MASK",
    help="Refine this mask of the object: an image file of IMAGE's size; what is neither black nor transparent is "
    "inside.",
)
@MASK_THRESHOLD
@TOLERANCE
@MAX_POINTS
@VERSION
@RANGE
@AS_JSON
@click.option(
    "--overlay",
    type=click.Path(),
    help="Draw the answer on the image, into this file; a name that ends in / is a folder, for NAME.png.",
)
@click.pass_context
def interact(
    ctx: click.Context,
    image: Source,
    model: str,
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
    _check_standard_input(inputs)
    pictures = outputs.pictures(overlay, [image], [Path(one.name) for one in inputs])
    with _errors_reported(image.name, json), _opened(client, image, range) as session:
        mask = None if seed is None else _seed(seed, image, session)
        # Click by click, as an annotator would: networks refine the result of earlier clicks.
        for count, _ in enumerate(points):
            with suppress(IncompletePrompt):
                session.prompt(model, points=points[:count], box=box, seed=mask, version=version)
        found = session.prompt(
            model,
            points=points,
            box=box,
            seed=mask,
            version=version,
            threshold=threshold,
            tolerance=tolerance,
            max_points=max_points,
        )
    drawn_box = None if box is None else Box(*box)
    ok = _report(
        image,
        report.segmentation_json(printable(image.name), found, session.width, session.height) if json else None,
        report.segmentation_text(shown(image.name), found),
        pictures,
        range,
        lambda photo: drawing.draw_segmentation(photo, found.polygons, points, drawn_box),
    )
    ctx.exit(0 if ok else 1)


@main.command(cls=Command)
@click.argument("images", type=Source, nargs=-1, required=True, metavar="IMAGE...")
@click.option("--model", type=Text(), default="", help="A detector; `polywand models` lists them.  [default: server's]")
@SCORE_THRESHOLD
@click.option(
    "--label",
    type=LabelPair(),
    multiple=True,
    help="Keep this label of the model, optionally renamed. Repeatable.  [default: all]",
)
@click.option(
    "--max-detections",
    type=click.IntRange(1, checks.MAX_DETECTIONS),
    help="Most detections on one image, best first.  [default: 100]",
)
@click.option("--polygons", is_flag=True, help="Outline each object too, from its box.")
@click.option("--interactor", type=Text(), help="With --polygons: the tool that outlines.  [default: server's]")
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
@click.pass_context
def detect(
    ctx: click.Context,
    images: tuple[Source, ...],
    model: str,
    threshold: float | None,
    label: tuple[tuple[str, str], ...],
    max_detections: int | None,
    polygons: bool,
    interactor: str | None,
    tolerance: float | None,
    max_points: int | None,
    version: int,
    range: tuple[float, float] | None,
    json: bool,
    overlay: str | None,
) -> None:
    """Find objects on each IMAGE. If one fails, the others go on, and the exit code is 1."""
    client: polywand.Client = ctx.obj
    if not polygons and (interactor, tolerance, max_points) != (None, None, None):
        raise click.UsageError("--interactor, --tolerance and --max-points are options of outlines: add --polygons.")
    _check_standard_input(images)
    pictures = outputs.pictures(overlay, images)
    answers = detect_each(
        client,
        images,
        {
            "model": model,
            "version": version,
            "threshold": threshold,
            "labels": dict(label),
            "max_detections": max_detections,
            "polygons": polygons,
            "interactor": interactor or "",
            "tolerance": tolerance,
            "max_points": max_points,
            "value_range": range,
        },
    )
    all_ok = True
    for number, found in answers:
        all_ok &= _report_detections(images[number], found, json, pictures[number : number + 1], range)
        images[number].discard()
    ctx.exit(0 if all_ok else 1)


def _report_detections(
    image: Source,
    found: Detections | PolywandError,
    json: bool,
    pictures: list[Path],
    value_range: tuple[float, float] | None,
) -> bool:
    if isinstance(found, PolywandError):
        if json:
            echo(report.line(report.failure_json(printable(image.name), found)))
        complain(_message(found, image.name))
        return False
    return _report(
        image,
        report.detections_json(printable(image.name), found) if json else None,
        report.detections_text(shown(image.name), found),
        pictures,
        value_range,
        lambda photo: drawing.draw_detections(photo, found),
    )


def _report(
    image: Source,
    as_json: dict[str, Any] | None,
    as_text: str,
    pictures: list[Path],
    value_range: tuple[float, float] | None,
    draw: Callable[[drawing.RGB], drawing.RGB],
) -> bool:
    """Draw and print one answer; it is printed even if drawing fails. Return whether drawing succeeded.

    as_json: None to print text. pictures: the file to draw into, or empty.
    """
    failure: PolywandError | None = None
    try:
        for path in pictures:
            files.write(path, drawing.encode(draw(drawing.load_rgb(image.read(), value_range)), path.suffix))
    except PolywandError as error:
        failure = error
    if as_json is not None and failure is not None:
        as_json |= report.failure_json(printable(image.name), failure)
    echo(as_text if as_json is None else report.line(as_json))
    if failure is not None:
        complain(_message(failure, image.name))
    return failure is None


@contextmanager
def _opened(
    client: polywand.Client, image: Source, value_range: tuple[float, float] | None
) -> Iterator[polywand.Session]:
    try:
        session = client.open(image, value_range=value_range)
    except PolywandError as error:
        error.args = (_message(error, image.name),)
        raise
    with session:
        yield session


@contextmanager
def _errors_reported(image: str | None, json: bool) -> Iterator[None]:
    """Report errors, with --json as JSON too, and with the name of the image."""
    try:
        yield
    except PolywandError as error:
        if json:
            echo(report.line(report.failure_json(None if image is None else printable(image), error)))
        raise click.ClickException(_message(error)) from error


def _message(error: PolywandError, image: str | None = None) -> str:
    """Return an error as one line: with the image's name, and with the request id if the server failed."""
    text = shown(str(error))
    if isinstance(error, ServerError) and error.request_id:
        text = f"{text} [request_id={shown(error.request_id)}]"
    if image is None or text.startswith((shown(image), STANDARD_INPUT)):
        return text
    return f"{shown(image)}: {text}"


def _check_standard_input(sources: Sequence[Source]) -> None:
    if sum(source.is_standard_input for source in sources) > 1:
        raise click.UsageError("Standard input is read once: only one of the images can be '-'.")


def _seed(seed: Source, image: Source, session: polywand.Session) -> NDArray[np.bool_]:
    """Read the seed mask. Raises InvalidRequest if its size is not the image's, or it is empty."""
    mask = read_mask(Path("/dev/stdin" if seed.is_standard_input else seed.name))
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
