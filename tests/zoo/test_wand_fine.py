"""The second generation of the wand: the maps it draws in every runtime, and how it grows out of the first."""

import importlib
import sys
import types
from collections.abc import Callable
from typing import TypeVar

import cv2
import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polywand_zoo.points import Label
from polywand_zoo.wand.export import INPUTS, MAX_POINTS, Interactor, build, random_request
from polywand_zoo.wand.fine import FineNetwork, grow
from polywand_zoo.wand.folding import fold_batch_norms, round_weights
from polywand_zoo.wand.network import DISK_RADIUS, INPUT_SIZE, WandNetwork
from polywand_zoo.wand.obedience import Obedience
from polywand_zoo.wand.prompts import FINE_MAP_NAMES, MAP_NAMES, FinePromptMaps
from polywand_zoo.wand.training import prompts
from polywand_zoo.wand.training.prompts import BOX, DIAMOND, PREVIOUS, Prompt
from tests.zoo.runtimes import RUNTIMES, BeforeConvolution, Run, runner

Points = NDArray[np.float32]
Network = TypeVar("Network", bound=nn.Module)


def random_prompt(seed: int) -> Prompt:
    """Make up some clicks, with a box or with extreme points every now and then, anywhere."""
    random = np.random.default_rng(seed)
    positions = random.integers(0, INPUT_SIZE, (5, 2))
    prompt = Prompt([(int(x), int(y), bool(random.integers(2))) for x, y in positions])
    if seed % 3 == 1:
        prompt.extremes = [(int(x), int(y)) for x, y in random.integers(0, INPUT_SIZE, (4, 2))]
    elif seed % 3 == 2:
        (left, top), (right, bottom) = np.sort(random.uniform(-5, INPUT_SIZE + 5, (2, 2)), axis=0).tolist()
        prompt.box = (left, top, right, bottom)
    return prompt


def rows(prompt: Prompt, seed: int = 0) -> Points:
    """Return a prompt as POINTS [1, 64, 3], in any order."""
    points = np.full((1, MAX_POINTS, 3), Label.PADDING, np.float32)
    found = [(x, y, Label.POSITIVE if positive else Label.NEGATIVE) for x, y, positive in prompt.clicks]
    found += [(x, y, Label.EXTREME) for x, y in prompt.extremes]
    if prompt.box is not None:
        left, top, right, bottom = (edge - 0.5 for edge in prompt.box)
        found += [(left, top, Label.BOX_TOP_LEFT), (right, bottom, Label.BOX_BOTTOM_RIGHT)]
    points[0, : len(found)] = found
    return points[:, np.random.default_rng(seed).permutation(MAX_POINTS)]


@pytest.fixture(scope="module", params=RUNTIMES)
def drawing(request: pytest.FixtureRequest) -> tuple[str, Run]:
    module = BeforeConvolution(FinePromptMaps(INPUT_SIZE, DISK_RADIUS), len(FINE_MAP_NAMES)).eval()
    example = (rows(random_prompt(1)), np.zeros((1, 1, INPUT_SIZE, INPUT_SIZE), np.float32))
    return request.param, runner(request.param, module, example)


def test_maps_are_those_of_the_training(drawing: tuple[str, Run]) -> None:
    runtime, draw = drawing
    made_up = [random_prompt(seed) for seed in range(12)]
    points = np.concatenate([rows(prompt, seed) for seed, prompt in enumerate(made_up)])
    maps = draw(points, np.ones((len(points), 1, INPUT_SIZE, INPUT_SIZE), np.float32))
    trained = np.stack([prompts.draw(prompt, INPUT_SIZE) for prompt in made_up]) / np.float32(255)
    np.testing.assert_array_equal(maps[:, :PREVIOUS], trained[:, :PREVIOUS])
    assert (maps[:, PREVIOUS] == 1).all()
    off = np.abs(maps[:, DIAMOND] - trained[:, DIAMOND])
    # Training draws in 256 levels; bfloat16 holds a coordinate to a pixel or two of a ramp of 24.
    assert off.max() < (0.15 if runtime == "OpenVINO bf16" else 0.0025)
    assert off.mean() < 1e-3


