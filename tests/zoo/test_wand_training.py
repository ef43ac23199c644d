"""The training of the wand: on a handful of drawn photos, for a few steps, through its command."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner

from polywand_zoo.cli import main
from polywand_zoo.wand import weights
from polywand_zoo.wand.checkpoint import CheckpointError
from polywand_zoo.wand.training import config, dataset, run, worker
from polywand_zoo.wand.training.config import RecipeError
from polywand_zoo.wand.training.run import Order, TrainingError, train
from polywand_zoo.wand.training.state import Progress
from tests.zoo.coco_folder import drawn

Weights = dict[str, torch.Tensor]

STEPS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two data sets, training and validation, and a recipe for a few small steps."""
    folder = tmp_path_factory.mktemp("training")
    drawn(folder / "training", count=4, seed=0)
    drawn(folder / "validation", count=1, seed=1)
    recipe = config.DEFAULT.read_text(encoding="utf-8")
    for pattern, new in (
        (r"(\[stable\].*\n)sizes = .*\nbatches = .*", r"\1sizes = { 64 = 1, 96 = 1 }\nbatches = { 64 = 2, 96 = 2 }"),
        (r"decay_share = \S+", "decay_share = 0.25"),
        (r"(\[decay\].*\n)sizes = .*\nbatches = .*", r"\1sizes = { 64 = 1 }\nbatches = { 64 = 2 }"),
        (r"samples = \d+", f"samples = {2 * STEPS}"),
        (r"clicks = 5\n", "clicks = 1\n"),
    ):
        recipe, found = re.subn(pattern, new, recipe)
        assert found == 1, pattern
    start, end = recipe.index("objects = ["), recipe.rindex("]")
    (folder / "recipe.toml").write_text(f"{recipe[:start]}objects = [1]\n{recipe[end + 1 :]}", encoding="utf-8")
    return folder


def order(data: Path, folder: Path, **changes: Any) -> Order:
    made = Order(folder, [data / "training"], None, data / "recipe.toml", None, processes=1)
    return replace(made, **changes)


def trained(folder: Path) -> Weights:
    checkpoint = weights.read(folder / "latest.pt")
    return {f"{part}.{name}": tensor for part in ("network", "average") for name, tensor in checkpoint[part].items()}


def assert_same(first: Weights, second: Weights) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int, number: int = signal.SIGTERM) -> None:
    """Let the training get a signal within its step of that number."""
    backpropagate, calls = worker.backpropagate, iter(range(1, 1000))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == steps:
            os.kill(os.getpid(), number)
        return backpropagate(*arguments)

    monkeypatch.setattr(worker, "backpropagate", interrupted)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    progress = train(order(data, folder))
    assert progress == Progress(step=STEPS, samples=2 * STEPS, decay_from=9, end=2 * STEPS)
    return folder


def test_a_training_that_was_interrupted_gives_the_same_weights(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    for steps in (2, 3):  # once in either phase
        stop_after(monkeypatch, steps)
        stopped = train(order(data, tmp_path))
        monkeypatch.undo()
    assert stopped.step == 5
    assert signal.getsignal(signal.SIGTERM) == handler
    assert train(order(data, tmp_path)).step == STEPS
    assert_same(trained(tmp_path), trained(whole))


def test_training_changes_what_learns_and_nothing_else(data: Path, whole: Path, tmp_path: Path) -> None:
    after = trained(whole)
    before = run.prepare(order(data, tmp_path)).network.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[f"network.{name}"])}
    assert {"backbone.stages.1.enter.weight", "fine.correct.weight", "edges.filters.0.weight"} <= changed
    assert not {"backbone.stem.weight", "backbone.stages.0.leave.bias"} & changed


