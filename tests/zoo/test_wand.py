"""The wand: the model in the repository, the maps it draws, its checkpoints, and the command that exports them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import openvino
import pytest
import skimage.data
import torch
from click.testing import CliRunner
from google.protobuf import text_format
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn
from tritonclient.grpc import model_config_pb2

from polywand_zoo.cli import main
from polywand_zoo.onnx_export import trace
from polywand_zoo.points import Label
from polywand_zoo.refinement.config import SETTINGS
from polywand_zoo.wand import export as wand_export
from polywand_zoo.wand.checkpoint import UNUSED, CheckpointError, experiment_name, load_network
from polywand_zoo.wand.export import INPUTS, MAX_POINTS, REFINED, Export, export, random_request, write
from polywand_zoo.wand.folding import fold_batch_norms
from polywand_zoo.wand.network import DISK_RADIUS, INPUT_SIZE, WandNetwork
from polywand_zoo.wand.prompts import MAP_NAMES, PromptMaps
from polywand_zoo.wand.weights import load, mean
from tests.running import WAND_VERSION, WAND_VERSIONS

MODEL_FOLDER = Path(__file__).parents[2] / "model_repository" / "wand"
CHECKPOINT = os.environ.get("POLYWAND_WAND_CHECKPOINT")

needs_checkpoint = pytest.mark.skipif(
    CHECKPOINT is None,
    reason="NOT RUN: set POLYWAND_WAND_CHECKPOINT to the checkpoint that wand was exported from",
)

POSITIVE, NEGATIVE, EXTREME, BOX, PREVIOUS = range(len(MAP_NAMES))

Points = NDArray[np.float32]
Maps = NDArray[np.float32]


def prompt(*rows: tuple[float, float, int]) -> Points:
    """Return POINTS [1, 64, 3] of these rows, padded."""
    points = np.full((1, MAX_POINTS, 3), Label.PADDING, np.float32)
    points[0, : len(rows)] = np.array(rows, np.float32).reshape(-1, 3)
    return points


# The model in the repository.


def model_file(version: int) -> Path:
    return MODEL_FOLDER / str(version) / "model.onnx"


@pytest.fixture(scope="module", params=WAND_VERSIONS)
def wand(request: pytest.FixtureRequest) -> ort.InferenceSession:
    return ort.InferenceSession(str(model_file(request.param)), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def config() -> Any:
    text = (MODEL_FOLDER / "config.pbtxt").read_text(encoding="ascii")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.fixture(scope="module")
def cup() -> NDArray[np.uint8]:
    """Return a photo of a cup of coffee [1, 384, 384, 3], RGB."""
    return cv2.resize(skimage.data.coffee()[:, 60:460], (INPUT_SIZE, INPUT_SIZE), interpolation=cv2.INTER_AREA)[None]


def segment(wand: ort.InferenceSession, image: NDArray[np.uint8], points: Points, previous: Maps | None = None) -> Maps:
    """Return probabilities [B, 1, 384, 384]."""
    if previous is None:
        previous = np.zeros((len(image), 1, INPUT_SIZE, INPUT_SIZE), np.float32)
    (logits,) = wand.run(["LOGITS"], dict(zip(INPUTS, (image, points, previous), strict=True)))
    probabilities: Maps = 1 / (1 + np.exp(-logits))
    return probabilities


def test_wand_has_the_contract_of_an_interactor(wand: ort.InferenceSession) -> None:
    tensors = [*wand.get_inputs(), *wand.get_outputs()]
    assert [(tensor.name, tensor.type, tensor.shape) for tensor in tensors] == [
        ("IMAGE", "tensor(uint8)", ["batch", 384, 384, 3]),
        ("POINTS", "tensor(float)", ["batch", 64, 3]),
        ("PREV_MASK", "tensor(float)", ["batch", 1, 384, 384]),
        ("LOGITS", "tensor(float)", ["batch", 1, 384, 384]),
        ("FEATURES_0", "tensor(float)", ["batch", 96, 48, 48]),
        ("FEATURES_1", "tensor(float)", ["batch", 1, 48, 48]),
        ("FEATURES_2", "tensor(float)", ["batch", 1, 384, 384]),
    ]


def test_the_config_describes_the_tensors_of_the_model(wand: ort.InferenceSession, config: Any) -> None:
    types = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}
    tensors = [*wand.get_inputs(), *wand.get_outputs()]
    described = [
        (tensor.name, model_config_pb2.DataType.Name(tensor.data_type), ["batch", *tensor.dims])
        for tensor in [*config.input, *config.output]
    ]
    assert described == [(tensor.name, types[tensor.type], tensor.shape) for tensor in tensors]


def test_the_config_says_what_the_service_must_know(config: Any) -> None:
    tools = json.loads(config.parameters["polywand"].string_value)["tools"]
    assert config.backend == "onnxruntime"
    assert config.optimization.execution_accelerators.cpu_execution_accelerator[0].name == "openvino"
    assert all((tool["kind"], tool["license"]) == ("interactor", "Apache-2.0") for tool in tools.values())
    assert all(tool["crop"]["policy"] == "zoom_in" for tool in tools.values())
    assert {name: tuple(tool["prompt"].values()) for name, tool in tools.items()} == {
        "wand_click": (1, 0, 0, "optional"),
        "wand_extreme": (0, 0, 4, "none"),
        "wand_box": (0, 0, 0, "required"),
    }


@pytest.mark.parametrize("version", WAND_VERSIONS)
def test_the_model_stores_its_weights_in_half_precision_and_knows_no_batch_normalisation(version: int) -> None:
    graph = onnx.load(model_file(version)).graph
    large = [tensor for tensor in graph.initializer if np.prod(tensor.dims) > 1000]
    assert {tensor.data_type for tensor in large} == {onnx.TensorProto.FLOAT16}
    assert "BatchNormalization" not in {node.op_type for node in graph.node}


def test_all_weights_of_wand_are_less_than_20_megabytes() -> None:
    files = [path for path in MODEL_FOLDER.parent.glob("wand*/*/model.onnx") if path.parent.name.isdecimal()]
    assert {path.parent.parent.name for path in files} == {"wand", "wand_brs_head"}
    assert sum(path.stat().st_size for path in files) < 20e6


def test_each_version_of_wand_brs_has_the_code_that_the_exporter_writes(tmp_path: Path) -> None:
    shipped = MODEL_FOLDER.parent / REFINED
    shutil.copytree(shipped, tmp_path / REFINED, ignore=shutil.ignore_patterns("model.py", "__pycache__"))
    versions = [int(path.parent.name) for path in shipped.glob("*/model.py")]
    assert set(versions) >= set(WAND_VERSIONS)
    for version in versions:
        write(Export(b"", b"", 0.0, 0.0, 0.0), tmp_path, version)
        path = Path(REFINED) / str(version) / "model.py"
        assert (tmp_path / path).read_bytes() == (shipped.parent / path).read_bytes()


def test_a_click_finds_the_cup_and_a_negative_click_takes_its_saucer_away(
    wand: ort.InferenceSession, cup: NDArray[np.uint8]
) -> None:
    coffee, saucer, table = (190, 125), (150, 300), (20, 20)
    alone = segment(wand, cup, prompt((*coffee, Label.POSITIVE)))[0, 0]
    assert alone[coffee[::-1]] > 0.5 > alone[table[::-1]]

    both = segment(wand, cup, prompt((*coffee, Label.POSITIVE), (*saucer, Label.POSITIVE)))[0, 0]
    without = segment(wand, cup, prompt((*coffee, Label.POSITIVE), (*saucer, Label.NEGATIVE)), both[None, None])[0, 0]
    assert both[saucer[::-1]] > 0.5 > without[saucer[::-1]]
    assert without[coffee[::-1]] > 0.5


def test_two_requests_in_a_batch_are_answered_as_each_alone(wand: ort.InferenceSession) -> None:
    request = random_request(seed=7)
    together = segment(wand, *request.arrays())
    apart = [segment(wand, *(array[item : item + 1] for array in request.arrays())) for item in range(2)]
    np.testing.assert_allclose(together, np.concatenate(apart), atol=1e-5)


def test_padding_rows_say_nothing(wand: ort.InferenceSession, cup: NDArray[np.uint8]) -> None:
    clicked = prompt((190, 125, Label.POSITIVE))
    scattered = clicked.copy()
    scattered[0, 1:, :2] = np.random.default_rng(0).uniform(-1e6, 1e6, (MAX_POINTS - 1, 2))
    np.testing.assert_array_equal(segment(wand, cup, clicked), segment(wand, cup, scattered))


# The maps it draws, in every runtime that the service uses.


class DrawnMaps(nn.Module):
    """Prompt maps behind a convolution that changes nothing: only in front of one does OpenVINO compute in bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = PromptMaps(INPUT_SIZE, DISK_RADIUS)
        self.same = nn.Conv2d(len(MAP_NAMES), len(MAP_NAMES), 1, bias=False)
        self.same.weight.data = torch.eye(len(MAP_NAMES)).view(len(MAP_NAMES), len(MAP_NAMES), 1, 1)

    def forward(self, points: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.same(self.maps(points, previous))
        return maps


@pytest.fixture(scope="module", params=["PyTorch", "ONNX Runtime", "OpenVINO f32", "OpenVINO bf16"])
def draw(request: pytest.FixtureRequest) -> Callable[[Points], Maps]:
    """Draw POINTS [B, 64, 3] into maps [B, 5, 384, 384] of 0 and 1, all ones for the previous mask."""
    module = DrawnMaps().eval()

    def previous(points: Points) -> Maps:
        return np.ones((len(points), 1, INPUT_SIZE, INPUT_SIZE), np.float32)

    def draw_torch(points: Points) -> Maps:
        with torch.inference_mode():
            maps: Maps = module(torch.from_numpy(points), torch.from_numpy(previous(points))).numpy()
            return maps

    if request.param == "PyTorch":
        return draw_torch
    example = prompt((1, 2, Label.POSITIVE))
    inputs = (torch.from_numpy(example), torch.from_numpy(previous(example)))
    model = trace(module, inputs, INPUTS[1:], "MAPS").SerializeToString()
    if request.param == "ONNX Runtime":
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        return lambda points: session.run(None, {"POINTS": points, "PREV_MASK": previous(points)})[0]
    precision = request.param.removeprefix("OpenVINO ")
    compiled = openvino.Core().compile_model(
        openvino.Core().read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": precision}
    )
    return lambda points: compiled([points, previous(points)])[0]


def opencv_disks(points: Points, label: Label) -> Maps:
    """Draw the disks of a label among POINTS [1, 64, 3] as in training: [384, 384] of 0 and 1."""
    drawn = np.zeros((INPUT_SIZE, INPUT_SIZE), np.uint8)
    for x, y, is_label in points[0].astype(np.float64):
        if is_label == label:
            cv2.circle(drawn, (int(np.floor(x + 0.5)), int(np.floor(y + 0.5))), DISK_RADIUS, 1, -1)
    return drawn.astype(np.float32)


def random_clicks(seed: int) -> Points:
    """Return POINTS [1, 64, 3] of which many lie near or beyond the border, between pixels, or twice."""
    random = np.random.default_rng(seed)
    points = prompt()
    points[0, :, :2] = random.uniform(-20, INPUT_SIZE + 20, (MAX_POINTS, 2))
    points[0, 20:40, :2] = np.round(points[0, 20:40, :2] * 2) / 2  # on pixel centres and between two pixels
    points[0, 40:50, 0] = random.choice([-7, -6.5, -0.5, 0, 383, 383.49, 383.5, 389.5, 390], 10)
    points[0, 50:60] = points[0, 10:20]
    points[0, :, 2] = random.choice([Label.PADDING, Label.NEGATIVE, Label.POSITIVE, Label.EXTREME], MAX_POINTS)
    return points


def test_disks_are_opencvs_pixel_for_pixel(draw: Callable[[Points], Maps]) -> None:
    for seed in range(10):
        points = random_clicks(seed)
        maps = draw(points)[0]
        for channel, label in ((POSITIVE, Label.POSITIVE), (NEGATIVE, Label.NEGATIVE), (EXTREME, Label.EXTREME)):
            np.testing.assert_array_equal(maps[channel], opencv_disks(points, label))
        assert maps[PREVIOUS].all()


def test_extreme_points_bring_the_box_around_them_and_clicks_bring_none(draw: Callable[[Points], Maps]) -> None:
    extremes = [
        (100, 200, Label.EXTREME),
        (180, 80, Label.EXTREME),
        (300, 210, Label.EXTREME),
        (190, 330, Label.EXTREME),
    ]
    corners = (100, 80, Label.BOX_TOP_LEFT), (300, 330, Label.BOX_BOTTOM_RIGHT)
    np.testing.assert_array_equal(draw(prompt(*extremes))[0, BOX], draw(prompt(*corners))[0, BOX])
    clicks = random_clicks(seed=0)
    clicks[0, clicks[0, :, 2] == Label.EXTREME, 2] = Label.POSITIVE
    assert not draw(clicks)[0, BOX].any()


@pytest.mark.parametrize("step", [1, 0.5, 0.25, 1.37])
def test_boxes_are_filled_between_edges_rounded_as_python_rounds(draw: Callable[[Points], Maps], step: float) -> None:
    random = np.random.default_rng(0)
    for _ in range(10):
        edges = np.sort(np.round(random.uniform(-10, INPUT_SIZE + 10, (2, 2)) / step) * step, axis=0) + 0.5
        corners = (edges - 0.5).astype(np.float32)  # from pixel edges to the contract's pixel centres
        (left, top), (right, bottom) = (
            [min(max(round(float(value)), 0), INPUT_SIZE) for value in corner]
            for corner in corners.astype(np.float64) + 0.5
        )
        expected = np.zeros((INPUT_SIZE, INPUT_SIZE), np.float32)
        expected[top:bottom, left:right] = 1
        rows = [(*corners[1], Label.BOX_BOTTOM_RIGHT), (9, 9, Label.POSITIVE), (*corners[0], Label.BOX_TOP_LEFT)]
        np.testing.assert_array_equal(draw(prompt(*rows))[0, BOX], expected)


def test_a_box_needs_both_corners(draw: Callable[[Points], Maps]) -> None:
    for label in (Label.BOX_TOP_LEFT, Label.BOX_BOTTOM_RIGHT):
        assert not draw(prompt((100, 100, label)))[0, :PREVIOUS].any()


def test_items_of_a_batch_are_drawn_apart(draw: Callable[[Points], Maps]) -> None:
    points = np.concatenate([random_clicks(seed) for seed in range(3)])
    np.testing.assert_array_equal(draw(points), np.concatenate([draw(item[None]) for item in points]))


# Its checkpoints and their export.


@pytest.fixture(scope="module")
def network() -> WandNetwork:
    """Return an untrained network whose normalisations do something."""
    torch.manual_seed(0)
    network = WandNetwork()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.2)
    return network.eval()


