"""Export of a wand checkpoint to interactors under Polywand's contract: the network, and its refinement by f-BRS."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polywand_zoo.onnx_export import ExportError, trace
from polywand_zoo.points import Label
from polywand_zoo.refinement.config import head_name, tool_code
from polywand_zoo.refinement.export import HeadComparison, build_head
from polywand_zoo.refinement.parts import Features, Parts
from polywand_zoo.versions import versions
from polywand_zoo.wand import weights
from polywand_zoo.wand.fine import FineNetwork
from polywand_zoo.wand.folding import fold_batch_norms, round_weights
from polywand_zoo.wand.graph import store_weights_in_half
from polywand_zoo.wand.network import DISK_RADIUS, INPUT_SIZE, WandNetwork
from polywand_zoo.wand.obedience import Obedience
from polywand_zoo.wand.prompts import FinePromptMaps, PromptMaps
from polywand_zoo.wand.refined import CHANNELS, Redrawing

Network = WandNetwork | FineNetwork

MAX_POINTS = 64
INPUTS = ("IMAGE", "POINTS", "PREV_MASK")
OUTPUTS = ("LOGITS", "FEATURES_0", "FEATURES_1", "FEATURES_2")
MODEL, REFINED = "wand", "wand_brs"  # in Triton

GRAPH_TOLERANCE = 1e-3  # of a logit or a feature, between PyTorch and ONNX Runtime: two orders of the same float32 sums
ROUNDING_TOLERANCE = 2e-3  # of a probability, on average, by rounding the weights to half precision


@dataclass(frozen=True, slots=True)
class Export:
    """Verified graphs.

    network, head: the ONNX files: the network with its mathematics, and what f-BRS evaluates (see `refined`).
    graph_difference: the largest between an output of the graph and of the network with the same, rounded weights.
    rounding_difference: the mean one between a probability of that network and of the checkpoint's.
    gradient_difference: of the head, from autograd's, in their length.
    """

    network: bytes
    head: bytes
    graph_difference: float
    rounding_difference: float
    gradient_difference: float


@dataclass(frozen=True, slots=True)
class Request:
    """The inputs of one inference.

    image: [B, S, S, 3], uint8, RGB.
    points: [B, 64, 3], float32: x, y in pixels with centres at integers, and a `Label`.
    previous: [B, 1, S, S], float32, 0..1.
    """

    image: NDArray[np.uint8]
    points: NDArray[np.float32]
    previous: NDArray[np.float32]

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
        """List the inputs in the order of `INPUTS`."""
        return self.image, self.points, self.previous

    def tensors(self) -> tuple[Tensor, ...]:
        """List the inputs in the order of `INPUTS`, for PyTorch."""
        return tuple(torch.from_numpy(array) for array in self.arrays())


class Interactor(nn.Module):
    """The exported module: a network with its pre- and postprocessing."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        is_fine = isinstance(network, FineNetwork)
        self.maps = (FinePromptMaps if is_fine else PromptMaps)(INPUT_SIZE, DISK_RADIUS)
        self.network = network
        # The first generation is served as it always was.
        self.obey = Obedience(INPUT_SIZE) if is_fine else None

    def forward(self, image: Tensor, points: Tensor, previous: Tensor) -> tuple[Tensor, ...]:
        """Map the tensors of a `Request` to logits [B, 1, S, S], and to what `refined.Redrawing` reads."""
        logits, coarse = self.network.segment(image.permute(0, 3, 1, 2).float(), self.maps(points, previous))
        obeyed = logits if self.obey is None else self.obey(logits, points)
        return obeyed, coarse, self.network.decoder.auxiliary(coarse), logits


class Encoder(nn.Module):
    """An interactor that answers only with what f-BRS refines."""

    def __init__(self, interactor: Interactor) -> None:
        super().__init__()
        self.interactor = interactor

    def forward(self, image: Tensor, points: Tensor, previous: Tensor) -> Features:
        """Map the tensors of a `Request` to what `refined.Redrawing` reads."""
        _, *features = self.interactor(image, points, previous)
        return tuple(features)


