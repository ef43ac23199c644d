"""Weights of either generation of the wand network: how checkpoints are kept, and which network a file is of."""

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from polywand_zoo.wand.checkpoint import CheckpointError, load_network
from polywand_zoo.wand.fine import FineNetwork
from polywand_zoo.wand.graph import load_graph
from polywand_zoo.wand.network import WandNetwork

FORMAT = "polywand-wand-2"


def load(path: Path) -> WandNetwork | FineNetwork:
    """Load the averaged weights of a training, or those of an exported graph; the network is ready for inference.

    Raises:
        CheckpointError
    """
    if path.suffix == ".onnx":
        return load_graph(path)
    content = _unpickle(path)
    return _average(content, path) if _is_fine(content) else load_network(path)


def mean(paths: Sequence[Path]) -> WandNetwork | FineNetwork:
    """Load the mean of the weights of several trainings that have one origin; the network is ready for inference.

    Such a mean is often better than each of them, and costs nothing when it is used ("model soups", Wortsman et al.
    2022).

    Raises:
        CheckpointError: a file is none, or they are of both generations.
    """
    networks = [load(path) for path in paths]
    first, *others = networks
    for path, other in zip(paths[1:], others, strict=True):
        if type(other) is not type(first):
            raise CheckpointError(f"{path} and {paths[0]} are of different generations: they have no mean")
    states = [network.state_dict() for network in networks]
    averaged = {
        name: torch.stack([state[name] for state in states]).mean(0) if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }
    first.load_state_dict(averaged)
    return first


def load_fine(path: Path) -> FineNetwork:
    """Load the averaged weights of a training of the second generation."""
    return _average(read(path), path)


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint that `save` wrote; no code in it is run."""
    content = _unpickle(path)
    if not _is_fine(content):
        raise CheckpointError(f"{path} is no checkpoint of `polywand-zoo train`")
    checkpoint: dict[str, Any] = content
    return checkpoint


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint, which appears whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        torch.save({"format": FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _is_fine(content: Any) -> bool:
    return isinstance(content, dict) and content.get("format") == FORMAT


def _average(content: dict[str, Any], path: Path) -> FineNetwork:
    network = FineNetwork()
    try:
        network.load_state_dict(content["average"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} holds the weights of another network: {error}") from error
    return network.eval()


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path} is not a PyTorch checkpoint of plain weights") from error