@pytest.fixture
def weights(network: WandNetwork) -> dict[str, torch.Tensor]:
    """Return the untrained network's weights as the experiment would have saved them."""
    theirs = {experiment_name(name): tensor for name, tensor in network.state_dict().items()}
    theirs["enc.convs.0.weight"] = theirs["enc.convs.0.weight"].flip(1)
    theirs |= {name: torch.zeros(1) for name in UNUSED}
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in theirs.items()}


def save(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    torch.save({"ema": weights, "step": 1}, folder / "checkpoint.pt")
    return folder / "checkpoint.pt"


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the export: for tests of where the command writes, not of what."""
    monkeypatch.setattr(wand_export, "export", lambda *_: Export(b"a network", b"a head", 0.0, 0.0, 0.0))


def test_a_checkpoint_loads_whole(network: WandNetwork, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    loaded = load_network(save(tmp_path, weights)).state_dict()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(loaded[name], tensor, rtol=1e-3, atol=1e-6)


def test_a_checkpoint_of_another_network_is_refused_by_name(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    weights["dec.p32.0.weight"] = weights.pop("dec.p16.0.weight")
    weights["dec.out.bias"] = torch.zeros(2)
    with pytest.raises(CheckpointError) as refused:
        load_network(save(tmp_path, weights))
    assert str(refused.value) == (
        "missing: dec.p16.0.weight; left over: dec.p32.0.weight; of another shape: dec.out.bias [2], expected [1]"
    )


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.pt").write_bytes(b"\x89PNG and so on")
    with pytest.raises(CheckpointError, match="not a PyTorch checkpoint"):
        load_network(tmp_path / "photo.pt")
    torch.save({"network": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no averaged weights"):
        load_network(tmp_path / "other.pt")


def test_folding_the_normalisations_changes_nothing(network: WandNetwork) -> None:
    random = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 128, 128, generator=random) * 255
    maps = torch.rand(1, len(MAP_NAMES), 128, 128, generator=random)
    folded = fold_batch_norms(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.inference_mode():
        torch.testing.assert_close(folded(image, maps), network(image, maps), rtol=1e-4, atol=1e-4)


def test_an_export_is_verified_and_can_be_repeated_byte_for_byte(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    checkpoint = save(tmp_path, weights)
    arguments = ["export-wand", "--checkpoint", str(checkpoint), "--repository", str(tmp_path), "--version", "3"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    written = tmp_path / "wand" / "3" / "model.onnx"
    assert f"{written}: {written.stat().st_size} bytes" in result.output

    assert written.read_bytes() == export(checkpoint).network


def test_an_export_that_fails_leaves_the_old_file(
    weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "models" / "wand" / "1" / "model.onnx"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"the old one")
    monkeypatch.setattr(wand_export, "GRAPH_TOLERANCE", -1.0)
    arguments = ["export-wand", "--checkpoint", str(save(tmp_path, weights)), "--repository", str(tmp_path / "models")]
    result = CliRunner().invoke(main, [*arguments, "--version", "1", "--replace"])
    assert result.exit_code == 1
    assert "differs from PyTorch's" in result.output
    assert target.read_bytes() == b"the old one"
    assert [path.name for path in target.parent.iterdir()] == ["model.onnx"]


@pytest.mark.usefixtures("quick_export")
def test_an_export_becomes_the_next_version_and_replaces_none_unasked(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    for version in ("1", "2", "03"):  # the third was rolled back
        (tmp_path / "wand" / version).mkdir(parents=True)
        (tmp_path / "wand" / version / "model.onnx").write_bytes(b"as it was")
    arguments = ["export-wand", "--checkpoint", str(save(tmp_path, weights)), "--repository", str(tmp_path)]

    def refused(*more: str) -> str:
        result = CliRunner().invoke(main, [*arguments, *more])
        assert result.exit_code != 0
        return result.output

    assert "there is a version 2 already" in refused("--version", "2")
    assert "version 3 was taken out of service" in refused("--version", "3")
    assert "version 3 was taken out of service" in refused("--version", "3", "--replace")
    assert "--replace needs --version" in refused("--replace")
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert (tmp_path / "wand" / "4" / "model.onnx").is_file()
    assert CliRunner().invoke(main, [*arguments, "--version", "2", "--replace"]).exit_code == 0
    as_before = {
        name: (tmp_path / "wand" / name / "model.onnx").read_bytes() == b"as it was" for name in ("1", "2", "03")
    }
    assert as_before == {"1": True, "2": False, "03": True}


def test_the_command_says_what_is_wrong_with_a_checkpoint(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    del weights["dec.out.weight"]
    checkpoint = save(tmp_path, weights)
    result = CliRunner().invoke(
        main, ["export-wand", "--checkpoint", str(checkpoint), "--repository", str(tmp_path / "models")]
    )
    assert result.exit_code == 1
    assert result.output == "Error: missing: dec.out.weight\n"
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("version", WAND_VERSIONS)
def test_a_model_can_be_read_back_to_be_trained_further(version: int) -> None:
    network = load(model_file(version))
    request = random_request(seed=12)
    with torch.inference_mode():
        expected = wand_export.Interactor(network).eval()(*request.tensors())[0].sigmoid().numpy()
    session = ort.InferenceSession(str(model_file(version)), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(segment(session, *request.arrays()), expected, atol=1e-4)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    # Training would give those of 0 the statistics of its first images.
    assert all(module.num_batches_tracked for module in norms)


@pytest.mark.parametrize("version", WAND_VERSIONS)
def test_the_head_of_wand_brs_is_of_the_same_weights(version: int) -> None:
    head = onnx.load(MODEL_FOLDER.parent / "wand_brs_head" / str(version) / "model.onnx")
    stored = [numpy_helper.to_array(tensor) for tensor in head.graph.initializer if tensor.dims == [1, 96, 1, 1]]
    assert len(stored) == 1
    np.testing.assert_array_equal(stored[0], load(model_file(version)).decoder.auxiliary.weight.detach().numpy())


def test_wand_brs_is_set_up_as_wand_click_and_as_f_brs() -> None:
    def parameters(model: str) -> dict[str, str]:
        text = (MODEL_FOLDER.parent / model / "config.pbtxt").read_text(encoding="ascii")
        parsed = text_format.Parse(text, model_config_pb2.ModelConfig())
        return {key: value.string_value for key, value in parsed.parameters.items()}

    refined, clicked = parameters("wand_brs"), json.loads(parameters("wand")["polywand"])["tools"]["wand_click"]
    own = json.loads(refined["polywand"])
    names = {"display_name", "help_message", "weights_source"}
    assert {key: own[key] for key in own.keys() - names} == {key: clicked[key] for key in clicked.keys() - names}
    different = {key for key, value in SETTINGS.items() if refined[key] != value}
    assert different == {"net_clicks_limit", "refine_after_clicks"}


@pytest.mark.usefixtures("quick_export")
def test_an_export_adds_a_version_of_wand_brs_where_that_is(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    for name in ("wand_brs", "wand_brs_head"):
        (tmp_path / name).mkdir()
        shutil.copy(MODEL_FOLDER.parent / name / "config.pbtxt", tmp_path / name)
    arguments = ["export-wand", "--checkpoint", str(save(tmp_path, weights)), "--repository", str(tmp_path)]
    result = CliRunner().invoke(main, [*arguments, "--version", "7"])
    assert result.exit_code == 0, result.output
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/7/*"))
    assert files == ["wand/7/model.onnx", "wand_brs/7/model.py", "wand_brs_head/7/model.onnx"]
    assert all(f"{tmp_path / file}: " in result.output for file in files)


def test_the_mean_of_weights_lies_between_them_and_needs_one_generation(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save(tmp_path, weights)
    (tmp_path / "checkpoint.pt").rename(tmp_path / "other.pt")
    paths = [model_file(1), tmp_path / "other.pt"]
    first, second, middle = load(paths[0]), load(paths[1]), mean(paths)
    bias = "decoder.output.bias"
    expected = (first.state_dict()[bias] + second.state_dict()[bias]) / 2
    torch.testing.assert_close(middle.state_dict()[bias], expected)
    assert not torch.equal(first.state_dict()[bias], expected)
    with pytest.raises(CheckpointError, match="different generations"):
        mean([model_file(1), model_file(WAND_VERSION)])


def test_a_graph_of_something_else_is_refused_by_what_it_lacks() -> None:
    with pytest.raises(CheckpointError, match="no graph of this network: backbone"):
        load(MODEL_FOLDER.parent / "nanodet" / "1" / "model.onnx")


@needs_checkpoint
def test_the_experiments_checkpoint_gives_version_1(tmp_path: Path) -> None:
    assert CHECKPOINT is not None
    (tmp_path / "model.onnx").write_bytes(export(Path(CHECKPOINT)).network)
    exported, committed = onnx.load(tmp_path / "model.onnx"), onnx.load(model_file(1))
    if exported.producer_version == committed.producer_version:
        assert (tmp_path / "model.onnx").read_bytes() == model_file(1).read_bytes()
        return
    # Another release of PyTorch may name and order the nodes otherwise.
    request = random_request(seed=11)
    exported_answer, committed_answer = (
        segment(ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]), *request.arrays())
        for path in (tmp_path / "model.onnx", model_file(1))
    )
    np.testing.assert_allclose(exported_answer, committed_answer, atol=1e-4)
