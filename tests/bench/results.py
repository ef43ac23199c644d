"""All that one run found out, as it goes into the table, the plot and the JSON."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.bench.crowd import CrowdResult
from tests.bench.drag import DragResult
from tests.bench.flood import FloodResult
from tests.bench.machine import Memory
from tests.bench.samples import Samples
from tests.bench.sizes import SizeResult


@dataclass(slots=True)
class Results:
    """One run. throughput: alternating blocks. memory_start, memory_end: with nobody connected."""

    machine: dict[str, object]
    options: dict[str, object]
    memory_start: Memory
    memory_end: Memory
    sizes: list[SizeResult] = field(default_factory=list)
    crowds: list[CrowdResult] = field(default_factory=list)
    throughput: list[CrowdResult] = field(default_factory=list)
    drags: list[DragResult] = field(default_factory=list)
    floods: list[FloodResult] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0

    def size(self, megapixels: float) -> SizeResult | None:
        """Of one photo size, if it was measured."""
        return next((size for size in self.sizes if size.megapixels == megapixels), None)

    def crowd(self, way: str, megapixels: float | None, annotators: int) -> CrowdResult | None:
        """Of so many annotators, if they were measured; megapixels None: any."""
        return next(
            (
                crowd
                for crowd in self.crowds
                if (crowd.way, crowd.annotators) == (way, annotators) and megapixels in (None, crowd.megapixels)
            ),
            None,
        )

    def throughput_of(self, way: str) -> Samples:
        """Inferences a second, block by block."""
        return Samples(block.inferences_per_second for block in self.throughput if block.way == way)


def plain(value: Any) -> Any:
    """A result as JSON holds it: samples with their summary, properties beside the fields."""
    if isinstance(value, Samples):
        return value.summary()
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        names += [name for name, item in vars(type(value)).items() if isinstance(item, property)]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value
