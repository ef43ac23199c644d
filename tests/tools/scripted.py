"""A Triton that says what a test wants, when it wants it."""

import asyncio

from polywand_server.errors import UnavailableError
from polywand_server.triton.client import IndexEntry, ModelConfig, TensorConfig

CARD = '{"kind": "interactor", "display_name": "M", "crop": {"policy": "whole"}}'


class ScriptedTriton:
    """Has models in service, `m` at first. is_up: whether it answers. held: those whose load does not end yet."""

    def __init__(self, *names: str) -> None:
        self.is_up = True
        self.indices = 0
        self.held: set[str] = set()
        self._states = dict.fromkeys(names or ("m",), "READY")

    def restart(self) -> None:
        """Be replaced, before anybody notices."""
        self._states = dict.fromkeys(self._states, "")

    async def load(self, name: str, config: str = "") -> None:
        while name in self.held:  # noqa: ASYNC110 - a set, that a test changes
            await asyncio.sleep(0.01)
        self._states[name] = "READY"

    async def repository_index(self) -> list[IndexEntry]:
        self.indices += 1
        if not self.is_up:
            raise UnavailableError("away")
        return [IndexEntry(name, 1 if state else None, state, "") for name, state in self._states.items()]

    async def model_config(self, name: str, version: int = 0) -> ModelConfig:
        inputs = {"IMAGE": TensorConfig("UINT8", (16, 16, 3)), "POINTS": TensorConfig("FP32", (16, 3))}
        outputs = {"LOGITS": TensorConfig("FP32", (1, 16, 16))}
        return ModelConfig(name, "python", 2, inputs, outputs, {"polywand": CARD})

    async def model_ready(self, name: str, version: int) -> bool:
        return True
