"""Networks: an ONNX file in the runtime and the precision in which the service runs it on CPUs."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
import openvino
from numpy.typing import NDArray

from polywand_zoo.evaluation.modelfolder import DetectorFolder, ModelError, ModelFolder
from polywand_zoo.processor import has_bfloat16

OUTPUT = "LOGITS"
# OpenVINO's path of the ONNX metadata "bfloat16"; `polywand-zoo import` writes it.
BFLOAT16_METADATA = ["framework", "bfloat16"]


class Precision(StrEnum):
    """What networks compute in. SERVED: as the model's configuration says."""

    SERVED = "served"
    FP32 = "fp32"


class Network(Protocol):
    """A loaded network. inputs: their names. name: of its runtime and its precision, for the user."""

    inputs: frozenset[str]
    name: str

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """Compute LOGITS of one crop, [1, 1, h, w]."""

    def outputs(self, feeds: Mapping[str, NDArray[np.generic]], names: Sequence[str]) -> list[NDArray[np.float32]]:
        """Compute these outputs of one crop, [1, ...] each."""


def load_network(folder: ModelFolder | DetectorFolder, precision: Precision, threads: int) -> Network:
    """Load a model's ONNX file, which exists; threads: 0 is all cores.

    Raises:
        ModelError: the runtime refuses it.
    """
    assert folder.network is not None  # the caller has refused models without one
    asked = "f32" if precision is Precision.FP32 else folder.openvino_precision
    try:
        if folder.openvino_precision is None or asked is None:
            return _OnnxRuntime(folder.network, threads)
        return _OpenVino(folder.network, asked, threads)
    except Exception as error:  # the runtimes raise types that they do not export
        raise ModelError(f"{folder.network} cannot be loaded: {error}") from error


class _OnnxRuntime:
    name = "ONNX Runtime, f32"

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin while they wait take the cores from all others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = frozenset(tensor.name for tensor in self._session.get_inputs())

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """See Network."""
        return self.outputs(feeds, [OUTPUT])[0]

    def outputs(self, feeds: Mapping[str, NDArray[np.generic]], names: Sequence[str]) -> list[NDArray[np.float32]]:
        """See Network."""
        found: list[NDArray[np.float32]] = self._session.run(list(names), dict(feeds))
        return found


class _OpenVino:
    def __init__(self, path: Path, asked: str, threads: int) -> None:
        core = openvino.Core()
        network = core.read_model(path)
        precision = _precision(asked, network)
        network.reshape({port.any_name: [1, *list(port.partial_shape)[1:]] for port in network.inputs})
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        if threads:
            options["INFERENCE_NUM_THREADS"] = str(threads)
        self._compiled = core.compile_model(network, "CPU", options)
        self.inputs = frozenset(port.any_name for port in network.inputs)
        self.name = f"OpenVINO, {precision}"

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """See Network."""
        return self.outputs(feeds, [OUTPUT])[0]

    def outputs(self, feeds: Mapping[str, NDArray[np.generic]], names: Sequence[str]) -> list[NDArray[np.float32]]:
        """See Network."""
        found = self._compiled(dict(feeds))
        return [found[name] for name in names]


def _precision(asked: str, network: openvino.Model) -> str:
    """OpenVINO's name of a precision; "auto" is bfloat16 where the processor has it and the file does not refuse it."""
    if asked != "auto":
        return asked
    if network.has_rt_info(BFLOAT16_METADATA) and network.get_rt_info(BFLOAT16_METADATA).astype(str) == "off":
        return "f32"
    return "bf16" if has_bfloat16() else "f32"
