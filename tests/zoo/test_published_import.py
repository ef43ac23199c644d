"""`polywand-zoo import` and `list`, as a user calls them: what they add, what they say, and what they leave behind."""

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from google.protobuf import text_format
from onnx import TensorProto
from tritonclient.grpc import model_config_pb2

import polywand
from polywand_server.images.resampling import Resampling
from polywand_server.tools.specs import InteractorSpec, MarginCrop, RoiCrop, parse_specs
from polywand_zoo.cli import main
from polywand_zoo.networks.fbrs import FbrsDeepLab, FbrsHrnet
from polywand_zoo.published.architectures import ARCHITECTURES
from polywand_zoo.published.catalogue import CATALOGUE
from polywand_zoo.published.config import model_config, parameter
from polywand_zoo.published.export import interactor
from polywand_zoo.published.refined import divide, part_names
from polywand_zoo.refinement.config import encoder_config, head_config, tool_config
from tests.running import running_service
from tests.zoo.golden import RITM_CONFIG
from tests.zoo.test_published_checkpoints import Payload


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file as RITM's authors write it, with an untrained hrnet18s."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("download") / "coco_lvis_h18s_itermask.pth"
    torch.save({"state_dict": OrderedDict(ARCHITECTURES["hrnet18s"]().state_dict()), "config": RITM_CONFIG}, path)
    return path


def run(name: str, checkpoint: Path, repository: Path, *options: str, bfloat: str = "off") -> Result:
    arguments = ["import", name, "--checkpoint", str(checkpoint), "--repository", str(repository)]
    arguments += ["--bfloat16", bfloat, *options]
    return CliRunner().invoke(main, arguments)


