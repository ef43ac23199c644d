"""Readers of the authors' checkpoints: they detect the network, run no code of the file, and name what is wrong."""

import functools
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polywand_zoo.published.architectures import ARCHITECTURES
from polywand_zoo.published.interactors import IMAGENET_DEVIATION, IMAGENET_MEAN, RITM_DISK_RADIUS

LISTED = 3  # names in a message; more are only counted

# How often a normalisation was trained: counted since PyTorch 0.4.1, and of no use here.
COUNTER = ".num_batches_tracked"
# What f-BRS wrote beside the weights for its training.
TRAINING_ONLY = frozenset({"aspp_dropout"})
WRAPPER = "module."  # before every name, where a network was trained on several GPUs

# What RITM's configuration has to say, since the weights do not show it; a checkpoint may leave out any of it.
RITM_CONFIGURATION: Mapping[str, object] = {
    "use_leaky_relu": True,
    "use_rgb_conv": False,
    "use_disks": True,
    "norm_radius": RITM_DISK_RADIUS,
    "with_prev_mask": True,
    "binary_prev_mask": False,
    "conv_extend": False,
    "clicks_groups": None,
    "norm_mean_std": (list(IMAGENET_MEAN), list(IMAGENET_DEVIATION)),
}


class CheckpointError(ValueError):
    """A file is no checkpoint that can be used; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read and understood.

    name: of its network in `ARCHITECTURES`. network: with the weights, single precision, ready for inference.
    """

    name: str
    network: nn.Module


@dataclass(frozen=True, slots=True)
class Differences:
    """How a checkpoint's entries differ from a network's: names, with the shapes where only those differ."""

    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    other_shapes: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.missing) + len(self.left_over) + len(self.other_shapes)

    def __str__(self) -> str:
        kinds = (
            ("missing", self.missing),
            ("left over", self.left_over),
            ("of another shape", self.other_shapes),
        )
        return "; ".join(f"{kind}: {_listed(names)}" for kind, names in kinds if names)


def read(path: Path, name: str | None = None) -> Checkpoint:
    """Read a checkpoint file of the network `name`, or of whichever network it fits.

    Raises:
        CheckpointError: it is damaged, wants to run code, or belongs to another network or to none.
        OSError: it cannot be read at all.
    """
    entries, configuration = read_entries(path)
    found = identify(path, entries, name)
    _check_configuration(path, found, configuration)
    broken = [entry for entry, tensor in entries.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise CheckpointError(f"{path} is damaged: it holds numbers that are not finite, in {_listed(broken)}")
    network = ARCHITECTURES[found]()
    own = network.state_dict()
    network.load_state_dict(
        {entry: entries[entry].to(own[entry].dtype) if entry in entries else own[entry] for entry in own}
    )
    return Checkpoint(found, network.eval().requires_grad_(False))


def read_entries(path: Path) -> tuple[dict[str, Tensor], Mapping[str, object]]:
    """Read names and tensors of a file, and RITM's configuration (empty when there is none).

    Raises:
        CheckpointError, OSError
    """
    content = _unpickle(path)
    configuration: Mapping[str, object] = {}
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        configuration = _parameters(content.get("config"))
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds no named weights, but a {type(content).__name__}")
    strange = [str(name) for name, entry in content.items() if not (isinstance(name, str) and _is_weight(entry))]
    if strange:
        raise CheckpointError(f"{path} holds entries that are no named weights: {_listed(strange)}")
    if all(name.startswith(WRAPPER) for name in content):
        content = {name.removeprefix(WRAPPER): tensor for name, tensor in content.items()}
    return {name: tensor for name, tensor in content.items() if name not in TRAINING_ONLY}, configuration


def _is_weight(entry: object) -> bool:
    """Whether an entry is a plain tensor: dense, on the CPU, real and not quantized."""
    if not isinstance(entry, Tensor) or entry.layout is not torch.strided or entry.device.type != "cpu":
        return False
    return not (entry.is_quantized or entry.is_complex())


def identify(path: Path, entries: Mapping[str, Tensor], name: str | None) -> str:
    """Identify the network that entries belong to: the named one, or any.

    Raises:
        CheckpointError
    """
    if name is not None:
        differences = compare(entries, name)
        if not differences.count:
            return name
    found = {candidate: compare(entries, candidate) for candidate in ARCHITECTURES}
    closest = min(found, key=lambda candidate: found[candidate].count)
    if not found[closest].count:
        if name is None:
            return closest
        raise CheckpointError(f"{path} is a checkpoint of {closest}, not of {name}")
    wanted = name or closest
    raise CheckpointError(f"{path} is no checkpoint of {wanted}: {found[wanted]}")


def compare(entries: Mapping[str, Tensor], name: str) -> Differences:
    """Compare a checkpoint's entries with a network's."""
    shapes = _shapes(name)
    return Differences(
        missing=tuple(entry for entry in shapes if entry not in entries and not entry.endswith(COUNTER)),
        left_over=tuple(entry for entry in entries if entry not in shapes),
        other_shapes=tuple(
            f"{entry} {list(entries[entry].shape)} instead of {list(shape)}"
            for entry, shape in shapes.items()
            if entry in entries and entries[entry].shape != shape
        ),
    )


@functools.cache
def _shapes(name: str) -> Mapping[str, torch.Size]:
    with torch.device("meta"):
        return {entry: tensor.shape for entry, tensor in ARCHITECTURES[name]().state_dict().items()}


def _unpickle(path: Path) -> Any:
    """Read what PyTorch saved, without running any code of the file."""
    _check_sums(path)  # opens the file, so a file that cannot be opened raises OSError here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats of files that are refused or read just as well
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file with arbitrary content can make the reader raise anything
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden:
            raise CheckpointError(
                f"{path} wants to run code when it is read ({forbidden[1]}), which weights need not: it is refused"
            ) from error
        raise CheckpointError(
            f"{path} is no checkpoint, or it is cut off or damaged: PyTorch cannot read it"
        ) from error


def _check_sums(path: Path) -> None:
    """Compare the check sums of a file in PyTorch's newer format, which PyTorch itself does not."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the check sum of {damaged} in it is wrong")


def _parameters(config: object) -> Mapping[str, object]:
    """Return the parameters that RITM's code wrote beside the weights: {name: {"value": …}}."""
    parameters = config.get("params") if isinstance(config, dict) else None
    if not isinstance(parameters, dict):
        return {}
    return {
        name: parameter["value"]
        for name, parameter in parameters.items()
        if isinstance(parameter, dict) and "value" in parameter
    }


def _check_configuration(path: Path, name: str, configuration: Mapping[str, object]) -> None:
    for key, value in RITM_CONFIGURATION.items():
        if key in configuration and _plain(configuration[key]) != _plain(value):
            raise CheckpointError(
                f"{path} is a variant of {name} that is not known here: {key} is {configuration[key]}, not {value}"
            )


def _plain(value: object) -> object:
    """Make tuples and lists equal."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
