"""From a checkpoint file to a model in the repository."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from polywand_zoo.published import checkpoint, refined, repository
from polywand_zoo.published.bfloat import Bfloat, judge
from polywand_zoo.published.catalogue import CATALOGUE, Published
from polywand_zoo.published.config import model_config, notice
from polywand_zoo.published.export import Precision, add_metadata, export, interactor
from polywand_zoo.published.repository import Addition

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Import:
    """What was added: the version's folder, and whether the model was there before."""

    folder: Path
    version: int
    is_new: bool


def import_checkpoint(
    name: str,
    file: Path,
    models: Path,
    *,
    version: int | None,
    precision: Precision,
    bfloat: Bfloat,
    tell: Tell,
) -> Import:
    """Add a checkpoint as a version of a catalogued model to a repository; tell: is called with a line for each check.

    Raises:
        CheckpointError, ExportError, RepositoryError, OSError: nothing was added then.
    """
    published = CATALOGUE[name]
    version = _free_version(models, published, version)
    read = checkpoint.read(file, name)
    sha256 = _sha256(file)
    parameters = sum(parameter.numel() for parameter in read.network.parameters())
    tell(f"checkpoint: {file.name}, SHA-256 {sha256}")
    tell(f"weights: {parameters / 1e6:.1f} million of {name}, with nothing missing and nothing left over")

    metadata = {
        "license": published.license,
        "source": published.weights_source,
        "checkpoint_sha256": sha256,
    }
    if published.is_refined:
        exported = refined.additions(published, read.network, precision, metadata, tell)
        tell("bfloat16: not used; gradients need single precision")
    else:
        exported = [_addition(published, read.network, precision, bfloat, metadata, tell)]
    text = notice(published, checkpoint=file.name, sha256=sha256, precision=precision).encode()
    additions = [Addition(addition.name, {**addition.files, "NOTICE": text}, addition.config) for addition in exported]
    is_new = not (models / name).exists()
    folder = repository.add_version(models, version, *additions)
    return Import(folder, version, is_new)


def _addition(
    published: Published,
    network: nn.Module,
    precision: Precision,
    bfloat: Bfloat,
    metadata: Mapping[str, str],
    tell: Tell,
) -> Addition:
    """Export a network that is one model."""
    exported = export(network, precision, **metadata)
    agreement = (
        f"no logit differs from PyTorch's by more than {exported.difference:.1g} deviations"
        if precision is Precision.FP32
        else f"logits differ from single precision in PyTorch by {exported.difference:.1g} deviations on average"
    )
    tell(f"graph: {precision}, {len(exported.data) / 1e6:.1f} MB; on {exported.prompts} random prompts {agreement}")
    wrapped = interactor(network)
    verdict = judge(bfloat, exported.data, published, wrapped)
    tell(f"bfloat16: {'used where a processor has it' if verdict.use else 'not used'}; {verdict.why}")
    data = add_metadata(exported.data, bfloat16="on" if verdict.use else "off")
    config = model_config(
        published,
        points=wrapped.POINTS,
        size=wrapped.SIZE,
        has_previous_mask="PREV_MASK" in wrapped.INPUTS,
    )
    return Addition(published.name, {"model.onnx": data}, config)


def _free_version(models: Path, published: Published, wanted: int | None) -> int:
    """Choose a version that neither the model nor its parts have."""
    names = [published.name, *(refined.part_names(published.name) if published.is_refined else ())]
    return max(repository.next_version(models, name, wanted) for name in names)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
