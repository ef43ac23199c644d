"""From a checkpoint file to a model in the repository."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from polywand_zoo.published import checkpoint, repository
from polywand_zoo.published.bfloat import Bfloat, judge
from polywand_zoo.published.catalogue import CATALOGUE
from polywand_zoo.published.config import model_config, notice
from polywand_zoo.published.export import Precision, add_metadata, export, interactor


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
    tell: Callable[[str], None],
) -> Import:
    """Add a checkpoint as a version of a catalogued model to a repository; tell: gets a line for all that was verified.

    Raises:
        CheckpointError, ExportError, RepositoryError, OSError: nothing was added then.
    """
    published = CATALOGUE[name]
    version = repository.next_version(models, name, version)
    read = checkpoint.read(file, name)
    sha256 = _sha256(file)
    parameters = sum(parameter.numel() for parameter in read.network.parameters())
    tell(f"checkpoint: {file.name}, SHA-256 {sha256}")
    tell(f"weights: {parameters / 1e6:.1f} million of {name}, with nothing missing and nothing left over")

    exported = export(
        read.network, precision, license=published.license, source=published.weights_source, checkpoint_sha256=sha256
    )
    agreement = (
        f"no logit differs from PyTorch's by more than {exported.difference:.1g} deviations"
        if precision is Precision.FP32
        else f"logits differ from single precision in PyTorch by {exported.difference:.1g} deviations on average"
    )
    tell(f"graph: {precision}, {len(exported.data) / 1e6:.1f} MB; on {exported.prompts} random prompts {agreement}")

    wrapped = interactor(read.network)
    verdict = judge(bfloat, exported.data, published, wrapped)
    tell(f"bfloat16: {'used where a processor has it' if verdict.use else 'not used'}; {verdict.why}")
    config = model_config(
        published,
        points=wrapped.POINTS,
        size=wrapped.SIZE,
        has_previous_mask="PREV_MASK" in wrapped.INPUTS,
    )
    is_new = not (models / name).exists()
    text = notice(published, checkpoint=file.name, sha256=sha256, precision=precision)
    data = add_metadata(exported.data, bfloat16="on" if verdict.use else "off")
    files = {"model.onnx": data, "NOTICE": text.encode()}
    folder = repository.add_version(models, name, version, files, config)
    return Import(folder, version, is_new)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
