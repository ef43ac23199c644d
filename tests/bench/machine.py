"""What the figures were measured on, and what the processes hold."""

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

MEGABYTE = 1e6
LIBRARIES = (
    "grpcio", "tritonclient", "openvino", "numpy", "opencv-python-headless", "starlette", "uvicorn", "uvloop",
    "httptools", "orjson", "aiohttp",
)  # fmt: skip


def facts(triton_version: str) -> dict[str, object]:
    """The machine, the libraries and the commit. load_before: runnable processes, over the last minute."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "triton": triton_version,
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def cpu_model() -> str:
    """As Linux calls it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def commit() -> str:
    """The commit that is checked out, and whether files differ from it."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@dataclass(frozen=True, slots=True)
class Memory:
    """Megabytes, shared pages divided among those who share them (PSS). children: Triton's, with its models'."""

    server: float
    children: float


def memory(pid: int) -> Memory:
    """What a server and its children hold now."""
    server = psutil.Process(pid)
    children = sum(pss(child) for child in server.children(recursive=True))
    return Memory(pss(server), children)


def pss(process: psutil.Process) -> float:
    """Megabytes of one process; 0 when it has just gone."""
    try:
        return float(process.memory_full_info().pss / MEGABYTE)
    except psutil.NoSuchProcess:
        return 0.0
