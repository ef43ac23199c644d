"""f-BRS as its user meets it: imported by the command, served by the embedded Triton, prompted over gRPC."""

import asyncio
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

import polywand
from polywand_contract.raster import decode_rle
from polywand_server.geometry.outlines import outline
from polywand_server.geometry.raster import to_rle
from polywand_server.images.regions import ProbabilityMap, Region
from polywand_server.triton.client import TritonClient
from polywand_zoo.cli import main
from polywand_zoo.published.architectures import ARCHITECTURES
from tests.running import Service, running_service, wait_for
from tests.streams import NEGATIVE, POSITIVE, prompt, raw_image, stream_to
from tests.zoo import golden
from tests.zoo.golden import needs_golden

NAME, FLIP = "fbrs_resnet34", "fbrs_flip"
PARTS = [f"{NAME}_encoder", f"{NAME}_head"]
VARIABLES = 2 * (128 + 32)
SIZE = (240, 320)
# x, y, whether positive; those of the golden predictor.
CLICKS = ((150, 100, True), (60, 40, False), (200, 150, True), (290, 200, False))


@dataclass(frozen=True)
class Refined:
    """A service with f-BRS, once without and once with flip averaging, both with the same parts."""

    service: Service
    repository: Path
    said: str


def edit(config: Path, *replacements: tuple[str, str]) -> None:
    """Change a configuration as a user does, but for strings that may go over lines."""
    text = re.sub(r"'\s*'", "", config.read_text())
    for pattern, replacement in replacements:
        text, count = re.subn(pattern, replacement, text)
        assert count, pattern
    config.write_text(text)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the golden predictor's weights (by its README's rule); random ones without it."""
    with torch.device("meta"):
        shapes = [(name, tensor.shape) for name, tensor in ARCHITECTURES[NAME]().state_dict().items()]
    content = golden.weights(shapes) if golden.FOLDER else golden.seeded_network(NAME).state_dict()
    if golden.FOLDER:
        content["head.layers.2.weight"] *= 40
        content["head.layers.2.bias"].fill_(4.1)
    path = tmp_path_factory.mktemp("download") / "resnet34_dh128_sbd.pth"
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def refined(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Refined]:
    root = tmp_path_factory.mktemp("refined")
    repository = root / "models"
    arguments = ["import", NAME, "--checkpoint", str(checkpoint), "--repository", str(repository)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    # The golden predictor sees the whole image.
    edit(repository / NAME / "config.pbtxt", (r'"crop": \{[^}]*\}', '"crop": {"policy": "whole"}'))
    shutil.copytree(repository / NAME, repository / FLIP)
    edit(
        repository / FLIP / "config.pbtxt",
        (f'name: "{NAME}"', f'name: "{FLIP}"'),
        (r'(key: "flip" value: \{ string_value: )"false"', r'\1"true"'),
    )
    with running_service(root / "log", f"--model-repository={repository}") as service:
        service.wait_ready(NAME, FLIP)
        yield Refined(service, repository, result.output)


def image() -> NDArray[np.uint8]:
    """The golden test card, or one like it."""
    if golden.FOLDER:
        card: NDArray[np.uint8] = golden.recipe().image(*SIZE)
        return card
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.stack([columns % 256, rows, (rows // 32 + columns // 32) % 2 * 255], 2).astype(np.uint8)


def segment(session: polywand.Session, model: str, count: int, **options: Any) -> Any:
    """Prompt with the first clicks; the mask comes with the answer."""
    kinds: dict[str, list[tuple[float, float]]] = {"positive": [], "negative": []}
    for x, y, is_positive in CLICKS[:count]:
        kinds["positive" if is_positive else "negative"].append((x + 0.5, y + 0.5))
    return session.prompt(model, **kinds, mask=True, **options)


def point_rows(*clicks: tuple[float, float, bool]) -> NDArray[np.float32]:
    rows = np.zeros((1, 64, 3), np.float32)
    rows[..., 2] = -1
    for row, click in zip(rows[0], clicks, strict=False):
        row[:] = click
    return rows


async def infer(client: TritonClient, model: str, **inputs: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    answer = await client.infer(model, 1, inputs, ["LOGITS", "STATE_OUT"], timeout_s=60)
    return answer["LOGITS"], answer["STATE_OUT"]


def golden_maps(model: str) -> list[NDArray[np.float64]]:
    assert golden.FOLDER
    stored = np.load(Path(golden.FOLDER) / "fbrs_predictor.npz")
    return [stored[f"{'flip' if model == FLIP else 'noflip'}_{index}"] / 65535 for index in range(len(CLICKS))]


# As its authors' code.


@needs_golden
def test_the_clicks_here_are_the_golden_ones() -> None:
    assert golden.FOLDER
    clicks = json.loads((Path(golden.FOLDER) / "fbrs_predictor.clicks.json").read_text())
    assert tuple((*reversed(click["yx"]), click["positive"]) for click in clicks) == CLICKS


@needs_golden
@pytest.mark.parametrize("model", [NAME, FLIP])
def test_probabilities_are_those_of_the_authors_code_click_by_click(refined: Refined, model: str) -> None:
    async def run() -> None:
        client = TritonClient(refined.service.triton)
        state = np.zeros((1, VARIABLES), np.float32)
        for count, expected in enumerate(golden_maps(model), 1):
            inputs = {"IMAGE": image()[None], "POINTS": point_rows(*CLICKS[:count]), "STATE": state}
            logits, state = await infer(client, model, **inputs)
            probabilities = 1 / (1 + np.exp(-logits[0, 0].astype(np.float64)))
            difference = np.abs(probabilities - expected).mean()
            assert difference < (1e-4 if count == 1 else 0.02)
            for x, y, _ in CLICKS[:count]:
                assert (probabilities[y, x] > 0.5) == (expected[y, x] > 0.5)
        await client.close()

    asyncio.run(run())


def drawn(probabilities: NDArray[np.float64], threshold: float, count: int) -> NDArray[np.bool_]:
    """What the service answers for a map: without small parts and holes, but for those that were clicked on."""
    height, width = SIZE
    whole = ProbabilityMap(Region(0, 0, width, height, SIZE), probabilities.astype(np.float32))
    clicks = np.array([(x + 0.5, y + 0.5) for x, y, _ in CLICKS[:count]])
    return decode_rle(to_rle(outline(whole, threshold, width, height, clicks), width, height), width, height)


@needs_golden
@pytest.mark.parametrize("model", [NAME, FLIP])
def test_masks_of_the_service_are_those_of_the_authors_code(refined: Refined, model: str) -> None:
    with polywand.connect(refined.service.target) as client, client.open(image()) as session:
        for count, expected in enumerate(golden_maps(model), 1):
            for threshold in (0.5, 0.3, 0.7):
                mask = segment(session, model, count, threshold=threshold).mask
                assert (mask == drawn(expected, threshold, count)).mean() > 0.98
                for x, y, _ in CLICKS[:count] if threshold == 0.5 else ():
                    assert mask[y, x] == (expected[y, x] > threshold)


# As a tool.


def test_the_import_says_what_it_verified(refined: Refined) -> None:
    said = refined.said.splitlines()
    assert said[1] == f"weights: 23.3 million of {NAME}, with nothing missing and nothing left over"
    assert re.match(r"encoder: fp32, 93\.\d MB; on 3 random prompts features differ from PyTorch's by \d", said[2])
    assert re.match(r"head: fp32, 0\.6 MB; no logit differs .* no gradient from autograd's by more than \d", said[3])
    assert said[4] == "bfloat16: not used; gradients need single precision"
    assert said[5] == f"{refined.repository}/{NAME}/1: version 1, a new model"
    for name in (NAME, *PARTS):
        assert "MPL-2.0" in (refined.repository / name / "1" / "NOTICE").read_text()


def test_the_tool_is_listed_and_its_parts_are_not(refined: Refined) -> None:
    with polywand.connect(refined.service.target) as client:
        assert [(model.name, model.ready) for model in client.models()] == [(FLIP, True), (NAME, True)]


def test_undo_leads_back_and_what_follows_does_not_depend_on_the_way(refined: Refined) -> None:
    with polywand.connect(refined.service.target) as client:
        with client.open(image()) as session:
            straight = [segment(session, NAME, count).mask for count in (1, 2, 3)]
        with client.open(image()) as session:
            for count in (1, 2, 4):
                segment(session, NAME, count)
            np.testing.assert_array_equal(segment(session, NAME, 2).mask, straight[1])
            np.testing.assert_array_equal(segment(session, NAME, 3).mask, straight[2])


def test_rows_of_a_batch_are_refined_each_for_itself(refined: Refined) -> None:
    async def run() -> None:
        client = TritonClient(refined.service.triton)
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
        points = np.concatenate(
            [point_rows((50, 30, True), (10, 20, False)), point_rows((0, 0, True), (95, 63, False))]
        )
        states = random.normal(0, 0.01, (2, VARIABLES)).astype(np.float32)
        together = await infer(client, NAME, IMAGE=images, POINTS=points, STATE=states)
        for row in range(2):
            only = slice(row, row + 1)
            alone = await infer(client, NAME, IMAGE=images[only], POINTS=points[only], STATE=states[only])
            for whole, part in zip(together, alone, strict=True):
                np.testing.assert_array_equal(whole[only], part)
        await client.close()

    asyncio.run(run())


def test_clicks_beyond_the_limit_of_the_network_still_count(refined: Refined) -> None:
    clicks = [(20 + 8 * index, 30, True) for index in range(8)]

    async def run() -> None:
        client = TritonClient(refined.service.triton)
        picture = np.random.default_rng(1).integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
        state = np.zeros((1, VARIABLES), np.float32)
        eight, _ = await infer(client, NAME, IMAGE=picture, POINTS=point_rows(*clicks), STATE=state)
        # Not on the first row or column, where a click has no effect.
        low = min(((eight[0, 0, y, x], x, y) for y in range(2, 62) for x in range(2, 94)), key=lambda spot: spot[0])
        corrected = (*low[1:], bool(low[0] < 0))
        nine, _ = await infer(client, NAME, IMAGE=picture, POINTS=point_rows(*clicks, corrected), STATE=state)
        assert not np.array_equal(eight, nine)
        await client.close()

    asyncio.run(run())


# When something is wrong.


def test_a_part_that_died_is_one_clear_error_and_comes_back(refined: Refined) -> None:
    def stub() -> psutil.Process:
        children = psutil.Process(refined.service.process.pid).children(recursive=True)
        (found,) = [child for child in children if any(PARTS[1] in word for word in child.cmdline()[:2])]
        return found

    stub().kill()
    clicks = [(x + 0.5, y + 0.5, POSITIVE if is_positive else NEGATIVE) for x, y, is_positive in CLICKS]
    with stream_to(refined.service.target) as stream:
        stream.ask(raw_image(image()))
        error = stream.ask(prompt(NAME, *clicks)).error
    assert error.code == grpc.StatusCode.UNAVAILABLE.value[0]
    # Either the prompt found out that the part died, or the service had, and loads it again.
    assert f"part '{PARTS[1]}'" in error.message
    with polywand.connect(refined.service.target) as client, client.open(image()) as session:
        assert segment(session, NAME, 2).mask.any()  # sent again by the client until it is back


def test_a_tool_whose_part_is_broken_is_not_ready_and_says_so(refined: Refined, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    for name in (NAME, *PARTS):
        shutil.copytree(refined.repository / name, repository / name)
    (repository / PARTS[1] / "1" / "model.onnx").write_bytes(b"no network")
    with running_service(tmp_path / "log", f"--model-repository={repository}") as service:
        wait_for(lambda: f"model {PARTS[1]} did not load" in service.log.read_text(), 60, service)
        with polywand.connect(service.target) as client:
            says_so = f"its part '{PARTS[1]}' is not ready"
            wait_for(lambda: any(says_so in model.state_message for model in client.models()), 60, service)
            (model,) = client.models()
            assert not model.ready
            assert f"its part '{PARTS[1]}' is not ready" in model.state_message
            good = refined.repository / PARTS[1] / "1" / "model.onnx"
            shutil.copyfile(good, repository / PARTS[1] / "1" / "model.onnx")
            deadline = time.monotonic() + 60
            while not client.models()[0].ready:
                assert time.monotonic() < deadline
                time.sleep(0.2)
