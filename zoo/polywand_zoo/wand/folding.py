"""A trained wand network as it is shipped: batch normalisation folded into convolutions, weights in half precision."""

import copy
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from polywand_zoo.wand.fine import FineNetwork
from polywand_zoo.wand.network import Attention, ConvNorm, FuseUp, WandNetwork

Network = TypeVar("Network", bound=WandNetwork | FineNetwork)


def fold_batch_norms(network: Network) -> Network:
    """Return a network that computes the same, for inference, without batch normalisation.

    The arithmetic is done in double precision, so that every processor rounds to the same weights.
    """
    folded = copy.deepcopy(network)
    folded.double().eval()
    for module in folded.modules():
        if isinstance(module, ConvNorm):
            module[0] = fuse_conv_bn_eval(cast(nn.Conv2d, module[0]), cast(nn.BatchNorm2d, module[1]))
            module[1] = nn.Identity()
        elif isinstance(module, Attention):
            _fold_into_next(module.norm, module.query_key_value)
            module.norm = nn.Identity()
        elif isinstance(module, FineNetwork):
            fine = module.fine
            _fold_into_sum(fine.norm, module.edges.project, fine.coarse, fine.outline, fine.prompt)
            fine.norm = nn.Identity()

    decoder, laterals = folded.decoder, folded.laterals
    _fold_into_sum(decoder.context_norm, laterals.stride16, laterals.stride32)
    decoder.context_norm = nn.Identity()
    for step, lateral in (
        (decoder.fuse8, laterals.stride8),
        (decoder.fuse4, laterals.stride4),
        (decoder.fuse2, laterals.stride2),
    ):
        _fold_fuse_up(step, lateral)
    folded.float()
    return folded


def round_weights(network: Network) -> Network:
    """Return a network whose convolution weights are numbers that half precision holds exactly; biases stay."""
    rounded = copy.deepcopy(network)
    for module in rounded.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.half().float()
    return rounded


def _fold_fuse_up(step: FuseUp, lateral: nn.Conv2d) -> None:
    _fold_into_sum(step.norm, lateral, step.coarse, *([step.prompt] if step.prompt else []))
    step.norm = nn.Identity()


def _fold_into_sum(norm: nn.Module, first: nn.Conv2d, *others: nn.Conv2d) -> None:
    """Fold a normalisation of a sum into the convolutions that are summed; resizing in between changes nothing."""
    scale, shift = _scale_and_shift(norm)
    for convolution in (first, *others):
        convolution.weight.data *= scale.view(-1, 1, 1, 1)
        _bias(convolution).data *= scale
    _bias(first).data += shift


def _fold_into_next(norm: nn.Module, convolution: nn.Conv2d) -> None:
    """Fold a normalisation into the 1x1 convolution that reads it."""
    scale, shift = _scale_and_shift(norm)
    _bias(convolution).data += convolution.weight.data[:, :, 0, 0] @ shift
    convolution.weight.data *= scale.view(1, -1, 1, 1)


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Express a batch normalisation as x * scale + shift, each [C]."""
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
        raise TypeError(f"expected a batch normalisation with statistics, got {norm}")
    scale = norm.weight.data / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias.data - norm.running_mean * scale


def _bias(convolution: nn.Conv2d) -> Tensor:
    if convolution.bias is None:
        raise TypeError(f"expected a convolution with a bias, got {convolution}")
    return convolution.bias