def export(*checkpoints: Path) -> Export:
    """Export a checkpoint of either generation, or the mean of several.

    Raises:
        CheckpointError, ExportError
    """
    trained = weights.mean(checkpoints)
    rounded = round_weights(fold_batch_norms(trained))
    data, head = build(rounded)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    parts = _divide(rounded)
    comparison = HeadComparison(parts, parts, head)
    graph_difference = rounding_difference = 0.0
    for seed in range(3):
        request = random_request(seed)
        answers = session.run(list(OUTPUTS), dict(zip(INPUTS, request.arrays(), strict=True)))
        exact, before = _infer(rounded, request), _infer(trained, request)
        differences = [np.abs(found - tensor.numpy()).max() for found, tensor in zip(answers, exact, strict=True)]
        graph_difference = max(graph_difference, *map(float, differences))
        rounding_difference = max(rounding_difference, float((before[0].sigmoid() - exact[0].sigmoid()).abs().mean()))
        comparison.add(answers[1:], (INPUT_SIZE, INPUT_SIZE))
    # Comparisons that are false for NaN must not let it pass.
    if not graph_difference <= GRAPH_TOLERANCE:
        raise ExportError(f"an output of the graph differs from PyTorch's by {graph_difference:.2g}")
    if not rounding_difference <= ROUNDING_TOLERANCE:
        raise ExportError(f"rounding the weights changes probabilities by {rounding_difference:.2g} on average")
    comparison.demand()
    return Export(data, head, graph_difference, rounding_difference, comparison.gradient_difference)


def choose_version(repository: Path, wanted: int | None, *, replace: bool) -> int:
    """Return the version to write: the wanted one, or the one after all that `wand` has or had.

    Raises:
        ExportError: the wanted one is there and not to be replaced, or was taken out of service.
    """
    served: set[int] = set()
    aside: set[int] = set()
    for folder in (repository / name for name in (MODEL, REFINED, head_name(REFINED))):
        if folder.is_dir():
            found = versions(folder)
            served.update(found.served)
            aside.update(found.aside)
    if wanted is None:
        return max(served | aside, default=0) + 1
    if wanted in aside:
        raise ExportError(f"version {wanted} was taken out of service (`polywand-zoo restore` brings it back)")
    if wanted in served and not replace:
        raise ExportError(f"there is a version {wanted} already: add another one, or say --replace")
    return wanted


def write(exported: Export, repository: Path, version: int) -> list[Path]:
    """Write a version of `wand` and, where the repository has `wand_brs`, of that; each file appears whole.

    Returns the files, the network's first.

    Raises:
        OSError
    """
    files = {repository / MODEL / str(version) / "model.onnx": exported.network}
    if (repository / REFINED / "config.pbtxt").is_file():
        files[repository / head_name(REFINED) / str(version) / "model.onnx"] = exported.head
        files[repository / REFINED / str(version) / "model.py"] = tool_code()  # the last: it calls the others
    for target, data in files.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.partial")
        partial.write_bytes(data)
        os.replace(partial, target)
    return list(files)


def build(network: Network) -> tuple[bytes, bytes]:
    """Return the interactor and f-BRS's head as checked ONNX files; the network's weights must have been rounded.

    IMAGE: UINT8 [batch, 384, 384, 3], RGB.
    POINTS: FP32 [batch, 64, 3], x, y, `Label`; pixel centres at integer coordinates.
    PREV_MASK: FP32 [batch, 1, 384, 384], probabilities; zeros at first.
    LOGITS: FP32 [batch, 1, 384, 384].
    FEATURES_0: FP32 [batch, 96, 48, 48], the coarse features. FEATURES_1: FP32 [batch, 1, 48, 48], their logits.
    FEATURES_2: FP32 [batch, 1, 384, 384], the logits before clicks are enforced.
    """
    request = random_request(0)
    model = trace(Interactor(network).eval(), request.tensors(), INPUTS, OUTPUTS)
    store_weights_in_half(model.graph)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True), build_head(_divide(network), request.arrays())


def _divide(network: Network) -> Parts:
    encoder = Encoder(Interactor(network))
    return Parts(encoder.eval(), Redrawing(network).eval(), CHANNELS, is_fixed=True)


def random_request(seed: int, batch: int = 2) -> Request:
    """Make up an image, points of all labels, some of them outside, a box for every other item, and a mask."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (batch, INPUT_SIZE, INPUT_SIZE, 3), dtype=np.uint8)
    previous = random.random((batch, 1, INPUT_SIZE, INPUT_SIZE), dtype=np.float32)
    points = np.zeros((batch, MAX_POINTS, 3), np.float32)
    points[..., :2] = random.uniform(-10, INPUT_SIZE + 10, (*points.shape[:2], 2))
    points[..., 2] = random.choice([Label.PADDING, Label.NEGATIVE, Label.POSITIVE, Label.EXTREME], points.shape[:2])
    points[::2, 0] = (40.5, 60.25, Label.BOX_TOP_LEFT)
    points[::2, 1] = (300.75, 250.5, Label.BOX_BOTTOM_RIGHT)
    return Request(image, points, previous)


def _infer(network: Network, request: Request) -> tuple[Tensor, ...]:
    with torch.inference_mode():
        answers: tuple[Tensor, ...] = Interactor(network).eval()(*request.tensors())
        return answers
