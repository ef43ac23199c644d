"""What a service takes of the machine at one moment, and whether that has grown since another."""

from dataclasses import astuple, dataclass, fields
from pathlib import Path

import psutil

from tests.faults.footprint import (
    DETECT_STREAMS,
    INTERACT_STREAMS,
    MASK_MEMORY,
    SLOTS,
    TASKS,
    children,
    descriptors,
    scratch,
    shared_memory,
)
from tests.running import Service, images_in_use

MEBIBYTE = 2**20


@dataclass(frozen=True)
class State:
    """Memory in MiB; rss, uss, descriptors, threads and tasks are the service's own, triton_rss is of all below it.

    shared: files in /dev/shm. slots_mib: memory shared with Triton whose names are gone already.
    """

    rss: float
    uss: float
    triton_rss: float
    processes: float
    descriptors: float
    threads: float
    tasks: float
    shared_files: float
    shared_mib: float
    slots_mib: float
    scratch_files: float
    streams: float
    image_mib: float
    mask_mib: float


# How much more of each there may be at the end than after the warm-up, both times with no client there.
ALLOWANCES = State(
    rss=64,
    uss=64,
    triton_rss=128,
    processes=0,
    descriptors=2,
    threads=4,
    tasks=0,
    shared_files=0,
    shared_mib=16,
    slots_mib=32,
    scratch_files=0,
    streams=0,
    image_mib=0,
    mask_mib=0,
)


def look(service: Service) -> State:
    """Look at a running service."""
    own, below = psutil.Process(service.process.pid), children(service)
    memory, shared = own.memory_full_info(), shared_memory(service)
    return State(
        rss=memory.rss / MEBIBYTE,
        uss=memory.uss / MEBIBYTE,
        triton_rss=sum(map(_rss, below)) / MEBIBYTE,
        processes=len(below),
        descriptors=descriptors(service),
        threads=own.num_threads(),
        tasks=service.metric(TASKS),
        shared_files=len(shared),
        shared_mib=sum(shared.values()) / MEBIBYTE,
        slots_mib=service.metric(SLOTS) / MEBIBYTE,
        scratch_files=len(list(Path(scratch(service)).rglob("*"))),
        streams=service.metric(INTERACT_STREAMS) + service.metric(DETECT_STREAMS),
        image_mib=images_in_use(service) / MEBIBYTE,
        mask_mib=service.metric(MASK_MEMORY) / MEBIBYTE,
    )


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


HEADER = " ".join(f"{field.name:>13}" for field in fields(State))


def row(state: State) -> str:
    """One line under `HEADER`."""
    return " ".join(f"{value:13.0f}" for value in astuple(state))


def growth(before: State, after: State) -> list[str]:
    """A sentence for each thing that has grown beyond its allowance."""
    found = []
    for field in fields(State):
        old, new, allowed = (getattr(state, field.name) for state in (before, after, ALLOWANCES))
        if new - old > allowed:
            found.append(f"{field.name} grew from {old:.0f} to {new:.0f}; {allowed} more were allowed")
    return found
