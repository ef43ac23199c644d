"""Weights out of an exported graph, so that whoever has the model can train it further."""

from pathlib import Path

import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from torch import Tensor, nn

from polywand_zoo.wand.checkpoint import CheckpointError
from polywand_zoo.wand.fine import FineNetwork
from polywand_zoo.wand.folding import HALF_SUFFIX, fold_batch_norms
from polywand_zoo.wand.network import ConvNorm, WandNetwork

PREFIX = "network."  # of their names in the graph
ONLY_FINE = "fine.correct.weight"


def load_graph(path: Path) -> WandNetwork | FineNetwork:
    """Load the network of a model.onnx of `wand`; its normalisations are there again and change nothing.

    Raises:
        CheckpointError: it is another file.
    """
    weights = _weights(path)
    network = FineNetwork() if ONLY_FINE in weights else WandNetwork()
    known = fold_batch_norms(network).state_dict()
    wrong = sorted(known.keys() ^ weights.keys())
    wrong += sorted(name for name in known.keys() & weights.keys() if known[name].shape != weights[name].shape)
    if wrong:
        raise CheckpointError(
            f"{path} is no graph of this network: {wrong[0]} is missing, left over or of another shape"
        )
    for name, module in network.named_modules():
        if isinstance(module, ConvNorm):
            _take_bias(module, weights.pop(f"{name}.0.bias"))
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            module.running_var.fill_(1 - module.eps)
    network.load_state_dict(network.state_dict() | weights)
    return network.eval()


def _take_bias(block: ConvNorm, bias: Tensor) -> None:
    """A convolution in front of a normalisation has no bias: it is the normalisation's."""
    norm = block[1]
    assert isinstance(norm, nn.BatchNorm2d)  # what the block is made of
    norm.bias.data.copy_(bias)


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        graph = onnx.load(path).graph
    except (DecodeError, ValueError) as error:
        raise CheckpointError(f"{path} is no ONNX file") from error
    return {
        tensor.name.removeprefix(PREFIX).removesuffix(HALF_SUFFIX): torch.tensor(numpy_helper.to_array(tensor)).float()
        for tensor in graph.initializer
        if tensor.name.startswith(PREFIX)
    }