def test_extreme_points_bring_a_box_and_a_diamond(drawing: tuple[str, Run]) -> None:
    _, draw = drawing
    prompt = Prompt(extremes=[(100, 200), (180, 80), (300, 210), (190, 330)])
    (maps,) = draw(rows(prompt), np.zeros((1, 1, INPUT_SIZE, INPUT_SIZE), np.float32))
    assert maps[BOX].sum() == pytest.approx(200 * 250)
    assert maps[BOX, 100, 120] == 1
    assert maps[DIAMOND, 200, 200] == 1  # in the middle
    assert maps[DIAMOND, 100, 120] == 0  # in a corner of the box
    (clicked,) = draw(rows(random_prompt(0)), np.zeros((1, 1, INPUT_SIZE, INPUT_SIZE), np.float32))
    assert not clicked[BOX].any()
    assert not clicked[DIAMOND].any()


@pytest.fixture(scope="module")
def first() -> WandNetwork:
    """Return an untrained network of the first generation."""
    torch.manual_seed(1)
    return _shaken(WandNetwork())


@pytest.fixture(scope="module")
def fine(first: WandNetwork) -> FineNetwork:
    """Return a network of the second generation whose new parts do something."""
    torch.manual_seed(2)
    network = grow(first)
    for module in (network.fine.correct, network.decoder.context[-1].attention.project):
        nn.init.normal_(module.weight, std=0.1)
    return _shaken(network)


def _shaken(network: Network) -> Network:
    """Let the normalisations do something."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.2)
    return network.eval()


def test_it_begins_as_what_it_grew_out_of(first: WandNetwork) -> None:
    grown = grow(first).eval()
    image, maps = torch.rand(2, 3, 128, 128) * 255, torch.rand(2, len(FINE_MAP_NAMES), 128, 128)
    with torch.inference_mode():
        torch.testing.assert_close(grown(image, maps), first(image, maps[:, : len(MAP_NAMES)]))


def test_folding_its_normalisations_changes_nothing(fine: FineNetwork) -> None:
    image, maps = torch.rand(1, 3, 128, 128) * 255, torch.rand(1, len(FINE_MAP_NAMES), 128, 128)
    folded = fold_batch_norms(fine)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.inference_mode():
        torch.testing.assert_close(folded(image, maps), fine(image, maps), rtol=1e-4, atol=1e-4)


def test_the_parts_of_an_image_and_of_a_prompt_can_be_run_apart(fine: FineNetwork) -> None:
    image, maps = torch.rand(1, 3, 128, 128) * 255, torch.rand(1, len(FINE_MAP_NAMES), 128, 128)
    with torch.inference_mode():
        features, prompt = fine.encode(image), fine.read(maps)
        found = fine.coarse(features, prompt)
        assert found.shape == (1, 96, 16, 16)
        torch.testing.assert_close(fine.sharpen(found, features, prompt), fine(image, maps))


def test_its_graph_answers_in_the_services_runtime_as_in_pytorch(fine: FineNetwork) -> None:
    rounded = round_weights(fold_batch_norms(fine))
    graph, _ = build(rounded)
    model = openvino.Core().read_model(graph)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = random_request(seed=4)
    answers = compiled(list(request.arrays()))
    with torch.inference_mode():
        expected = Interactor(rounded).eval()(*request.tensors())
    for found, tensor in zip(answers.values(), expected, strict=True):
        np.testing.assert_allclose(found, tensor.numpy(), atol=2e-3, rtol=1e-3)


# Obedience.


class Obeyed(nn.Module):
    """Obedience behind a convolution that changes nothing: only there does OpenVINO compute in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(1, 1, 1, bias=False)
        self.same.weight.data.fill_(1.0)
        self.obey = Obedience(INPUT_SIZE)

    def forward(self, logits: Tensor, points: Tensor) -> Tensor:
        obeyed: Tensor = self.obey(self.same(logits), points)
        return obeyed


@pytest.fixture(scope="module", params=RUNTIMES)
def obey(request: pytest.FixtureRequest) -> Run:
    return runner(request.param, Obeyed(), (landscape(0), as_rows([(5, 5, True)])))


def landscape(seed: int) -> NDArray[np.float32]:
    """Make up smooth logits [1, 1, S, S], about -10 to 10."""
    random = np.random.default_rng(seed)
    small = random.normal(0, 6, (24, 24)).astype(np.float32)
    return cv2.resize(small, (INPUT_SIZE, INPUT_SIZE), interpolation=cv2.INTER_CUBIC)[None, None]


