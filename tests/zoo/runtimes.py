"""The runtimes that the service uses, each as a function from a module's inputs to its output."""

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import openvino
import torch
from numpy.typing import NDArray
from torch import nn

from polywand_zoo.onnx_export import trace

RUNTIMES = ("PyTorch", "ONNX Runtime", "OpenVINO f32", "OpenVINO bf16")

Array = NDArray[np.generic]
Run = Callable[..., NDArray[np.float32]]


class BeforeConvolution(nn.Module):
    """A module in front of a convolution that changes nothing: only there does OpenVINO compute in bfloat16."""

    def __init__(self, module: nn.Module, channels: int) -> None:
        super().__init__()
        self.module = module
        self.same = nn.Conv2d(channels, channels, 1, bias=False)
        self.same.weight.data = torch.eye(channels).view(channels, channels, 1, 1)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        same: torch.Tensor = self.same(self.module(*inputs))
        return same


def runner(
    runtime: str, module: nn.Module, example: tuple[Array, ...], variable: dict[str, dict[int, str]] | None = None
) -> Run:
    """Return what runs a module of tensors to a tensor; variable: axes of INPUT_0 and so on, and of OUTPUT."""
    if runtime == "PyTorch":

        def run(*inputs: Array) -> NDArray[np.float32]:
            with torch.inference_mode():
                return module(*(torch.from_numpy(array) for array in inputs)).numpy()

        return run
    names = tuple(f"INPUT_{index}" for index in range(len(example)))
    tensors = tuple(torch.from_numpy(array) for array in example)
    model = trace(module.eval(), tensors, names, "OUTPUT", variable=variable).SerializeToString()
    if runtime == "ONNX Runtime":
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))[0]
    hint = {"INFERENCE_PRECISION_HINT": runtime.removeprefix("OpenVINO ")}
    compiled = openvino.Core().compile_model(openvino.Core().read_model(model), "CPU", hint)
    return lambda *inputs: compiled(list(inputs))[0]
