"""A model's folder in the model repository: what its config.pbtxt says, as far as an evaluation needs it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from polywand_zoo.evaluation.prompts import Needs

PARAMETER_KEY = "polywand"
CONFIG_FILE, NETWORK_FILE = "config.pbtxt", "model.onnx"
DEFAULT_THRESHOLD = 0.5


class ModelError(Exception):
    """A model that cannot be evaluated, or not in the way that was asked for; says why, and what would help."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One version of an interactor.

    network: its ONNX file, or None where it has none. keeps_state: whether it hands a STATE from prompt to prompt.
    openvino_precision: "f32", "bf16" or "auto" where it runs in OpenVINO on processors, None where in ONNX Runtime.
    fixed_size: (height, width) of IMAGE, None where they vary. points: rows of POINTS.
    spec: the `polywand` parameter, as it stands there.
    """

    name: str
    version: int
    network: Path | None
    keeps_state: bool
    openvino_precision: str | None
    fixed_size: tuple[int, int] | None
    points: int
    spec: dict[str, Any]

    @property
    def threshold(self) -> float:
        """From which a probability belongs to the mask."""
        return float(self.spec.get("threshold", DEFAULT_THRESHOLD))

    @property
    def needs(self) -> Needs:
        """What it needs before it answers."""
        prompt = self.spec.get("prompt", {})
        box = prompt.get("box", "none")
        return Needs(
            min_positive_points=prompt.get("min_positive_points", 1),
            min_negative_points=prompt.get("min_negative_points", 0),
            extreme_points=prompt.get("extreme_points", 0),
            box=box,
            max_points=self.points - (2 if box != "none" else 0),
        )


def read_folder(repository: Path, name: str, version: int = 0) -> ModelFolder:
    """Read a model's configuration; version 0 is the highest.

    Raises:
        ModelError
    """
    folder = repository / name
    config = _parse(folder / CONFIG_FILE, name)
    versions = sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())
    if not versions or (version and version not in versions):
        has = ", ".join(map(str, versions)) or "none"
        raise ModelError(f"{folder} has no version {version or ''}".rstrip() + f"; there: {has}")
    version = version or versions[-1]
    inputs = {tensor.name: list(tensor.dims) for tensor in config.input}
    if "IMAGE" not in inputs or "POINTS" not in inputs:
        raise ModelError(f"{folder / CONFIG_FILE}: no interactor, it has no inputs IMAGE and POINTS")
    height, width = inputs["IMAGE"][:2]
    network = folder / str(version) / NETWORK_FILE
    return ModelFolder(
        name=name,
        version=version,
        network=network if network.is_file() else None,
        keeps_state="STATE" in inputs,
        openvino_precision=_openvino_precision(config),
        fixed_size=None if min(height, width) < 0 else (height, width),
        points=inputs["POINTS"][0],
        spec=_spec(config, folder / CONFIG_FILE),
    )


def _parse(path: Path, name: str) -> model_config_pb2.ModelConfig:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        there = sorted(found.parent.name for found in path.parent.parent.glob(f"*/{CONFIG_FILE}"))
        raise ModelError(f"no model {name!r} in {path.parent.parent}; there: {', '.join(there) or 'none'}") from error
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise ModelError(f"{path}: {error}") from error


def _openvino_precision(config: model_config_pb2.ModelConfig) -> str | None:
    for accelerator in config.optimization.execution_accelerators.cpu_execution_accelerator:
        if accelerator.name == "openvino":
            return str(accelerator.parameters.get("precision", "f32"))
    return None


def _spec(config: model_config_pb2.ModelConfig, path: Path) -> dict[str, Any]:
    if PARAMETER_KEY not in config.parameters:
        raise ModelError(f"{path}: no tool of Polywand, it has no parameter {PARAMETER_KEY!r}")
    try:
        spec = json.loads(config.parameters[PARAMETER_KEY].string_value)
    except ValueError as error:
        raise ModelError(f"{path}: its parameter {PARAMETER_KEY!r} is no JSON ({error})") from error
    if not isinstance(spec, dict) or spec.get("kind") != "interactor":
        raise ModelError(f"{path}: no interactor; only these can be evaluated")
    return spec
