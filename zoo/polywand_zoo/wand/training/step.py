"""One step of training: a crop encoded once, answered several times, each answer corrected by a click."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from polywand_zoo.wand.fine import FineImage, FineNetwork
from polywand_zoo.wand.network import ImageFeatures
from polywand_zoo.wand.training import prompts
from polywand_zoo.wand.training.config import LossWeights
from polywand_zoo.wand.training.dataset import Pixels
from polywand_zoo.wand.training.loss import Wanted, answer_loss, soft_iou
from polywand_zoo.wand.training.precision import mixed_precision
from polywand_zoo.wand.training.prompts import NEGATIVE, POSITIVE, PREVIOUS
from polywand_zoo.wand.training.samples import Sample

FIRST_REPEATED = 0.3  # of the first answers to clicks, those that are refined without a new click
REPEATED = 0.05  # of all other answers
EDGE = np.ones((5, 5), np.uint8)  # the outline and two pixels on each side


@dataclass(frozen=True, slots=True)
class StepResult:
    """loss: of all answers; qualities: their IoU [passes, B]."""

    loss: float
    qualities: NDArray[np.float32]


def backpropagate(
    network: FineNetwork, samples: Sequence[Sample], passes: int, weights: LossWeights, randoms: Sequence[Generator]
) -> StepResult:
    """Add the gradients of a batch to the network's; the samples' prompts grow by a click for every pass but one."""
    target = torch.from_numpy(np.stack([sample.target for sample in samples]))[:, None].float()
    edge = torch.from_numpy(np.stack([_edge_weights(sample.target) for sample in samples]))[:, None]
    wanted = Wanted(target, edge)
    image = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2).float()
    with mixed_precision():
        encoded = network.encode(image)
    tensors = [*encoded.laterals, encoded.edges]
    # Each pass's graph is dropped before the next; what they want of the image is gathered at its features.
    held = [tensor.detach().requires_grad_() for tensor in tensors]
    features = FineImage(ImageFeatures(*held[:-1]), held[-1])

    total, qualities = 0.0, []
    before: Tensor | None = None
    for number in range(passes):
        maps = np.stack([sample.maps for sample in samples])
        with mixed_precision():
            prompt = network.read(
                torch.from_numpy(maps).contiguous(memory_format=torch.channels_last).float().div_(255)
            )
            coarse = network.coarse(features, prompt)
            auxiliary = network.decoder.auxiliary(coarse)
            logits = network.sharpen(coarse, features, prompt)
        logits, auxiliary = logits.float(), auxiliary.float()
        clicks = torch.from_numpy(_obeyable(maps, samples))[:, None].float()
        loss = answer_loss(logits, auxiliary, wanted, clicks, weights)
        quality = soft_iou(logits, target)
        if before is not None:
            loss = loss + weights.setback * (before - quality).clamp(min=0)
        before = quality.detach()
        mean = loss.mean() / passes
        mean.backward()  # type: ignore[no-untyped-call]
        total += float(mean.detach())

        answers = (logits.detach().sigmoid()[:, 0] * 255).to(torch.uint8).numpy()
        masks = (answers > 127).astype(np.uint8)
        qualities.append([_iou(mask, sample.target) for mask, sample in zip(masks, samples, strict=True)])
        if number + 1 < passes:
            for sample, answered, mask, random in zip(samples, answers, masks, randoms, strict=True):
                _prepare_next(sample, answered, mask, number, random)
    torch.autograd.backward(tensors, [tensor.grad for tensor in held])
    return StepResult(total, np.array(qualities, np.float32))


def _prepare_next(sample: Sample, answered: Pixels, mask: Pixels, number: int, random: Generator) -> None:
    """Feed an answer back, and add the click that it calls for.

    Sometimes there is no click: the service refines an answer on a closer crop.
    """
    if random.random() < (FIRST_REPEATED if number == 0 and sample.mode == "click" else REPEATED):
        sample.maps[PREVIOUS] = prompts.coarsened(answered, random) if random.random() < 0.6 else answered
        return
    click = prompts.correction(sample.target, mask, random)
    if click is not None:
        sample.click(click)
    sample.maps[PREVIOUS] = prompts.roughened(answered, random)


def answer(network: FineNetwork, samples: Sequence[Sample]) -> Tensor:
    """Answer samples as their prompts stand: logits [B, 1, S, S]."""
    image = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2).float()
    maps = torch.from_numpy(np.stack([sample.maps for sample in samples])).float().div_(255)
    with torch.no_grad(), mixed_precision():
        logits: Tensor = network(image, maps)
    return logits


def _edge_weights(target: Pixels) -> NDArray[np.float32]:
    """1 along the outline, 0 elsewhere."""
    edge: NDArray[np.float32] = cv2.morphologyEx(target, cv2.MORPH_GRADIENT, EDGE).astype(np.float32)
    return edge


def _obeyable(maps: Pixels, samples: Sequence[Sample]) -> Pixels:
    """The pixels in the disks of clicks on which the outline agrees: a thin thing is narrower than a disk."""
    target = np.stack([sample.target for sample in samples]) > 0
    return np.where(target, maps[:, POSITIVE] > 0, maps[:, NEGATIVE] > 0).astype(np.uint8)


def _iou(mask: Pixels, target: Pixels) -> float:
    return float(np.count_nonzero(mask & target) / max(1, np.count_nonzero(mask | target)))
