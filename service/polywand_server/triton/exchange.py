"""One inference and the memory of its tensors: shared with Triton if it is on this host, else sent by gRPC."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import numpy as np

from polywand_server.caller import current
from polywand_server.triton.client import TritonClient
from polywand_server.triton.failures import RegionError
from polywand_server.triton.shared_memory import SharedMemory
from polywand_server.triton.tensors import NOT_SHARED, Array, SharedTensors, TensorSpec, TensorSpecs


class Exchange:
    """One inference: fill `inputs` (arrays with the batch axis, whose contents are undefined at first), then `run`."""

    def __init__(
        self,
        client: TritonClient,
        model: str,
        version: int,
        outputs: TensorSpecs,
        inputs: Mapping[str, Array],
        shared: SharedTensors,
    ) -> None:
        self.model = model
        self.version = version
        self.inputs = inputs
        self._client = client
        self._outputs = list(outputs)
        self._shared = shared

    async def run(self, *, timeout_s: float, priority: int = 0, traceparent: str = "") -> dict[str, Array]:
        """Run the model once; returns its outputs, which are valid until the block of `exchange` ends.

        priority: 1 is the most urgent, 0 the model's default. traceparent: of the span above Triton's; empty for none.
        Raises what `TritonClient.infer` does.
        """
        by_grpc = {} if self._shared.inputs else self.inputs
        try:
            return await self._infer(by_grpc, self._shared, timeout_s, priority, traceparent)
        except RegionError:  # Triton was restarted and does not know this slot
            self._shared = NOT_SHARED
            return await self._infer(self.inputs, NOT_SHARED, timeout_s, priority, traceparent)

    @property
    def is_shared(self) -> bool:
        """Whether the tensors are in a slot that Triton knows."""
        return self._shared is not NOT_SHARED

    async def _infer(
        self, inputs: Mapping[str, Array], shared: SharedTensors, timeout_s: float, priority: int, traceparent: str
    ) -> dict[str, Array]:
        return await self._client.infer(
            self.model,
            self.version,
            inputs,
            self._outputs,
            shared=shared,
            timeout_s=timeout_s,
            request_id=current().request_id,
            traceparent=traceparent,
            priority=priority,
        )


@asynccontextmanager
async def exchange(
    client: TritonClient,
    memory: SharedMemory | None,
    model: str,
    version: int,
    inputs: Mapping[str, TensorSpec],
    outputs: TensorSpecs,
) -> AsyncIterator[Exchange]:
    """Hold memory for one inference's tensors until the block ends.

    memory: None for a Triton that shares no memory with this process.
    A slot is used again only if the block ended without an error: a cancelled block may have left a thread that still
    writes to it, or a request in Triton that still reads it.
    """
    known = {name: spec for name, spec in outputs.items() if spec is not None}
    slot = await memory.acquire((*inputs.values(), *known.values())) if memory else None
    if memory is None or slot is None:
        arrays = {name: np.empty(spec.shape, spec.numpy_dtype) for name, spec in inputs.items()}
        yield Exchange(client, model, version, outputs, arrays, NOT_SHARED)
        return
    shared = slot.lay_out(inputs, known)
    current = Exchange(client, model, version, outputs, shared.inputs, shared)
    try:
        yield current
    except BaseException:
        memory.discard(slot)
        raise
    if current.is_shared:
        memory.release(slot)
    else:
        memory.discard(slot)
