"""Checkpoints as their authors, an accident or an attacker left them: read, or refused in one sentence."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from polywand_zoo.published.architectures import ARCHITECTURES
from polywand_zoo.published.checkpoint import CheckpointError, read
from tests.zoo.golden import RITM_CONFIG

Weights = OrderedDict[str, torch.Tensor]


class Payload:
    """What a harmful file holds: code that makes a folder when the file is read as a pickle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture(scope="module")
def smallest() -> Weights:
    """Return the weights of an untrained hrnet18s."""
    torch.manual_seed(0)
    return OrderedDict(ARCHITECTURES["hrnet18s"]().state_dict())


@pytest.fixture
def weights(smallest: Weights) -> Weights:
    """Return a copy of the dictionary, to be spoilt."""
    return OrderedDict(smallest)


def save(folder: Path, content: Any, *, old_format: bool = False) -> Path:
    torch.save(content, folder / "weights.pth", _use_new_zipfile_serialization=not old_format)
    return folder / "weights.pth"


def refusal(path: Path, name: str | None = None) -> str:
    """Return why a file is refused, in one line and without its path."""
    with pytest.raises(CheckpointError) as refused:
        read(path, name)
    message = str(refused.value)
    assert message.startswith(f"{path} ")
    assert "\n" not in message
    return message.removeprefix(f"{path} ")


# What is read.


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_weights_are_read_bare_or_nested_in_both_of_pytorchs_formats(
    weights: Weights, tmp_path: Path, nested: bool, old_format: bool
) -> None:
    content = {"state_dict": weights, "config": RITM_CONFIG} if nested else weights
    checkpoint = read(save(tmp_path, content, old_format=old_format))
    assert checkpoint.name == "hrnet18s"
    assert not checkpoint.network.training
    for name, tensor in checkpoint.network.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)


def test_a_prefix_of_training_on_several_gpus_is_taken_away(weights: Weights, tmp_path: Path) -> None:
    wrapped = OrderedDict((f"module.{name}", tensor) for name, tensor in weights.items())
    assert read(save(tmp_path, wrapped), "hrnet18s").name == "hrnet18s"


def test_weights_of_older_releases_of_pytorch_lack_counters(weights: Weights, tmp_path: Path) -> None:
    without = {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
    assert len(without) < len(weights)
    assert read(save(tmp_path, without), "hrnet18s").name == "hrnet18s"


def test_weights_in_half_precision_become_single(weights: Weights, tmp_path: Path) -> None:
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    checkpoint = read(save(tmp_path, halves), "hrnet18s")
    assert {parameter.dtype for parameter in checkpoint.network.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_network_is_detected_from_the_entries(name: str, tmp_path: Path) -> None:
    assert read(save(tmp_path, ARCHITECTURES[name]().state_dict())).name == name


# What belongs to something else.


def test_a_checkpoint_of_another_network_is_named(weights: Weights, tmp_path: Path) -> None:
    assert refusal(save(tmp_path, weights), "hrnet32") == "is a checkpoint of hrnet18s, not of hrnet32"


def test_missing_and_left_over_entries_are_told_by_name(weights: Weights, tmp_path: Path) -> None:
    weights["feature_extractor.cls_header.weight"] = weights.pop("feature_extractor.cls_head.weight")
    weights["feature_extractor.cls_head.bias"] = torch.zeros(2)
    assert refusal(save(tmp_path, weights), "hrnet18s") == (
        "is no checkpoint of hrnet18s: missing: feature_extractor.cls_head.weight; "
        "left over: feature_extractor.cls_header.weight; "
        "of another shape: feature_extractor.cls_head.bias [2] instead of [1]"
    )


def test_of_many_entries_a_few_are_named_and_the_rest_counted(weights: Weights, tmp_path: Path) -> None:
    path = save(tmp_path, OrderedDict(list(weights.items())[: len(weights) // 2]))
    assert refusal(path, "hrnet18s").startswith("is no checkpoint of hrnet18s: missing: ")
    assert refusal(path, "hrnet18s").endswith(" more")
    assert len(refusal(path, "hrnet18s")) < 300


def test_without_a_name_the_closest_network_is_compared_with(weights: Weights, tmp_path: Path) -> None:
    del weights["maps_transform.3.scale"]
    assert refusal(save(tmp_path, weights)) == "is no checkpoint of hrnet18s: missing: maps_transform.3.scale"


def test_a_variant_that_the_weights_do_not_show_is_refused(weights: Weights, tmp_path: Path) -> None:
    radius = {"type": "builtin", "value": 3, "specified": True}
    config = {**RITM_CONFIG, "params": {**RITM_CONFIG["params"], "norm_radius": radius}}
    path = save(tmp_path, {"state_dict": weights, "config": config})
    assert refusal(path) == "is a variant of hrnet18s that is not known here: norm_radius is 3, not 5"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ([1, 2], "holds no named weights, but a list"),
        ({}, "holds no named weights, but a dict"),
        ({"epoch": 3}, "holds entries that are no named weights: epoch"),
        ({"weight": torch.eye(2).to_sparse()}, "holds entries that are no named weights: weight"),
    ],
)
def test_a_file_of_something_else_is_refused(content: Any, why: str, tmp_path: Path) -> None:
    assert refusal(save(tmp_path, content)) == why


# What is damaged, or harmful.

UNREADABLE = "is no checkpoint, or it is cut off or damaged: PyTorch cannot read it"


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("kept", [0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(weights: Weights, tmp_path: Path, kept: float, old_format: bool) -> None:
    path = save(tmp_path, weights, old_format=old_format)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    assert refusal(path, "hrnet18s") == UNREADABLE


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n and so on", b"<!DOCTYPE html><html>Sign in</html>"])
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    assert refusal(tmp_path / "weights.pth") == UNREADABLE


def test_a_flipped_bit_is_found(weights: Weights, tmp_path: Path) -> None:
    path = save(tmp_path, weights)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)
    assert refusal(path, "hrnet18s").startswith("is damaged: the check sum of ")


def test_numbers_that_are_not_finite_are_found(weights: Weights, tmp_path: Path) -> None:
    weights["feature_extractor.conv2.weight"] = torch.full((64, 64, 3, 3), float("nan"))
    assert refusal(save(tmp_path, weights)) == (
        "is damaged: it holds numbers that are not finite, in feature_extractor.conv2.weight"
    )


@pytest.mark.parametrize("old_format", [False, True])
def test_code_in_a_file_is_not_run(weights: Weights, tmp_path: Path, old_format: bool) -> None:
    harm = tmp_path / "harm"
    path = save(tmp_path, {"state_dict": weights, "config": Payload(harm)}, old_format=old_format)
    assert refusal(path, "hrnet18s") == (
        "wants to run code when it is read (posix.mkdir), which weights need not: it is refused"
    )
    assert not harm.exists()
    torch.load(path, weights_only=False)
    assert harm.exists(), "the payload works, so the test proves something"


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, ARCHITECTURES["hrnet18s"]())
    assert refusal(path).startswith("wants to run code when it is read (polywand_zoo.networks.ritm.Ritm)")
