"""One inference's tensors: filled where they are read, through shared memory if Triton is on this host, or sent."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import numpy as np

from polywand_server.caller import current
from polywand_server.triton.client import TritonClient
from polywand_server.triton.failures import RegionError
from polywand_server.triton.shared_memory import SharedMemory
from polywand_server.triton.tensors import NOWHERE, Array, Placed, TensorForm

# Of a tensor whose size only the model knows: it is sent.
Forms = Mapping[str, TensorForm | None]


class Exchange:
    """Fill `inputs` (arrays with the batch axis, whose contents are undefined at first), then `run`."""

    def __init__(
        self,
        client: TritonClient,
        model: str,
        version: int,
        outputs: Forms,
        inputs: Mapping[str, Array],
        placed: Placed,
    ) -> None:
        self.model = model
        self.version = version
        self.inputs = inputs
        self._client = client
        self._outputs = list(outputs)
        self._placed = placed

    async def run(self, *, timeout_s: float, priority: int = 0) -> dict[str, Array]:
        """Run the model once; returns its outputs, which are valid until the exchange is over.

        priority: 1 is the most urgent, 0 the model's default. Raises what `TritonClient.infer` does.
        """
        by_grpc = {} if self._placed.inputs else self.inputs
        try:
            return await self._infer(by_grpc, self._placed, timeout_s, priority)
        except RegionError:  # a new Triton: it never heard of this slot
            self._placed = NOWHERE
            return await self._infer(self.inputs, NOWHERE, timeout_s, priority)

    @property
    def slot_is_sound(self) -> bool:
        """Whether Triton knows the slot, if there is one."""
        return self._placed is not NOWHERE

    async def _infer(
        self, inputs: Mapping[str, Array], placed: Placed, timeout_s: float, priority: int
    ) -> dict[str, Array]:
        return await self._client.infer(
            *(self.model, self.version, inputs, self._outputs),
            placed=placed,
            timeout_s=timeout_s,
            request_id=current().request_id,
            priority=priority,
        )


@asynccontextmanager
async def exchange(
    client: TritonClient,
    memory: SharedMemory | None,
    model: str,
    version: int,
    inputs: Mapping[str, TensorForm],
    outputs: Forms,
) -> AsyncIterator[Exchange]:
    """Make room for one inference's tensors until the block ends.

    memory: None for a Triton that shares none with this process.
    A slot serves again only after a block that ended well: whoever was cancelled may have left a thread that still
    writes to it, and Triton a request that still reads it.
    """
    known = {name: form for name, form in outputs.items() if form is not None}
    slot = await memory.take((*inputs.values(), *known.values())) if memory else None
    if memory is None or slot is None:
        arrays = {name: np.empty(form.shape, form.numpy_dtype) for name, form in inputs.items()}
        yield Exchange(client, model, version, outputs, arrays, NOWHERE)
        return
    placed = slot.place(inputs, known)
    current = Exchange(client, model, version, outputs, placed.inputs, placed)
    try:
        yield current
    except BaseException:
        memory.retire(slot)
        raise
    if current.slot_is_sound:
        memory.put_back(slot)
    else:
        memory.retire(slot)
