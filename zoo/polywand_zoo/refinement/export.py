"""Export of a click network's two parts to ONNX, proven against PyTorch and its autograd."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor
from torch.jit._trace import TracerWarning
from torch.nn import functional

from polywand_zoo.onnx_export import ExportError, trace
from polywand_zoo.onnx_graph import BATCH
from polywand_zoo.onnx_half import compute_in_half
from polywand_zoo.refinement.parts import Features, Head, Parts

ENCODER_INPUTS = ("IMAGE", "POINTS")
PIXELS = 64  # of a request that a head is traced and compared with
LOSS_EPSILON = 1e-5

# Of the deviation of what is compared, the largest difference by two orders of the same sums.
TOLERANCE = 1e-3
# Half precision: the mean difference of the features.
HALF_TOLERANCE = 2e-2
# Of the gradient's length. Where rounding opens a ReLU that is closed in the other, a whole pixel's share differs:
# PyTorch's own gradients in single precision are up to 1e-2 off so.
GRADIENT_TOLERANCE = 5e-2

InHalf = Callable[[onnx.NodeProto], bool]
Request = tuple[NDArray[Any], ...]  # IMAGE [B, H, W, 3], POINTS [B, N, 3], and what else an encoder may read


@dataclass(frozen=True, slots=True)
class Graphs:
    """Proven graphs.

    encoder, head: the ONNX files. prompts: how many random ones they were compared on.
    feature_difference, difference: of the features (in half precision the mean one), and of logits, in deviations.
    gradient_difference: of the gradients, in their length.
    """

    encoder: bytes
    head: bytes
    prompts: int
    feature_difference: float
    difference: float
    gradient_difference: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A request to a head in pixels of an image, to compare its answer by.

    size: of the image. xs, ys, positive: [B, K] of the clicked pixels. scale, bias: [B, C].
    """

    size: tuple[int, int]
    xs: Tensor
    ys: Tensor
    positive: Tensor
    scale: Tensor
    bias: Tensor

    @classmethod
    def random(cls, parts: Parts, *, size: tuple[int, int], batch: int, seed: int) -> "Evaluation":
        """Make one up."""
        random = torch.Generator().manual_seed(seed)
        ys, xs = (torch.randint(0, length, (batch, PIXELS), generator=random) for length in size)
        positive = torch.rand((batch, PIXELS), generator=random) > 0.5
        scale, bias = (0.1 * torch.randn((batch, parts.variables), generator=random) for _ in range(2))
        return cls(size, xs, ys, positive, 1 + scale, bias)

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return the weights of positive and of negative pixels, [B, K] each."""
        positive, negative = self.positive.float(), (~self.positive).float()
        return tuple(kind / (kind.sum(1, keepdim=True) + LOSS_EPSILON) for kind in (positive, negative))  # type: ignore[return-value]

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return SCALE, BIAS and PIXELS."""
        height, width = self.size
        x, y = self.xs / max(1, width - 1), self.ys / max(1, height - 1)
        return self.scale, self.bias, torch.stack([x, y, *self.weights()], 2)


def export(
    parts: Parts, exact: Parts, requests: Sequence[Request], *, half: InHalf | None = None, **metadata: str
) -> Graphs:
    """Export a network in two parts, and compare the graphs on requests with PyTorch.

    exact: the same network as it was published; PyTorch's own autograd differentiates it, through a resizing to the
        image's size as in the authors' code.
    half: which of the encoder's nodes compute in half precision; its features and the head are in single.
    metadata: to be written into the files.

    Raises:
        ExportError: they do not give the same.
    """
    encoder = build_encoder(parts, requests[0], half=half, **metadata)
    head = build_head(parts, requests[0], **metadata)
    encoding, comparison = _session(encoder), HeadComparison(parts, exact, head)
    worst_features, prompts = 0.0, 0
    for image, points in requests:
        features = encoding.run(list(parts.features), {"IMAGE": image, "POINTS": points})
        with torch.inference_mode():
            joined = parts.joined(*map(torch.from_numpy, features))
            expected = _as_tuple(exact.encoder(torch.from_numpy(image), torch.from_numpy(points)))
        measure = _difference if half is None else _mean_difference
        worst_features = max(worst_features, *map(measure, joined, expected))
        comparison.add(features, (image.shape[1], image.shape[2]))
        prompts += len(image)
    _demand("features", worst_features, TOLERANCE if half is None else HALF_TOLERANCE)
    comparison.demand()
    return Graphs(encoder, head, prompts, worst_features, comparison.difference, comparison.gradient_difference)


