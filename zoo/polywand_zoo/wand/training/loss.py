"""The loss of a training step: per answer, of its pixels, its shape, its edge and its clicks."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from polywand_zoo.wand.network import COARSE_STRIDE
from polywand_zoo.wand.training.config import LossWeights


@dataclass(frozen=True, slots=True)
class Wanted:
    """The right answer [B, 1, S, S] of 0 and 1, and the weight of its pixels for the edge."""

    target: Tensor
    edge: Tensor


def answer_loss(logits: Tensor, auxiliary: Tensor, wanted: Wanted, clicks: Tensor, weights: LossWeights) -> Tensor:
    """The loss of each item of a batch: [B].

    logits: [B, 1, S, S]; auxiliary: [B, 1, S / 8, S / 8].
    clicks: [B, 1, S, S], 1 in the disks of clicks.
    """
    target = wanted.target
    wrong = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    sure = torch.exp(-wrong)  # the probability given to the truth
    focus = (1 - sure) ** 2
    with torch.no_grad():
        share = (focus[0].numel() / (focus.sum((1, 2, 3)) + 1e-6)).clamp(max=200.0)
    focal = 0.5 * (focus * wrong).mean((1, 2, 3)) * share
    coarse = functional.binary_cross_entropy_with_logits(
        auxiliary, functional.avg_pool2d(target, COARSE_STRIDE), reduction="none"
    ).mean((1, 2, 3))
    edge = (wrong * wanted.edge).sum((1, 2, 3)) / (wanted.edge.sum((1, 2, 3)) + 1)
    obeyed = (wrong * clicks).sum((1, 2, 3)) / (clicks.sum((1, 2, 3)) + 1)
    return (
        focal
        + weights.shape * (1 - soft_iou(logits, target))
        + weights.coarse * coarse
        + weights.edge * edge
        + weights.clicks * obeyed
    )


def soft_iou(logits: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of probabilities [B, 1, S, S] and a mask: [B]."""
    probabilities = logits.sigmoid()
    shared = (probabilities * target).sum((1, 2, 3))
    return (shared + 1) / (torch.maximum(probabilities, target).sum((1, 2, 3)) + 1)
