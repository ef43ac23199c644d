"""Weights in an exported graph: how they are stored, and how they are read back to continue training."""

from pathlib import Path

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper
from torch import Tensor, nn

from polywand_zoo.onnx_export import ExportError
from polywand_zoo.wand.checkpoint import CheckpointError
from polywand_zoo.wand.fine import FineNetwork
from polywand_zoo.wand.folding import fold_batch_norms
from polywand_zoo.wand.network import ConvNorm, WandNetwork

PREFIX = "network."  # of their names: what is exported has the network under this name
HALF_SUFFIX = "/float16"  # of the names of those that are stored in half precision
ONLY_FINE = "fine.correct.weight"


def store_weights_in_half(graph: onnx.GraphProto) -> None:
    """Store the weights of convolutions in half precision; runtimes cast them once, when they load the graph."""
    kernels = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    casts = []
    for tensor in graph.initializer:
        if tensor.name not in kernels:
            continue
        exact = numpy_helper.to_array(tensor)
        half = exact.astype(np.float16)
        if not np.array_equal(half, exact):
            raise ExportError(f"{tensor.name} holds numbers that half precision does not")
        stored = f"{tensor.name}{HALF_SUFFIX}"
        casts.append(
            helper.make_node("Cast", [stored], [tensor.name], f"{tensor.name}/cast", to=onnx.TensorProto.FLOAT)
        )
        tensor.CopyFrom(numpy_helper.from_array(half, stored))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


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
        if isinstance(module, nn.BatchNorm2d):
            _make_identity(module)
    network.load_state_dict(network.state_dict() | weights)
    return network.eval()


def _make_identity(norm: nn.BatchNorm2d) -> None:
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.running_var.fill_(1 - norm.eps)
    norm.num_batches_tracked.fill_(1)  # training initialises those that count 0


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