def test_a_signal_begins_the_last_phase(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(monkeypatch, 2, signal.SIGUSR1)
    progress = train(order(data, tmp_path, samples=1000))
    assert progress.decay_from == 4
    assert progress.end == 4 + round(4 / 3)


def test_another_end_is_planned_with_its_last_phase() -> None:
    progress = Progress(step=10, samples=100, decay_from=750, end=1000)
    progress.end_after(300, decay_share=0.25)
    assert (progress.decay_from, progress.end) == (300, 400)
    progress.end_after(20, decay_share=0.25)
    assert (progress.decay_from, progress.end) == (100, 120)
    assert progress.decaying


def test_a_new_end_never_lifts_a_rate_that_has_fallen() -> None:
    progress = Progress(step=90, samples=900, decay_from=250, end=1000)
    progress.end_after(100, decay_share=0.75)  # the same end once more, as when the same command goes on
    assert (progress.decay_from, progress.end) == (250, 1000)
    fallen = progress.fallen
    progress.end_after(300, decay_share=0.75)
    assert progress.end == 1200
    assert progress.fallen == pytest.approx(fallen, abs=1e-3)


def test_validation_takes_other_objects_where_those_of_the_recipe_are_not_there(data: Path) -> None:
    assert dataset.choose(data / "training", [2, 5]) == {2, 5}
    assert len(dataset.choose(data / "training", [2, 5, 99])) == 3
    assert len(dataset.choose(data / "training", [])) == 8


def test_an_outline_that_cannot_be_read_is_named_and_a_missing_one_is_passed_over(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data / "training", folder)
    content = json.loads((folder / "annotations.json").read_text())
    known = len(dataset.load([folder]).things)
    del content["annotations"][0]["segmentation"]
    (folder / "annotations.json").write_text(json.dumps(content))
    assert len(dataset.load([folder]).things) == known - 1
    content["annotations"][1]["segmentation"] = [[1, 2]]
    (folder / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(dataset.DatasetError, match="data: the outline of annotation 2 cannot be read"):
        dataset.load([folder])


def test_a_training_can_be_told_to_end_in_some_minutes(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="needs a training that has run for some minutes"):
        train(order(data, tmp_path, finish_in=5))
    (tmp_path / "log.jsonl").write_text('{"images_per_second": 2.0}\n{"images_per_second": 4.0}\n{"cut')
    assert run.prepare(order(data, tmp_path, finish_in=5)).progress.end == 5 * 60 * 4


def command(data: Path, folder: Path) -> list[str]:
    options = {"--data": "training", "--validation": "validation", "--recipe": "recipe.toml"}
    paths = [part for name, value in options.items() for part in (name, str(data / value))]
    return ["train", str(folder), *paths, "--processes", "2"]


@pytest.fixture(scope="module")
def together(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the folders of two equal trainings by two processes, each run by the command."""
    folders = [tmp_path_factory.mktemp("together") for _ in range(2)]
    for folder in folders:
        arguments = [sys.executable, "-c", "from polywand_zoo.cli import main; main()", *command(data, folder)]
        result = subprocess.run(arguments, capture_output=True, text=True, timeout=600, check=False)
        assert result.returncode == 0, result.stderr
        assert result.stdout.endswith(f"{folder / 'average.pt'}: after {2 * STEPS} samples\n")
    return folders


def test_two_processes_give_the_same_weights_every_time(together: list[Path]) -> None:
    assert_same(*(trained(folder) for folder in together))


def test_the_log_and_the_curve_tell_how_it_went(together: list[Path]) -> None:
    folder = together[0]
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    validations = [entry for entry in entries if "validation" in entry]
    assert [entry["samples"] for entry in validations] == [0, 2 * STEPS]
    assert validations[0]["validation"].keys() == {"clicks_1", "obeyed", "box", "extreme", "inside"}
    assert all(0 < entry["loss"] < 20 for entry in entries if "loss" in entry)
    assert sorted(path.name for path in (folder / "averages").iterdir()) == ["0000000.pt", "0000012.pt"]
    assert cv2.imread(str(folder / "validation.png")).shape == (450, 1200, 3)


def test_its_weights_can_be_exported_as_the_second_version(together: list[Path], tmp_path: Path) -> None:
    arguments = ["export-wand", "--checkpoint", str(together[0] / "average.pt"), "--repository", str(tmp_path)]
    result = CliRunner().invoke(main, [*arguments, "--version", "2"])
    assert result.exit_code == 0, result.output
    session = ort.InferenceSession(str(tmp_path / "wand" / "2" / "model.onnx"))
    tensors = [*session.get_inputs(), *session.get_outputs()]
    assert [tensor.name for tensor in tensors[:4]] == ["IMAGE", "POINTS", "PREV_MASK", "LOGITS"]
    assert tensors[3].shape == ["batch", 1, 384, 384]


def test_a_process_that_fails_ends_the_training(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        os._exit(3)

    monkeypatch.setattr(worker, "backpropagate", fail)
    with pytest.raises(TrainingError, match="a process of the training failed"):
        train(order(data, tmp_path, processes=2))


def test_a_training_ends_though_its_processes_end_between_two_polls(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_exit_code, reads = BaseProcess.exitcode.fget, iter(range(10_000))  # type: ignore[attr-defined]

    def poll_too_early(process: BaseProcess) -> int | None:
        if next(reads):
            code: int | None = read_exit_code(process)
            return code
        while multiprocessing.active_children():
            time.sleep(0.05)
        return None

    def fail_late(number: int, frame: FrameType | None) -> None:
        pytest.fail("the training still waits for processes that have ended")

    monkeypatch.setattr(BaseProcess, "exitcode", property(poll_too_early))
    before = signal.signal(signal.SIGALRM, fail_late)
    signal.alarm(120)
    try:
        assert train(order(data, tmp_path, processes=2, samples=4)).samples == 4
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_recipe_with_a_wrong_entry_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    recipe = (data / "recipe.toml").read_text(encoding="utf-8")
    (tmp_path / "wrong.toml").write_text(recipe.replace("warm_up_steps", "warmup"), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"optimiser: missing \['warm_up_steps'\], unknown \['warmup'\]"):
        config.read(tmp_path / "wrong.toml")
    (tmp_path / "share.toml").write_text(recipe.replace("\nnear = ", "\nclose = "), encoding="utf-8")
    with pytest.raises(
        RecipeError, match=r"views: unknown \['close'\], known are \['near', 'object', 'part', 'whole'\]"
    ):
        config.read(tmp_path / "share.toml")
    (tmp_path / "broken.toml").write_text("seed = ", encoding="utf-8")
    with pytest.raises(RecipeError, match="broken"):
        config.read(tmp_path / "broken.toml")


def test_a_training_does_not_go_on_from_anything_else(data: Path, tmp_path: Path) -> None:
    torch.save({"ema": {}}, tmp_path / "latest.pt")
    with pytest.raises(CheckpointError, match="no checkpoint of `polywand-zoo train`"):
        train(order(data, tmp_path))
