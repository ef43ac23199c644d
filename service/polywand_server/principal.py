"""Principals: on whose behalf calls are made, and what each may do."""

from dataclasses import dataclass, field
from enum import Enum


class Role(Enum):
    """What a principal may do. Health can be asked for by everybody."""

    ANNOTATE = "annotate"  # call the annotation service, and ask for its contract
    METRICS = "metrics"  # read /metrics


@dataclass(frozen=True, slots=True)
class Quotas:
    """What one principal may have, over all of its connections. None is no limit.

    streams: open at once. calls: at once, streams included. prompts_per_second, frames_per_second: answered, on
    average; a second's worth at once. image_bytes: of decoded images that it uses, or that are kept for it.
    """

    streams: int | None = None
    calls: int | None = None
    prompts_per_second: float | None = None
    frames_per_second: float | None = None
    image_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """name: empty for everybody, where there is no authentication."""

    name: str
    roles: frozenset[Role]
    quotas: Quotas = field(default=Quotas())


ANYBODY = Principal("", frozenset(Role))
