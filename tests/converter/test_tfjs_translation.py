"""TensorFlow.js graph models: what each operation becomes in ONNX, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tfjs_reference
from onnx import TensorProto
from tfjs_writer import GraphWriter

from polywand_zoo.onnx_graph import OnnxGraph
from polywand_zoo.tfjs import GraphModelError, Tensor, arrange, check_weights, natural, read_graph_model, translate

IMAGE_SHAPE = (3, 10, 14)  # not square, and no two axes alike
TO_NHWC, TO_NCHW = [0, 2, 3, 1], [0, 3, 1, 2]
WINDOW = {"padding": "VALID", "data_format": "NHWC"}


# A small model with every operation that NanoDet has.


def small_model() -> GraphWriter:
    """Return a graph from `image` [1, 3, 10, 14] to `scores` [1, 36, 4] and `distances` [1, 36, 3]."""
    random = np.random.default_rng(7)
    w = GraphWriter()
    w.constant("to_nhwc", TO_NHWC)
    w.constant("to_nchw", TO_NCHW)

    def convolution(name: str, source: str, kernel: tuple[int, ...], stride: int) -> str:
        """Add a convolution with a bias to an NHWC tensor."""
        w.constant(f"{name}/kernel", random.normal(0, 0.4, kernel))
        w.constant(f"{name}/bias", random.normal(0, 0.4, kernel[3]))
        w.node("Conv2D", name, source, f"{name}/kernel", strides=[1, stride, stride, 1], dilations=[1] * 4, **WINDOW)
        return w.node("Add", f"{name}/biased", name, f"{name}/bias")

    w.placeholder("image", (1, *IMAGE_SHAPE))
    w.constant("uneven", [[0, 0], [0, 0], [2, 1], [1, 2]])
    w.node("Pad", "padded", "image", "uneven")
    w.node("Transpose", "padded/nhwc", "padded", "to_nhwc")
    convolution("stem", "padded/nhwc", (3, 3, 3, 5), stride=2)
    w.node("Transpose", "stem/nchw", "stem/biased", "to_nchw")
    w.node("LeakyRelu", "stem/active", "stem/nchw", alpha=0.1)

    w.constant("around", [[0, 0], [0, 0], [1, 0], [0, 1]])
    w.constant("nothing", np.float32(-np.inf))
    w.node("PadV2", "fenced", "stem/active", "around", "nothing")
    w.node("Transpose", "fenced/nhwc", "fenced", "to_nhwc")
    w.node("MaxPool", "pooled", "fenced/nhwc", ksize=[1, 3, 3, 1], strides=[1, 2, 2, 1], **WINDOW)
    convolution("lateral", "pooled", (1, 1, 5, 5), stride=1)
    w.constant("size_up", [6, 8])
    w.node("ResizeBilinear", "up", "lateral/biased", "size_up", align_corners=False, half_pixel_centers=True)
    w.node("Transpose", "up/nchw", "up", "to_nchw")

    w.node("Add", "sum", "stem/active", "up/nchw")
    w.constant("channels", 1)
    w.node("ConcatV2", "joined", "sum", "stem/active", "channels")
    w.node("Transpose", "joined/nhwc", "joined", "to_nhwc")
    convolution("head", "joined/nhwc", (1, 1, 10, 7), stride=1)
    w.constant("size_final", [9, 4])  # enlarged by half, and halved
    w.node("ResizeBilinear", "final", "head/biased", "size_final", align_corners=False, half_pixel_centers=True)
    w.node("Transpose", "final/nchw", "final", "to_nchw")

    w.constant("parts", [4, 3])
    w.node("SplitV", "split", "final/nchw", "parts", "channels")
    w.node("Sigmoid", "probability", "split")
    w.constant("swap", [0, 2, 1])
    w.constant("no_indices", np.zeros((0, 1), int))
    w.constant("no_values", np.zeros(0, int))
    w.constant("rank", [3])
    w.constant("zero", 0)
    for name, source, channels in (("scores", "probability", 4), ("distances", "split:1", 3)):
        w.constant(f"{name}/target", [1, channels, -1])
        w.node("SparseToDense", f"{name}/copied", "no_indices", "rank", "no_values", "zero")
        w.node("AddV2", f"{name}/shape", f"{name}/target", f"{name}/copied")
        w.node("Reshape", f"{name}/flat", source, f"{name}/shape")
        w.node("Transpose", f"{name}/last", f"{name}/flat", "swap")
        w.node("Identity", name, f"{name}/last")
    return w


def converted(path: Path) -> onnx.ModelProto:
    """Convert a graph model with one input `image` and all its outputs as they are."""
    model = read_graph_model(path)
    graph = OnnxGraph()
    image = graph.input("image", TensorProto.FLOAT, IMAGE_SHAPE)
    outputs = translate(model, graph, {"image": Tensor.stored(image, (1, *IMAGE_SHAPE))})
    for name, tensor in outputs.items():
        stored = arrange(graph, tensor, natural(len(tensor.shape)))
        graph.output(f"{name}_out", stored.value, TensorProto.FLOAT, tensor.shape[1:])
    return graph.model("small")


def test_every_operation_computes_what_tensorflow_defines(tmp_path: Path) -> None:
    path = small_model().save(tmp_path, "scores", "distances")
    images = np.random.default_rng(1).normal(size=(3, *IMAGE_SHAPE)).astype(np.float32)

    session = ort.InferenceSession(converted(path).SerializeToString(), providers=["CPUExecutionProvider"])
    scores, distances = session.run(["scores_out", "distances_out"], {"image": images})

    for index in range(len(images)):
        expected = tfjs_reference.run(path, {"image": images[index : index + 1].astype(np.float64)})
        np.testing.assert_allclose(scores[index : index + 1], expected["scores"], atol=1e-5)
        np.testing.assert_allclose(distances[index : index + 1], expected["distances"], atol=1e-5)


def test_swaps_of_layout_and_paddings_leave_no_nodes(tmp_path: Path) -> None:
    model = converted(small_model().save(tmp_path, "scores", "distances"))
    operations = [node.op_type for node in model.graph.node]
    assert operations.count("Transpose") == 2  # one per output
    assert operations.count("Add") == 1  # biases are the convolutions' own
    assert "Pad" not in operations


def test_a_changed_weight_is_noticed(tmp_path: Path) -> None:
    path = small_model().save(tmp_path, "scores", "distances")
    model = converted(path)
    assert check_weights(read_graph_model(path), model) == 6

    kernel = next(tensor for tensor in model.graph.initializer if tensor.name == "head/kernel")
    kernel.raw_data = bytes([kernel.raw_data[0] ^ 1]) + kernel.raw_data[1:]
    with pytest.raises(GraphModelError, match="weight 'head/kernel' differs"):
        check_weights(read_graph_model(path), model)


# What is refused.


def refused(tmp_path: Path, op: str, *inputs: str, reason: str, **attributes: Any) -> None:
    """Check that a graph with this node after `image` and some constants is refused with a reason."""
    w = GraphWriter()
    w.placeholder("image", (1, *IMAGE_SHAPE))
    w.constant("kernel", np.ones((3, 3, 14, 2)))
    w.constant("order", [1, 0, 2, 3])
    w.constant("batch", 0)
    w.constant("ones", np.ones(14))
    w.constant("border", [[0, 0], [1, 1], [1, 1], [0, 0]])
    w.node("Pad", "padded", "image", "border")
    w.node(op, "culprit", *inputs, **attributes)
    with pytest.raises(GraphModelError, match=f"{op} 'culprit': .*{reason}"):
        converted(w.save(tmp_path, "culprit"))


def test_an_unknown_operation_is_refused_by_its_name(tmp_path: Path) -> None:
    refused(tmp_path, "Softplus", "image", reason="this operation is not supported")


def test_what_an_operation_may_mean_beyond_nanodet_is_refused(tmp_path: Path) -> None:
    steps: dict[str, Any] = {"strides": [1] * 4, "dilations": [1] * 4}
    valid: dict[str, Any] = steps | WINDOW
    refused(tmp_path, "Conv2D", "image", "kernel", reason="only VALID", **valid | {"padding": "SAME"})
    refused(tmp_path, "Conv2D", "image", "kernel", reason="dilation", **valid | {"dilations": [1, 2, 2, 1]})
    refused(tmp_path, "Conv2D", "image", "image", reason="'image', which must be a constant", **valid)
    refused(tmp_path, "MaxPool", "padded", reason="padding that is not -inf", ksize=[1, 3, 3, 1], **valid)
    refused(tmp_path, "Sigmoid", "padded", reason="in front of a convolution")
    refused(tmp_path, "Transpose", "image", "order", reason="moves the batch axis")
    refused(tmp_path, "ConcatV2", "image", "image", "batch", reason="along the batch axis")
    refused(tmp_path, "Add", "image", "ones", reason="only as the bias")
    refused(tmp_path, "AddV2", "image", "ones", reason="'image' is not a constant")
    refused(tmp_path, "Sigmoid", "later", reason="'later', which no node before it computes")


@pytest.mark.parametrize("change", [-2, 2], ids=["too short", "too long"])
def test_a_weight_file_of_another_size_is_refused(tmp_path: Path, change: int) -> None:
    path = small_model().save(tmp_path, "scores", "distances")
    weights = tmp_path / "weights.bin"
    size = weights.stat().st_size
    weights.write_bytes((weights.read_bytes() + b"xx")[: size + change])
    with pytest.raises(GraphModelError, match=rf"weights.bin should hold {size} bytes of weights, but holds"):
        read_graph_model(path)
