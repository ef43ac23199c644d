"""The second generation of the wand: the maps it draws in every runtime, and how it grows out of the first."""

from typing import TypeVar

import numpy as np
import openvino
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polywand_zoo.points import Label
from polywand_zoo.wand.export import MAX_POINTS, Interactor, build, random_request
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
    places = random.integers(0, INPUT_SIZE, (5, 2))
    prompt = Prompt([(int(x), int(y), bool(random.integers(2))) for x, y in places])
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
    # Training draws in 256 levels; bfloat16 knows a coordinate to a pixel or two of a ramp of 24.
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
    model = openvino.Core().read_model(graph.SerializeToString())
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = random_request(seed=4)
    answers = compiled(list(request.arrays()))
    with torch.inference_mode():
        expected = Interactor(rounded).eval()(*request.tensors())
    for found, tensor in zip(answers.values(), expected, strict=True):
        np.testing.assert_allclose(found, tensor.numpy(), atol=2e-3, rtol=1e-3)


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


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_click_is_disobeyed(runtime: str) -> None:
    random = np.random.default_rng(5)
    logits = random.normal(0, 6, (1, 1, INPUT_SIZE, INPUT_SIZE)).astype(np.float32)
    # Far enough from one another that no click is in another one's way.
    places = np.stack(np.meshgrid(*[np.arange(20, INPUT_SIZE, 45)] * 2), -1).reshape(-1, 2)[:60]
    labels = np.where(np.arange(60) % 2, Label.POSITIVE, Label.NEGATIVE)
    points = np.full((1, MAX_POINTS, 3), Label.PADDING, np.float32)
    points[0, :60] = np.column_stack([places + random.uniform(-0.4, 0.4, places.shape), labels])
    points[0, 60:] = [(100, 100, Label.EXTREME), (-3, 50, Label.POSITIVE), (9, 400, Label.NEGATIVE), (0, 0, -1)]

    obeyed = runner(runtime, Obeyed(), (logits, points))(logits, points)[0, 0]
    sides = np.where(labels == Label.POSITIVE, 1, -1)
    assert (obeyed[places[:, 1], places[:, 0]] * sides > 0.25).all()
    was_wrong = logits[0, 0][places[:, 1], places[:, 0]] * sides < 0.5
    assert 10 < was_wrong.sum() < 50  # there was something to do, and something to leave alone
    changed = np.abs(obeyed - logits[0, 0]) > 0.1
    for x, y in places[~was_wrong]:
        assert not changed[y - 2 : y + 3, x - 2 : x + 3].any()
    assert changed.mean() < 0.2