class HeadComparison:
    """A head's graph beside PyTorch's autograd.

    exact: as in `export`. difference: the largest so far of logits, in their deviation, and of losses, in themselves;
    gradient_difference: that of gradients, in their length.
    """

    def __init__(self, parts: Parts, exact: Parts, head: bytes) -> None:
        self._parts = parts
        self._exact = exact
        self._session = _session(head)
        self._seed = 0
        self.difference = 0.0
        self.gradient_difference = 0.0

    def add(self, features: Sequence[NDArray[np.float32]], size: tuple[int, int]) -> None:
        """Compare on features [B, C, h, w], with clicks made up on an image of this size."""
        parts = self._parts
        evaluation = Evaluation.random(parts, size=size, batch=len(features[0]), seed=self._seed)
        feeds = dict(zip(parts.features, features, strict=True))
        feeds |= {name: tensor.numpy() for name, tensor in zip(Head.INPUTS, evaluation.inputs(), strict=True)}
        outputs = map(torch.from_numpy, self._session.run(list(Head.OUTPUTS), feeds))
        answer = dict(zip(Head.OUTPUTS, outputs, strict=True))
        truth = autograd(self._exact, parts.joined(*map(torch.from_numpy, features)), evaluation)
        loss_difference = float(((answer["LOSS"] - truth["LOSS"]) / truth["LOSS"]).abs().max())
        self.difference = max(self.difference, _difference(answer["LOGITS"], truth["LOGITS"]), loss_difference)
        slopes = (_relative(answer[name], truth[name]) for name in ("SCALE_GRADIENT", "BIAS_GRADIENT"))
        self.gradient_difference = max(self.gradient_difference, *slopes)
        self._seed += 1

    def demand(self) -> None:
        """Let it pass, or not.

        Raises:
            ExportError: they do not give the same.
        """
        _demand("logits or losses", self.difference, TOLERANCE)
        _demand("gradients", self.gradient_difference, GRADIENT_TOLERANCE)


def _demand(what: str, found: float, allowed: float) -> None:
    if not found <= allowed:  # false for NaN, too
        raise ExportError(f"the graphs' {what} differ from PyTorch's by {found:.2g}, and {allowed:g} is allowed")


def autograd(exact: Parts, features: Features, evaluation: Evaluation) -> dict[str, Tensor]:
    """Return what a head has to answer, by name (without WORST), as PyTorch computes and differentiates it.

    In double precision: where clicks are agreed with, single leaves few digits of the gradient.
    """
    decoder = copy.deepcopy(exact.decoder).double()
    with torch.enable_grad():
        scale, bias = (values.double().requires_grad_() for values in (evaluation.scale, evaluation.bias))
        channels = list(exact.channels[: exact.scaled])
        scales, biases = (torch.split(values[..., None, None], channels, 1) for values in (scale, bias))
        features = tuple(tensor.double() for tensor in features)
        scaled = [x * factor + shift for x, factor, shift in zip(features, scales, biases, strict=False)]
        logits = decoder(*scaled, *features[exact.scaled :])
        enlarged = functional.interpolate(logits, size=evaluation.size, mode="bilinear", align_corners=True)
        rows = torch.arange(len(enlarged)).unsqueeze(1)
        probability = enlarged[rows, 0, evaluation.ys, evaluation.xs].sigmoid()
        positive, negative = evaluation.weights()
        loss = (positive * (1 - probability) ** 2 + negative * probability**2).sum(1, keepdim=True)
        slopes = torch.autograd.grad(loss.sum(), (scale, bias))
    return {
        "LOGITS": logits.detach(),
        "LOSS": loss.detach(),
        "SCALE_GRADIENT": slopes[0],
        "BIAS_GRADIENT": slopes[1],
    }


def build_encoder(parts: Parts, request: Request, *, half: InHalf | None = None, **metadata: str) -> bytes:
    """Return the encoder as a checked ONNX file."""
    variable: dict[str, dict[int, str]] = {"IMAGE": {1: "height", 2: "width"}, "POINTS": {1: "points"}}
    variable |= _variable_features(parts)
    inputs = tuple(map(torch.from_numpy, request))
    with torch.inference_mode():
        model = trace(parts.encoder, inputs, ENCODER_INPUTS, parts.features, variable=variable)
    for output, name, channels in zip(model.graph.output, parts.features, parts.channels, strict=True):
        output.CopyFrom(_described(name, [channels, *variable[name].values()]))
    if half is not None:
        model = compute_in_half(model, half)
    return _checked(model, metadata)


def build_head(parts: Parts, request: Request, **metadata: str) -> bytes:
    """Return the head as a checked ONNX file."""
    image = request[0]
    names = (*parts.features, *Head.INPUTS)
    variable: dict[str, dict[int, str]] = _variable_features(parts) | {"PIXELS": {1: "pixels"}}
    if not parts.is_fixed:
        variable["LOGITS"] = {2: "logits_height", 3: "logits_width"}
    evaluation = Evaluation.random(parts, size=(image.shape[1], image.shape[2]), batch=len(image), seed=0)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", TracerWarning)  # the number of channels is a constant indeed
        features = _as_tuple(parts.encoder(*map(torch.from_numpy, request)))
        head = Head(parts).eval()
        model = trace(head, (*features, *evaluation.inputs()), names, Head.OUTPUTS, variable=variable)
    size = (
        image.shape[1:3] if parts.is_fixed else variable["LOGITS"].values()
    )  # a fixed head answers at the image's size
    shapes: list[list[int | str]] = [[1, *size], [1], [2], [parts.variables], [parts.variables]]
    for output, name, shape in zip(model.graph.output, Head.OUTPUTS, shapes, strict=True):
        output.CopyFrom(_described(name, shape))
    return _checked(model, metadata)


def _variable_features(parts: Parts) -> dict[str, dict[int, str]]:
    if parts.is_fixed:
        return {}
    return {name: {2: f"{name.lower()}_height", 3: f"{name.lower()}_width"} for name in parts.features}


def _described(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    """State an output's shape, which the exporter loses on its way."""
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [BATCH, *shape])


def _checked(model: onnx.ModelProto, metadata: Mapping[str, str]) -> bytes:
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _session(data: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.std())


def _relative(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


def _mean_difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().mean() / expected.std())


def _as_tuple(features: Tensor | Features) -> Features:
    return (features,) if isinstance(features, Tensor) else features