@pytest.fixture(scope="module")
def first(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Import into a new repository, once; tests that change it do that in a copy."""
    repository = tmp_path_factory.mktemp("first") / "new" / "models"
    result = run("hrnet18s", checkpoint, repository, bfloat="auto")
    assert result.exit_code == 0, result.output
    return repository, result


@pytest.fixture
def repository(first: tuple[Path, Result], tmp_path: Path) -> Path:
    """Return a copy of the repository with version 1."""
    return Path(shutil.copytree(first[0], tmp_path / "models"))


def files(folder: Path) -> list[str]:
    """List everything below a folder, and beside it in its parent what is hidden."""
    below = [str(path.relative_to(folder)) for path in folder.rglob("*")] if folder.exists() else []
    return sorted(below + [path.name for path in folder.parent.glob(".*")])


def read_config(path: Path) -> Any:
    return text_format.Parse(path.read_text(encoding="ascii"), model_config_pb2.ModelConfig())


# What it adds.


def test_an_import_adds_a_model_and_says_what_it_verified(first: tuple[Path, Result], checkpoint: Path) -> None:
    repository, result = first
    assert files(repository) == [
        "hrnet18s",
        "hrnet18s/1",
        "hrnet18s/1/NOTICE",
        "hrnet18s/1/model.onnx",
        "hrnet18s/config.pbtxt",
    ]
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    said = result.output.splitlines()
    assert said[0] == f"checkpoint: coco_lvis_h18s_itermask.pth, SHA-256 {sha256}"
    assert said[1] == "weights: 4.2 million of hrnet18s, with nothing missing and nothing left over"
    assert said[2].startswith("graph: fp32, 17.0 MB; on 3 random prompts no logit differs from PyTorch's by more than ")
    assert said[3].startswith("bfloat16: not used; ")  # an untrained network's masks do not survive it
    assert said[4:] == [f"{repository}/hrnet18s/1: version 1, a new model"]

    notice = (repository / "hrnet18s" / "1" / "NOTICE").read_text()
    for fact in (sha256, checkpoint.name, CATALOGUE["hrnet18s"].page, "Licence of the weights: MIT"):
        assert fact in notice
    assert (repository / "hrnet18s").stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


def test_a_second_import_adds_version_2_and_keeps_the_configuration(checkpoint: Path, repository: Path) -> None:
    config = repository / "hrnet18s" / "config.pbtxt"
    config.write_text(config.read_text() + "# mine\n")
    before = (repository / "hrnet18s" / "1" / "model.onnx").read_bytes()
    result = run("hrnet18s", checkpoint, repository, "--precision", "fp16")
    assert result.exit_code == 0, result.output
    assert (
        "graph: fp16, 8.6 MB; on 3 random prompts logits differ from single precision in PyTorch by " in result.output
    )
    assert result.output.endswith(
        f"{repository}/hrnet18s/2: version 2, a further version of a model, whose configuration stays\n"
    )
    assert config.read_text().endswith("# mine\n")
    assert (repository / "hrnet18s" / "1" / "model.onnx").read_bytes() == before
    weights = onnx.load(repository / "hrnet18s" / "2" / "model.onnx").graph.initializer
    assert {tensor.data_type for tensor in weights if len(tensor.dims) == 4} == {TensorProto.FLOAT16}


def test_a_version_can_be_chosen_and_is_never_replaced(checkpoint: Path, repository: Path) -> None:
    assert run("hrnet18s", checkpoint, repository, "--version", "7").exit_code == 0
    before = files(repository)
    assert "hrnet18s/7/model.onnx" in before
    refused = run("hrnet18s", checkpoint, repository, "--version", "7")
    assert refused.exit_code == 1
    assert refused.output == f"Error: {repository}/hrnet18s has a version 7 already\n"
    assert files(repository) == before


@pytest.mark.parametrize("name", [name for name, published in CATALOGUE.items() if not published.is_refined])
def test_a_configuration_is_what_the_service_and_the_graph_need(name: str) -> None:
    with torch.device("meta"):
        wrapped = interactor(ARCHITECTURES[name]())
    published = CATALOGUE[name]
    text = model_config(
        published, points=wrapped.POINTS, size=wrapped.SIZE, has_previous_mask="PREV_MASK" in wrapped.INPUTS
    )
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert config.name == name
    assert config.backend == "onnxruntime"
    assert [tensor.name for tensor in config.input] == list(wrapped.INPUTS)
    side = 512 if wrapped.SIZE else -1
    assert [list(tensor.dims) for tensor in [*config.input, *config.output]] == [
        [side, side, 3],
        [wrapped.POINTS, 3],
        *([[1, side, side]] if "PREV_MASK" in wrapped.INPUTS else []),
        [1, side, side],
    ]
    spec = parse_specs(config.parameters["polywand"].string_value, name)[name]
    assert isinstance(spec, InteractorSpec)
    assert spec.display_name == published.title
    assert published.page in spec.weights_source
    assert spec.license == published.license
    if name == "dextr_resnet101":
        assert (spec.prompt.extreme_points, spec.prompt.min_positive_points, spec.prompt.box) == (4, 0, "none")
        assert spec.crop == MarginCrop(policy="margin", pixels=50, keep_margin=False, resampling=Resampling.CUBIC)
        assert spec.threshold == 0.8
    elif name == "iog_resnet101":
        assert (spec.prompt.extreme_points, spec.prompt.min_positive_points, spec.prompt.box) == (0, 1, "required")
        assert spec.crop == MarginCrop(policy="margin", pixels=30, resampling=Resampling.LINEAR)
        assert spec.threshold == 0.8
    else:
        assert (spec.prompt.extreme_points, spec.prompt.min_positive_points, spec.prompt.box) == (0, 1, "none")
        assert spec.crop == RoiCrop(policy="roi", expansion=1.4, min_side=200, longest_side=800, zoomed_side=400)
        assert spec.threshold == 0.49


@pytest.mark.parametrize("name", [name for name, published in CATALOGUE.items() if published.is_refined])
def test_the_configurations_of_a_tool_and_its_parts_fit_together(name: str) -> None:
    with torch.device("meta"):
        network = ARCHITECTURES[name]()
    assert isinstance(network, FbrsDeepLab | FbrsHrnet)
    parts = divide(network)
    tool, encoder, head = (
        text_format.Parse(text, model_config_pb2.ModelConfig())
        for text in (
            tool_config(name, parts, parameter(CATALOGUE[name])),
            encoder_config(name, parts),
            head_config(name, parts),
        )
    )
    assert [config.name for config in (tool, encoder, head)] == [name, *part_names(name)]
    assert [tool.parameters[key].string_value for key in ("encoder", "head")] == list(part_names(name))
    assert tool.parameters["features"].string_value == "FEATURES"
    spec = parse_specs(tool.parameters["polywand"].string_value, name)[name]
    assert isinstance(spec, InteractorSpec)
    assert (spec.license, spec.threshold) == ("MPL-2.0", 0.5)
    assert all("polywand" not in config.parameters for config in (encoder, head))
    dims = {tensor.name: list(tensor.dims) for tensor in [*tool.input, *tool.output, *head.input, *head.output]}
    variables = network.feature_channels
    assert dims["STATE"] == dims["STATE_OUT"] == [2 * variables]
    assert all(dims[key] == [variables] for key in ("SCALE", "BIAS", "SCALE_GRADIENT", "BIAS_GRADIENT"))
    assert dims["FEATURES"] == list(encoder.output[0].dims) == [variables, -1, -1]


def test_the_configuration_in_the_repository_describes_the_graph_in_it(first: tuple[Path, Result]) -> None:
    repository, _ = first
    config = read_config(repository / "hrnet18s" / "config.pbtxt")
    graph = onnx.load(repository / "hrnet18s" / "1" / "model.onnx").graph
    described = [[tensor.name, *tensor.dims] for tensor in [*config.input, *config.output]]
    assert described == [
        [value.name, *(axis.dim_value or -1 for axis in value.type.tensor_type.shape.dim[1:])]
        for value in [*graph.input, *graph.output]
    ]


def test_a_running_service_shows_the_new_tool_and_answers_with_it(checkpoint: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    repository.mkdir()
    with running_service(tmp_path / "log", f"--model-repository={repository}") as service:
        assert run("hrnet18s", checkpoint, repository).exit_code == 0
        service.wait_ready("hrnet18s", seconds=20)
        image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
        with polywand.connect(service.target) as client, client.open(image) as session:
            (model,) = client.models()
            assert (model.name, model.ready, model.license) == ("hrnet18s", True, "MIT")
            shape = session.prompt("hrnet18s", positive=[(60, 70)], mask=True)
            assert (shape.model, shape.version) == ("hrnet18s", 1)
        # What lay beside or in the repository while the import ran, Triton would have tried to load.
        assert "did not load" not in service.log.read_text()


def test_the_list_shows_names_prompts_sizes_and_pages() -> None:
    result = CliRunner().invoke(main, ["list"])
    assert result.exit_code == 0, result.output
    rows = result.output.splitlines()[1:]
    assert [row.split()[0] for row in rows] == list(ARCHITECTURES)
    for row, published in zip(rows, CATALOGUE.values(), strict=True):
        assert published.prompt_style in row
        assert row.endswith(published.page)
        with torch.device("meta"):
            network = ARCHITECTURES[published.name]()
        counted = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        assert f"{counted:.1f} million" in row


# What it refuses, in one sentence, leaving nothing.


def refused(checkpoint: Path, repository: Path, name: str = "hrnet18s") -> str:
    """Return the sentence, without the checkpoint's path."""
    result = run(name, checkpoint, repository)
    assert result.exit_code == 1
    assert files(repository) == []
    assert not repository.exists()
    (line,) = result.output.splitlines()
    assert line.startswith(f"Error: {checkpoint} ")
    return line.removeprefix(f"Error: {checkpoint} ")


def test_a_checkpoint_of_another_network_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    assert refused(checkpoint, tmp_path / "models", "hrnet32") == "is a checkpoint of hrnet18s, not of hrnet32"


def test_a_wrong_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.pth").write_bytes(b"\xff\xd8\xff\xe0 JFIF")
    why = refused(tmp_path / "photo.pth", tmp_path / "models")
    assert why == "is no checkpoint, or it is cut off or damaged: PyTorch cannot read it"


def test_a_truncated_file_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "half.pth").write_bytes(checkpoint.read_bytes()[:-1000])
    why = refused(tmp_path / "half.pth", tmp_path / "models")
    assert why == "is no checkpoint, or it is cut off or damaged: PyTorch cannot read it"


