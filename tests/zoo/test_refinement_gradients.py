"""Gradients that are derived at export, against PyTorch's autograd: operation by operation, and for every f-BRS."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from polywand_zoo.onnx_export import ExportError
from polywand_zoo.published.architectures import ARCHITECTURES
from polywand_zoo.published.refined import divide, divide_for_serving
from polywand_zoo.refinement import gradients
from polywand_zoo.refinement.enlarging import Enlarging
from polywand_zoo.refinement.export import Evaluation, Request, autograd, export
from polywand_zoo.refinement.gradients import NoGradientError, WithGradient
from polywand_zoo.refinement.parts import Head, Parts
from polywand_zoo.refinement.pyramid import PyramidConvolution, resized, resizing
from tests.zoo.golden import seeded_network

FBRS = [name for name in ARCHITECTURES if name.startswith("fbrs")]
SIZE = (97, 131)


class Operations(nn.Module):
    """Every operation that has a rule, some of whose values are read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.dilated = nn.Conv2d(4, 6, 3, padding=2, dilation=2)
        self.unpadded = nn.Conv2d(6, 4, (3, 1))
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.rest = nn.Sequential(nn.Identity(), nn.ReLU())
        self.enlarge = Enlarging(7, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.unpadded(self.rest(self.dilated(x)))
        x = self.rest(self.norm(self.grouped(x)))
        weights = y.flatten(2).softmax(2)
        mean = (x.flatten(2) @ weights.transpose(1, 2)).unsqueeze(3)
        return self.enlarge(torch.cat([x + mean.expand_as(x), y], 1)) - self.enlarge(torch.cat([x, y - y], 1))


def test_every_operation_has_the_gradient_of_autograd() -> None:
    torch.manual_seed(0)
    module = Operations().double().eval().requires_grad_(False)
    module.norm.running_var.uniform_(0.5, 2)
    module.norm.weight.uniform_(0.5, 2)
    inputs = [torch.randn(2, 4, 9, 7, dtype=torch.float64), torch.randn(2, 1, 7, 7, dtype=torch.float64)]
    derived = WithGradient(module)
    with torch.inference_mode():
        computed = derived.compute(*inputs)
        gradient = torch.randn_like(computed.output)
        pulled = derived.pull(computed, gradient)
    inputs = [value.requires_grad_() for value in inputs]
    output = module(*inputs)
    torch.testing.assert_close(computed.output.clone(), output.detach())
    for found, expected in zip(pulled, torch.autograd.grad(output, inputs, gradient.clone()), strict=True):
        torch.testing.assert_close(found.clone(), expected)


@pytest.mark.parametrize("unknown", [nn.Tanh(), nn.Conv2d(1, 1, 3, stride=2), nn.Conv2d(1, 1, 3, padding="same")])
def test_an_operation_without_a_rule_is_refused_by_name(unknown: nn.Module) -> None:
    def differentiate() -> None:
        derived = WithGradient(nn.Sequential(nn.ReLU(), unknown))
        computed = derived.compute(torch.zeros(1, 1, 8, 8))
        derived.pull(computed, computed.output)

    with pytest.raises(NoGradientError, match=type(unknown).__name__):
        differentiate()


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("coarse", [1, 2])
def test_a_pyramid_is_convolved_as_if_it_were_resized_first(kernel: int, coarse: int) -> None:
    torch.manual_seed(1)
    channels, sizes = [2, 3, 4], [(13, 10), (7, 5), (4, 1)]
    convolution = nn.Conv2d(9, 5, kernel, padding=kernel // 2).requires_grad_(False)
    pyramid = PyramidConvolution(convolution, channels, coarse)
    maps = [torch.randn(2, count, *size) for count, size in zip(channels, sizes, strict=True)]
    gradient = torch.randn(2, 5, *sizes[0])
    with torch.inference_mode():
        found, pulled = pyramid(*maps), pyramid.pull(gradient, *maps)
    maps = [value.requires_grad_() for value in maps]
    together = [nn.functional.interpolate(x, sizes[0], mode="bilinear", align_corners=True) for x in maps]
    expected = convolution(torch.cat(together, 1))
    torch.testing.assert_close(found.clone(), expected.detach(), rtol=0, atol=1e-5)
    for part, whole in zip(pulled, torch.autograd.grad(expected, maps, gradient), strict=True):
        torch.testing.assert_close(part.clone(), whole, rtol=0, atol=1e-4)


def test_a_resizing_keeps_the_corners() -> None:
    small, large = torch.randn(1, 1, 3, 4), torch.zeros(1, 1, 800, 799)
    found = resized(small, resizing(small, large))
    torch.testing.assert_close(found[..., [0, -1], :][..., [0, -1]], small[..., [0, -1], :][..., [0, -1]])


@pytest.mark.parametrize("name", FBRS)
def test_a_head_answers_with_the_gradient_of_autograd(name: str) -> None:
    network = seeded_network(name)
    exact, parts = divide(network), divide_for_serving(network)
    torch.manual_seed(2)
    height, width = 25, 33
    features = [
        torch.randn(2, channels, -(-height // 2**level), -(-width // 2**level)).relu()
        for level, channels in enumerate(parts.channels)
    ]
    evaluation = Evaluation.random(parts, size=SIZE, batch=2, seed=3)
    with torch.inference_mode():
        answer = dict(zip(Head.OUTPUTS, Head(parts)(*features, *evaluation.inputs()), strict=True))
        probabilities = nn.functional.interpolate(answer["LOGITS"], SIZE, mode="bilinear", align_corners=True).sigmoid()
    truth = autograd(exact, parts.joined(*features), evaluation)
    for what, expected in truth.items():
        found = answer[what].clone().double()
        # Where rounding opens a ReLU that is closed in the other, a whole pixel's share differs.
        assert (found - expected).norm() < 1e-2 * expected.norm(), what
    clicked = probabilities[torch.arange(2).unsqueeze(1), 0, evaluation.ys, evaluation.xs]
    for column, kind, wrong in ((0, evaluation.positive, 1 - clicked), (1, ~evaluation.positive, clicked)):
        worst = torch.where(kind, wrong, 0).amax(1)
        torch.testing.assert_close(answer["WORST"][:, column], worst, rtol=0, atol=1e-5)


def test_pixels_of_weight_zero_say_nothing() -> None:
    parts = divide_for_serving(seeded_network("fbrs_hrnet18"))
    features = [torch.rand(1, channels, 8 // 2**level, 8 // 2**level) for level, channels in enumerate(parts.channels)]
    scale, bias, pixels = Evaluation.random(parts, size=(32, 32), batch=1, seed=0).inputs()
    padded = torch.cat([pixels, torch.zeros(1, 7, 4)], 1)
    head = Head(parts)
    with torch.inference_mode():
        for found, expected in zip(
            head(*features, scale, bias, padded), head(*features, scale, bias, pixels), strict=True
        ):
            torch.testing.assert_close(found, expected)


class Tiny(nn.Module):
    """An encoder that reads an image and points."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, stride=4, padding=1)

    def forward(self, image: Tensor, points: Tensor) -> Tensor:
        features: Tensor = self.convolution(image.permute(0, 3, 1, 2) / 255 + points.mean((1, 2)).view(-1, 1, 1, 1))
        return features


def tiny() -> tuple[Parts, list[Request]]:
    torch.manual_seed(4)
    decoder = nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 1, 1))
    random = np.random.default_rng(5)
    image, points = random.integers(0, 256, (2, 40, 60, 3), dtype=np.uint8), random.random((2, 8, 3), dtype=np.float32)
    return Parts(Tiny().requires_grad_(False), decoder.requires_grad_(False), (4,)), [(image, points)]


def test_any_network_in_two_parts_can_be_exported_and_is_proven() -> None:
    parts, requests = tiny()
    graphs = export(parts, parts, requests)
    assert graphs.prompts == 2
    session = ort.InferenceSession(graphs.head, providers=["CPUExecutionProvider"])
    assert [(tensor.name, tensor.shape[1:]) for tensor in session.get_inputs()] == [
        ("FEATURES", [4, "features_height", "features_width"]),
        ("SCALE", [4]),
        ("BIAS", [4]),
        ("PIXELS", ["pixels", 4]),
    ]
    assert [tensor.name for tensor in session.get_outputs()] == list(Head.OUTPUTS)


def test_graphs_whose_gradient_is_wrong_are_not_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, requests = tiny()
    rule = gradients.BackwardConvolution.forward
    monkeypatch.setattr(gradients.BackwardConvolution, "forward", lambda *inputs: 1.1 * rule(*inputs))
    with pytest.raises(ExportError, match=r"the graphs' gradients differ from PyTorch's by 0\.2"):
        export(parts, parts, requests)


def test_graphs_of_another_network_are_not_let_through() -> None:
    parts, requests = tiny()
    exact, _ = tiny()
    assert isinstance(exact.encoder, Tiny)
    exact.encoder.convolution.weight *= 1.01
    with pytest.raises(ExportError, match=r"the graphs' features differ from PyTorch's by 0\.0"):
        export(parts, exact, requests)
