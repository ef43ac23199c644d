"""Weights of the wand network: from the experiment that trained them into the network's own names."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from polywand_zoo.wand.network import WandNetwork

# The experiment ran the backbone's convolutions from a list in the order of the detector's graph.
# The two without a name were the detector's own laterals, which this network has replaced.
_BACKBONE = (
    "stem",
    "stages.0.enter",
    "stages.0.residuals.0.reduce",
    "stages.0.residuals.0.refine",
    "stages.0.leave",
    "stages.1.enter",
    "stages.1.residuals.0.reduce",
    "stages.1.residuals.0.refine",
    "stages.1.residuals.1.reduce",
    "stages.1.residuals.1.refine",
    "stages.1.leave",
    None,
    "stages.2.enter",
    "stages.2.residuals.0.reduce",
    "stages.2.residuals.0.refine",
    "stages.2.residuals.1.reduce",
    "stages.2.residuals.1.refine",
    "stages.2.leave",
    None,
    "stages.3.enter",
    "stages.3.residuals.0.reduce",
    "stages.3.residuals.0.refine",
    "stages.3.residuals.1.reduce",
    "stages.3.residuals.1.refine",
    "stages.3.residuals.2.reduce",
    "stages.3.residuals.2.refine",
    "stages.3.leave",
)

_MODULES = {f"backbone.{name}": f"enc.convs.{index}" for index, name in enumerate(_BACKBONE) if name} | {
    "laterals.stride2": "dec.l2",
    "laterals.stride4": "dec.l4",
    "laterals.stride8": "dec.l8",
    "laterals.stride16": "dec.l16",
    "laterals.stride32": "dec.l32",
    "prompt_encoder.stride2": "dec.p2",
    "prompt_encoder.stride4": "dec.p4",
    "prompt_encoder.stride8": "dec.p8",
    "prompt_encoder.stride16": "dec.p16",
    "decoder.context_norm": "dec.n16",
    **{
        f"decoder.context.{block}.{ours}": f"dec.b.{block}.{theirs}"
        for block in range(3)
        for ours, theirs in {
            "neighbourhood": "dw",
            "attention.norm": "at.n",
            "attention.query_key_value": "at.qkv",
            "attention.project": "at.o",
            "expand": "ff.0",
            "contract": "ff.1",
        }.items()
    },
    "decoder.fuse8.coarse": "dec.u8",
    "decoder.fuse8.prompt": "dec.q8",
    "decoder.fuse8.norm": "dec.n8.0",
    "decoder.fuse8.refine.first": "dec.b8.a",
    "decoder.fuse8.refine.second": "dec.b8.b",
    "decoder.fuse4.coarse": "dec.u4",
    "decoder.fuse4.prompt": "dec.q4",
    "decoder.fuse4.norm": "dec.n4.0",
    "decoder.fuse4.refine.first": "dec.b4.a",
    "decoder.fuse4.refine.second": "dec.b4.b",
    "decoder.fuse2.coarse": "dec.u2",
    "decoder.fuse2.norm": "dec.n2.0",
    "decoder.fuse2.refine": "dec.b2",
    "decoder.auxiliary": "dec.aux",
    "decoder.output": "dec.out",
}

# What a checkpoint holds and the network does not: the detector's laterals, and constants that the network computes.
UNUSED = frozenset(
    {f"enc.convs.{index}.{part}" for index, name in enumerate(_BACKBONE) if not name for part in ("weight", "bias")}
    | {"mean", "std"}
)

_STEM = "backbone.stem.weight"


class CheckpointError(ValueError):
    """A file is no checkpoint of this network; the message says what is missing and what is left over."""


def load_network(path: Path) -> WandNetwork:
    """Load the averaged weights of a checkpoint that the experiment wrote; the network is ready for inference."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path} is not a PyTorch checkpoint of plain weights") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("ema"), dict):
        raise CheckpointError(f"{path} has no averaged weights under the key 'ema'")
    network = WandNetwork()
    network.load_state_dict(translate(checkpoint["ema"], network.state_dict()))
    return network.eval()


def translate(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert an experiment's tensors to the names and dtypes of the network's own state dict."""
    names = {name: experiment_name(name) for name in ours}
    wrong = {
        "missing": [theirs_name for theirs_name in names.values() if theirs_name not in theirs],
        "left over": [name for name in theirs if name not in UNUSED and name not in names.values()],
        "of another shape": [
            f"{name} {list(theirs[name].shape)}, expected {list(ours[own].shape)}"
            for own, name in names.items()
            if name in theirs and theirs[name].shape != ours[own].shape
        ],
    }
    if any(wrong.values()):
        raise CheckpointError("; ".join(f"{what}: {', '.join(found)}" for what, found in wrong.items() if found))
    tensors = {own: theirs[name].to(ours[own].dtype) for own, name in names.items()}
    tensors[_STEM] = tensors[_STEM].flip(1)  # the experiment saw BGR
    return tensors


def experiment_name(name: str) -> str:
    """Return the experiment's name of one of the network's tensors."""
    for ours, theirs in _MODULES.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)