def sides(logits: NDArray[np.float32], clicks: list[tuple[float, float, bool]]) -> list[float]:
    """Read the probability at each click as the service does, bilinear; how far it is on the click's side of 0.5."""
    probabilities = 1 / (1 + np.exp(-logits[0, 0]))
    positions = np.array([click[:2] for click in clicks], np.float32)
    read = cv2.remap(probabilities, positions[:, :1], positions[:, 1:], cv2.INTER_LINEAR)[:, 0]
    return [
        (float(value) - 0.5) * (1 if positive else -1) for value, (_, _, positive) in zip(read, clicks, strict=True)
    ]


def as_rows(clicks: list[tuple[float, float, bool]]) -> Points:
    points = np.full((1, MAX_POINTS, 3), Label.PADDING, np.float32)
    points[0, : len(clicks)] = [(x, y, Label.POSITIVE if positive else Label.NEGATIVE) for x, y, positive in clicks]
    return points


@pytest.mark.parametrize("seed", range(3))
def test_no_click_is_disobeyed_wherever_in_a_pixel_it_lies(obey: Run, seed: int) -> None:
    random = np.random.default_rng(seed)
    clicks = [(*random.uniform(2, INPUT_SIZE - 3, 2), bool(random.integers(2))) for _ in range(300)]
    apart: list[tuple[float, float, bool]] = []
    for click in clicks:
        near = [other for other in apart if np.hypot(other[0] - click[0], other[1] - click[1]) < 5]
        if len(apart) < MAX_POINTS and all(other[2] == click[2] for other in near):
            apart.append(click)
    logits = landscape(seed)
    before = sides(logits, apart)
    assert 10 < sum(side < 0 for side in before) < 50  # there is something to do
    assert min(sides(obey(logits, as_rows(apart)), apart)) > 0


@pytest.mark.parametrize("distance", [3, 4, 6, 9])
def test_opposite_clicks_side_by_side_are_both_obeyed(obey: Run, distance: float) -> None:
    clicks = [(100.3, 200.2, True), (100.3 + distance, 200.2, False)]
    logits = np.full((1, 1, INPUT_SIZE, INPUT_SIZE), -8, np.float32)
    assert min(sides(obey(logits, as_rows(clicks)), clicks)) > 0


def test_clicks_that_are_agreed_with_and_points_that_are_no_clicks_change_nothing(obey: Run) -> None:
    logits = np.full((1, 1, INPUT_SIZE, INPUT_SIZE), 4, np.float32)
    points = as_rows([(50, 60, True), (300, 310, True), (-4, 20, False), (20, 390, False)])
    points[0, 10:12] = [(200, 100, Label.EXTREME), (210, 120, Label.BOX_TOP_LEFT)]
    np.testing.assert_allclose(obey(logits, points), logits, atol=1e-6)


def test_the_exported_graph_obeys(fine: FineNetwork) -> None:
    graph, _ = build(round_weights(fold_batch_norms(fine)))
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    request = random_request(seed=4)
    clicks = [(120.0, 130.0, True), (250.0, 260.0, False), (40.0, 330.0, True), (330.0, 40.0, False)]
    feeds = dict(zip(INPUTS, request.arrays(), strict=True)) | {"POINTS": np.repeat(as_rows(clicks), 2, 0)}
    obeyed, _, _, plain = session.run(None, feeds)
    assert min(sides(plain, clicks)) < 0 < min(sides(obeyed, clicks))


@pytest.fixture
def enforced(monkeypatch: pytest.MonkeyPatch) -> Callable[[NDArray[np.float32], Points], NDArray[np.float32]]:
    """What f-BRS bends clicks with; its module imports what only Triton's stub process has."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.ModuleType("triton_python_backend_utils"))
    monkeypatch.delitem(sys.modules, "polywand_zoo.refinement.triton_model", raising=False)
    return importlib.import_module("polywand_zoo.refinement.triton_model").enforced


@pytest.mark.parametrize("seed", range(5))
def test_f_brs_bends_its_answer_as_the_graph_does(enforced, seed: int) -> None:
    random = np.random.default_rng(seed)
    points = random_request(seed).points[:1]
    points[0, :20, :2] = random.uniform(100, 160, (20, 2))  # some too close to each other
    logits = landscape(seed)
    expected = Obedience(INPUT_SIZE)(torch.from_numpy(logits), torch.from_numpy(points)).numpy()
    assert np.abs(expected - logits).max() > 1
    np.testing.assert_allclose(enforced(logits[0, 0], points[0]), expected[0, 0], atol=1e-3)
