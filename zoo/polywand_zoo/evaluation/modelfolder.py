"""A tool in the model repository: what an evaluation needs of its model's config.pbtxt."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import text_format
from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2

from polywand_server.interactors.crops import crop_policy
from polywand_server.tools.specs import DetectorSpec, InteractorSpec
from polywand_zoo.evaluation.prompts import Needs
from polywand_zoo.versions import CONFIG_FILE, PARAMETER_KEY, versions

Spec = TypeVar("Spec", InteractorSpec, DetectorSpec)

NETWORK_FILE = "model.onnx"


class ModelError(Exception):
    """A model cannot be evaluated, or not in this way; the message says why, and what would help."""


class AbsentError(ModelError):
    """The repository has no such model, or no such version of it."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One version of an interactor.

    repository: its folder. name: of the tool; its model may have another name, and further tools.
    network: its ONNX file, or None where it has none. keeps_state: whether it has the inputs and outputs STATE.
    openvino_precision: "f32", "bf16" or "auto" where it runs in OpenVINO on CPUs, None for ONNX Runtime.
    fixed_size: (height, width) of IMAGE, None where they vary. points: rows of POINTS.
    spec: what the `polywand` parameter says of the tool.
    """

    repository: Path
    name: str
    version: int
    network: Path | None
    keeps_state: bool
    openvino_precision: str | None
    fixed_size: tuple[int, int] | None
    points: int
    spec: InteractorSpec

    @property
    def detector(self) -> str | None:
        """The name of the detector that its crop policy uses, None where it uses none."""
        proposals = crop_policy(self.spec.crop).proposals
        return None if proposals is None else proposals.model

    @property
    def needs(self) -> Needs:
        """What it needs before it answers."""
        prompt = self.spec.prompt
        return Needs(
            min_positive_points=prompt.min_positive_points,
            min_negative_points=prompt.min_negative_points,
            extreme_points=prompt.extreme_points,
            box=prompt.box,
            max_points=self.points - (2 if prompt.box != "none" else 0),
        )


@dataclass(frozen=True, slots=True)
class DetectorFolder:
    """The highest version of a detector.

    name, network, openvino_precision: as of a ModelFolder. size: (height, width) of IMAGE.
    spec: what the `polywand` parameter says of the tool.
    """

    name: str
    network: Path | None
    openvino_precision: str | None
    size: tuple[int, int]
    spec: DetectorSpec


def read_folder(repository: Path, name: str, version: int = 0) -> ModelFolder:
    """Read what a model's configuration says of a tool; version 0 is the highest.

    Raises:
        ModelError
    """
    folder, config, spec = _find(repository, name)
    if spec.get("kind") != "interactor":
        raise ModelError(f"{folder / CONFIG_FILE}: no interactor; only these can be evaluated")
    version = _version(folder, version)
    inputs = {tensor.name: list(tensor.dims) for tensor in config.input}
    if "IMAGE" not in inputs or "POINTS" not in inputs:
        raise ModelError(f"{folder / CONFIG_FILE}: no interactor, it has no inputs IMAGE and POINTS")
    height, width = inputs["IMAGE"][:2]
    return ModelFolder(
        repository=repository,
        name=name,
        version=version,
        network=_network(folder, version),
        keeps_state="STATE" in inputs,
        openvino_precision=_openvino_precision(config),
        fixed_size=None if min(height, width) < 0 else (height, width),
        points=inputs["POINTS"][0],
        spec=_checked(InteractorSpec, spec, folder / CONFIG_FILE),
    )


def read_detector(repository: Path, name: str) -> DetectorFolder:
    """Read what a model's configuration says of a detector, as of its highest version.

    Raises:
        AbsentError: it is not in the repository. ModelError: it is something else, or its images vary in size.
    """
    folder, config, spec = _find(repository, name)
    if spec.get("kind") != "detector":
        raise ModelError(f"{folder / CONFIG_FILE}: '{name}' is no detector")
    size = next((tuple(tensor.dims[:2]) for tensor in config.input if tensor.name == "IMAGE"), ())
    if len(size) != 2 or min(size) < 1:
        raise ModelError(f"{folder / CONFIG_FILE}: no detector, it has no input IMAGE of a fixed size")
    return DetectorFolder(
        name=name,
        network=_network(folder, _version(folder, 0)),
        openvino_precision=_openvino_precision(config),
        size=size,
        spec=_checked(DetectorSpec, spec, folder / CONFIG_FILE),
    )


def is_there(repository: Path, name: str) -> bool:
    """Whether the repository has this tool, with a version in service."""
    try:
        _version(_find(repository, name)[0], 0)
    except AbsentError:
        return False
    return True


def _version(folder: Path, version: int) -> int:
    """Check that a model has this version in service; 0 is the highest."""
    served = versions(folder).served
    if not served or (version and version not in served):
        has = ", ".join(map(str, served)) or "none"
        raise AbsentError(f"{folder} has no version {version or ''}".rstrip() + f"; there: {has}")
    return version or served[-1]


def _network(folder: Path, version: int) -> Path | None:
    network = folder / str(version) / NETWORK_FILE
    return network if network.is_file() else None


def _find(repository: Path, name: str) -> tuple[Path, model_config_pb2.ModelConfig, dict[str, Any]]:
    """Find the folder of a tool's model: it has the tool's name, or lists the tool in its configuration."""
    paths = {path.parent.name: path for path in sorted(repository.glob(f"[!.]*/{CONFIG_FILE}"))}
    if name in paths:
        config = _parse(paths[name])
        tools = _tools(config, paths[name])
        if name not in tools:
            raise ModelError(f"{paths[name]}: say which of its tools: {', '.join(tools)}")
        return paths[name].parent, config, _spec(tools[name], paths[name])
    there = []
    for model, path in paths.items():
        try:
            config = _parse(path)
            tools = _tools(config, path)
        except ModelError:  # another model's configuration does not matter here
            there.append(model)
            continue
        if name in tools:
            return path.parent, config, _spec(tools[name], path)
        there += tools
    raise AbsentError(f"no model {name!r} in {repository}; there: {', '.join(there) or 'none'}")


def _parse(path: Path) -> model_config_pb2.ModelConfig:
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, ValueError, text_format.ParseError) as error:
        raise ModelError(f"{path}: {error}") from error


def _openvino_precision(config: model_config_pb2.ModelConfig) -> str | None:
    for accelerator in config.optimization.execution_accelerators.cpu_execution_accelerator:
        if accelerator.name == "openvino":
            return str(accelerator.parameters.get("precision", "f32"))
    return None


def _tools(config: model_config_pb2.ModelConfig, path: Path) -> dict[str, Any]:
    """What the `polywand` parameter says of each tool, by name; a spec alone is of a tool named like the model."""
    if PARAMETER_KEY not in config.parameters:
        raise ModelError(f"{path}: no tool of Polywand, it has no parameter {PARAMETER_KEY!r}")
    try:
        said = json.loads(config.parameters[PARAMETER_KEY].string_value)
    except ValueError as error:
        raise ModelError(f"{path}: its parameter {PARAMETER_KEY!r} is no JSON ({error})") from error
    tools = said.get("tools") if isinstance(said, dict) else None
    return tools if isinstance(tools, dict) else {path.parent.name: said}


def _checked(kind: type[Spec], spec: dict[str, Any], path: Path) -> Spec:
    """Check a spec as the service does."""
    try:
        return kind.model_validate(spec)
    except ValidationError as error:
        raise ModelError(f"{path}: its parameter {PARAMETER_KEY!r} is wrong: {error}") from error


def _spec(spec: Any, path: Path) -> dict[str, Any]:
    if not isinstance(spec, dict):
        raise ModelError(f"{path}: what its parameter {PARAMETER_KEY!r} says of a tool is no object")
    return spec
