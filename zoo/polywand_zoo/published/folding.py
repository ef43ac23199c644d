"""Folding of what directly follows a convolution into its weights: the same network with fewer layers."""

import copy
import itertools
from collections.abc import Iterator
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from polywand_zoo.networks.ritm import Scale

Network = TypeVar("Network", bound=nn.Module)
Slot = tuple[nn.Module, str]  # a module, by its parent and its name there


def fold(network: Network) -> Network:
    """Return a copy of a network, single precision, that computes the same in inference.

    Batch normalisations and scales become part of the convolutions before them; those that do not follow one directly
    stay. The arithmetic is done in double precision, so that every processor rounds to the same weights.
    """
    folded = copy.deepcopy(network).double().eval().requires_grad_(False)
    for module in list(folded.modules()):
        for (owner, name), (next_owner, next_name) in _successions(module):
            convolution, following = getattr(owner, name), getattr(next_owner, next_name)
            if not isinstance(convolution, nn.Conv2d):
                continue
            if isinstance(following, nn.BatchNorm2d):
                setattr(owner, name, fuse_conv_bn_eval(convolution, following))
            elif isinstance(following, Scale):
                for weights in convolution.parameters():
                    weights.mul_(following.scale.abs())
            else:
                continue
            setattr(next_owner, next_name, nn.Identity())
    return folded.float()


def _successions(module: nn.Module) -> Iterator[tuple[Slot, Slot]]:
    """List pairs of a module's parts of which the second is the only reader of what the first computes."""
    if isinstance(module, nn.Sequential):
        yield from itertools.pairwise(_in_order(module))
    for number in (1, 2, 3):  # the names in blocks and stems
        if hasattr(module, f"conv{number}"):
            *_, last = _flat(module, f"conv{number}")
            yield last, (module, f"bn{number}")


def _in_order(sequence: nn.Sequential) -> Iterator[Slot]:
    for name, _ in sequence.named_children():
        yield from _flat(sequence, name)


def _flat(owner: nn.Module, name: str) -> Iterator[Slot]:
    """List what a part runs, one after the other: itself, or if it is a sequence what is in it."""
    part = getattr(owner, name)
    if isinstance(part, nn.Sequential):
        yield from _in_order(part)
    else:
        yield owner, name
