"""Graphs of the published networks: their contract, their sizes, both precisions, and what is not let through."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto
from torch import nn

from polywand_zoo.networks.ritm import Ritm
from polywand_zoo.onnx_export import ExportError
from polywand_zoo.published import export as published_export
from polywand_zoo.published.architectures import ARCHITECTURES
from polywand_zoo.published.export import Precision, build, export, interactor, random_request
from polywand_zoo.published.folding import fold

ANY = ["batch", "height", "width"]


@pytest.fixture(scope="module")
def untrained() -> Callable[[str], nn.Module]:
    """Make networks whose normalisations do something."""

    def make(name: str) -> nn.Module:
        torch.manual_seed(0)
        network = ARCHITECTURES[name]()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight.data, module.running_var):
                    tensor.uniform_(0.5, 1.5)
                for tensor in (module.bias.data, module.running_mean):
                    tensor.normal_(std=0.2)
        return network.eval()

    return make


@pytest.fixture(scope="module")
def smallest(untrained: Callable[[str], nn.Module]) -> nn.Module:
    return untrained("hrnet18s")


@pytest.fixture(scope="module", params=list(Precision))
def graph(request: pytest.FixtureRequest, smallest: nn.Module) -> bytes:
    """Return an hrnet18s in each precision."""
    return export(smallest, request.param).data


def test_a_network_of_any_size_has_the_contract_of_an_interactor(graph: bytes) -> None:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    tensors = [*session.get_inputs(), *session.get_outputs()]
    assert [(tensor.name, tensor.type, tensor.shape) for tensor in tensors] == [
        ("IMAGE", "tensor(uint8)", [*ANY, 3]),
        ("POINTS", "tensor(float)", ["batch", 64, 3]),
        ("PREV_MASK", "tensor(float)", ["batch", 1, *ANY[1:]]),
        ("LOGITS", "tensor(float)", ["batch", 1, *ANY[1:]]),
    ]


@pytest.mark.parametrize("name", ["dextr_resnet101", "iog_resnet101"])
def test_a_network_of_fixed_size_has_the_contract_of_an_interactor(
    name: str, untrained: Callable[[str], nn.Module]
) -> None:
    graph = onnx.load_from_string(build(untrained(name))).graph
    tensors = [(value.name, value.type.tensor_type) for value in [*graph.input, *graph.output]]
    assert [
        (name, tensor.elem_type, [axis.dim_param or axis.dim_value for axis in tensor.shape.dim])
        for name, tensor in tensors
    ] == [
        ("IMAGE", TensorProto.UINT8, ["batch", 512, 512, 3]),
        ("POINTS", TensorProto.FLOAT, ["batch", 8, 3]),
        ("LOGITS", TensorProto.FLOAT, ["batch", 1, 512, 512]),
    ]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (97, 131), (256, 40)])
def test_every_request_of_a_batch_is_answered_as_alone_at_any_size(
    graph: bytes, smallest: nn.Module, height: int, width: int
) -> None:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    wrapped = interactor(smallest)
    feeds = random_request(wrapped, seed=5, size=(height, width), batch=3).feeds(wrapped.INPUTS)
    (together,) = session.run(None, feeds)
    apart = [session.run(None, {name: array[item : item + 1] for name, array in feeds.items()})[0] for item in range(3)]
    assert together.shape == (3, 1, height, width)
    np.testing.assert_allclose(together, np.concatenate(apart), atol=1e-2 * together.std())


def test_padding_rows_say_nothing(graph: bytes, smallest: nn.Module) -> None:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    wrapped = interactor(smallest)
    feeds = random_request(wrapped, seed=6, size=(64, 96), batch=1).feeds(wrapped.INPUTS)
    feeds["POINTS"][0, 5:, 2] = -1
    (expected,) = session.run(None, feeds)
    feeds["POINTS"][0, 5:, :2] = np.random.default_rng(0).uniform(-1e6, 1e6, (59, 2))
    np.testing.assert_array_equal(session.run(None, feeds)[0], expected)


def test_half_precision_halves_the_file_and_keeps_what_must_be_exact(smallest: nn.Module) -> None:
    single, half = (build(smallest, precision) for precision in Precision)
    assert len(half) < 0.52 * len(single)
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(half), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert {types[name] for name in node.input} == {TensorProto.FLOAT16}
        if node.op_type in ("ScatterElements", "Softmax", "Floor"):  # the disks, and sums over a whole image
            assert types[node.output[0]] == TensorProto.FLOAT


@pytest.mark.parametrize("name", ["dextr_resnet101", "iog_resnet101", "hrnet18s", "fbrs_resnet34", "fbrs_resnet50"])
def test_folding_changes_nothing(name: str, untrained: Callable[[str], nn.Module]) -> None:
    network = untrained(name)
    folded = fold(network)
    left = [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    # Behind an activation (f-BRS), or behind a resizing in logits without a reader (IOG), one cannot be folded.
    assert len(left) == {"iog_resnet101": 4}.get(name, 1 if name.startswith("fbrs") else 0)
    wrapped, refolded = interactor(network), interactor(folded)
    inputs = random_request(wrapped, seed=1, size=wrapped.SIZE or (64, 96), batch=1).tensors(wrapped.INPUTS)
    with torch.inference_mode():
        expected = wrapped(*inputs)
        torch.testing.assert_close(refolded(*inputs), expected, rtol=0, atol=float(1e-4 * expected.std()))


def test_a_graph_is_the_same_each_time(smallest: nn.Module) -> None:
    assert build(smallest, source="here") == build(smallest, source="here")


def test_a_graph_that_differs_from_its_network_is_not_let_through(
    smallest: nn.Module, untrained: Callable[[str], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = untrained("hrnet18s")
    assert isinstance(other, Ritm)
    with torch.no_grad():
        other.feature_extractor.cls_head.weight *= 1.01
    wrong = build(other)
    monkeypatch.setattr(published_export, "build", lambda *_, **__: wrong)
    with pytest.raises(ExportError, match=r"the fp32 graph differs from PyTorch's network by .* deviations"):
        export(smallest)


def test_weights_too_large_for_half_precision_are_not_let_through(untrained: Callable[[str], nn.Module]) -> None:
    network = untrained("hrnet18s")
    assert isinstance(network, Ritm)
    network.feature_extractor.conv2.weight.data *= 1e7
    with pytest.raises(ExportError, match="the fp16 graph differs from PyTorch's network by nan deviations"):
        export(network, Precision.FP16)
