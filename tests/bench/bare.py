"""The floor: the model alone, asked by NVIDIA's own client at the same Triton, with its tensors ready beforehand."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import triton_to_np_dtype

from tests.bench.annotator import CHANNEL_OPTIONS
from tests.bench.photos import Click, Photo
from tests.bench.player import Answer, deadline

OUTPUT = "LOGITS"


class BareModel:
    """One client of the model. Use as an async context manager, which reads the model's configuration."""

    def __init__(self, url: str, model: str) -> None:
        self._model = model
        self._client = triton.InferenceServerClient(url, channel_args=CHANNEL_OPTIONS)
        self._inputs: list[Any] = []
        self._outputs = [triton.InferRequestedOutput(OUTPUT)]

    async def __aenter__(self) -> "BareModel":
        response = await self._client.get_model_config(self._model, as_json=True)
        self._inputs = [ready_input(config) for config in response["config"]["input"]]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.close()

    async def triton_version(self) -> str:
        """The server's own."""
        return str((await self._client.get_server_metadata()).version)

    async def infer(self) -> float:
        """Run the model once; returns the wait for its logits, in milliseconds."""
        begin = time.perf_counter()
        async with deadline():
            result = await self._client.infer(self._model, self._inputs, outputs=self._outputs)
        logits = result.as_numpy(OUTPUT)
        wait_ms = (time.perf_counter() - begin) * 1000
        if logits is None or not logits.size:
            raise RuntimeError(f"Triton answered without {OUTPUT}")
        return wait_ms

    async def open(self, photo: Photo) -> None:
        """The tensors are ready: a photo costs nothing here."""

    async def click(self, object_id: str, clicks: Sequence[Click]) -> Answer:
        """Run the model once, though the service does so three times for most first clicks: this is the floor."""
        return Answer(await self.infer(), 1)

    async def undo(self, object_id: str, clicks: Sequence[Click]) -> None:
        """Nothing to run."""


def ready_input(config: dict[str, Any]) -> Any:
    """An input as its configuration says, filled with what costs the same as a real one: noise, one click, no mask."""
    name, dtype = config["name"], config["data_type"].removeprefix("TYPE_")
    shape = [1, *(int(size) for size in config["dims"])]
    values = np.zeros(shape, triton_to_np_dtype(dtype))
    if name == "IMAGE":
        values[:] = np.random.default_rng(0).integers(0, 256, shape)
    elif name == "POINTS":
        values[..., 2] = -1  # padding
        values[0, 0] = (100, 100, 1)
    tensor = triton.InferInput(name, shape, dtype)
    tensor.set_data_from_numpy(values)
    return tensor