def test_a_file_with_a_pickle_payload_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Payload(tmp_path / "harm")}, tmp_path / "evil.pth")
    why = refused(tmp_path / "evil.pth", tmp_path / "models")
    assert why == "wants to run code when it is read (posix.mkdir), which weights need not: it is refused"
    assert not (tmp_path / "harm").exists()


def test_missing_entries_are_named(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint)
    del content["state_dict"]["feature_extractor.cls_head.bias"]
    torch.save(content, tmp_path / "less.pth")
    why = refused(tmp_path / "less.pth", tmp_path / "models")
    assert why == "is no checkpoint of hrnet18s: missing: feature_extractor.cls_head.bias"


def test_a_folder_that_is_no_model_is_not_touched(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "models" / "hrnet18s").mkdir(parents=True)
    result = run("hrnet18s", checkpoint, tmp_path / "models")
    assert result.exit_code == 1
    assert result.output == f"Error: {tmp_path}/models/hrnet18s exists and is no model: it has no config.pbtxt\n"
    assert files(tmp_path / "models") == ["hrnet18s"]


def command(checkpoint: Path, repository: Path) -> list[str]:
    program = "from polywand_zoo.cli import main; main()"
    options = ["--checkpoint", str(checkpoint), "--repository", str(repository)]
    return [sys.executable, "-c", program, "import", "hrnet18s", "--bfloat16", "off", *options]


@pytest.mark.parametrize("is_new", [True, False])
def test_a_write_that_fails_half_way_leaves_nothing(checkpoint: Path, repository: Path, is_new: bool) -> None:
    if is_new:
        shutil.rmtree(repository)
    before = files(repository)

    def allow_small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    result = subprocess.run(
        command(checkpoint, repository), preexec_fn=allow_small_files_only, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    version = 1 if is_new else 2
    assert result.stderr == (
        f"Error: {repository}/hrnet18s/{version} could not be written: File too large; nothing was left behind\n"
    )
    assert files(repository) == before
    assert repository.exists() is not is_new


def can_mount() -> bool:
    attempt = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(attempt, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not can_mount(), reason="NOT RUN: a small file system cannot be mounted here (unshare, mount)")
def test_a_full_disk_is_told_before_anything_is_written(checkpoint: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=8m none "$0" && "$@"; status=$?; find "$0" -mindepth 1; exit $status'
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(disk)]
    result = subprocess.run(
        [*unshare, *command(checkpoint, disk / "models")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr == (f"Error: {disk}/models/hrnet18s/1 needs 17.0 MB of disk space, and 8.4 MB are free\n")
    assert str(disk) not in result.stdout  # of find: nothing is there


def test_the_parameter_of_the_configuration_is_readable_json(first: tuple[Path, Result]) -> None:
    parameter = read_config(first[0] / "hrnet18s" / "config.pbtxt").parameters["polywand"].string_value
    assert json.loads(parameter)["kind"] == "interactor"
