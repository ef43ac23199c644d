"""A Triton that says what a test wants, when it wants it."""

from polywand_server.errors import UnavailableError
from polywand_server.triton.client import IndexEntry, ModelConfig, TensorSpec

CARD = '{"kind": "interactor", "display_name": "M", "crop": {"policy": "whole"}}'


class ScriptedTriton:
    """Has one model, `m`, in service; is_up: whether it answers."""

    def __init__(self) -> None:
        self.is_up = True
        self.indices = 0

    async def repository_index(self) -> list[IndexEntry]:
        self.indices += 1
        if not self.is_up:
            raise UnavailableError("away")
        return [IndexEntry("m", 1, "READY", "")]

    async def model_config(self, name: str, version: int = 0) -> ModelConfig:
        inputs = {"IMAGE": TensorSpec("UINT8", (16, 16, 3)), "POINTS": TensorSpec("FP32", (16, 3))}
        outputs = {"LOGITS": TensorSpec("FP32", (1, 16, 16))}
        return ModelConfig("m", "python", 2, inputs, outputs, {"polywand": CARD})

    async def model_ready(self, name: str, version: int) -> bool:
        return True
