"""The memory that this process may use: of its container, or else of the machine."""

import os
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
SHARED_MEMORY = Path("/dev/shm")
# A limit beyond this is none: version 1 has a number near 2 ** 63 for it.
NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class Memory:
    """nbytes: that may be used. of: whose limit that is, in words."""

    nbytes: int
    of: str


def usable_memory(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> Memory:
    """Return the smallest limit of the control groups of this process (version 2 or 1), or the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = min(_limits(cgroups, membership), default=NO_LIMIT)
    return Memory(limit, "the container") if limit < machine else Memory(machine, "the machine")


def shared_memory_bytes(folder: Path = SHARED_MEMORY) -> int:
    """Return the size of the file system for shared memory; 0 if there is none."""
    try:
        system = os.statvfs(folder)
    except OSError:
        return 0
    return system.f_blocks * system.f_frsize


def _limits(cgroups: Path, membership: Path) -> list[int]:
    found = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            roots, file = [cgroups, cgroups / "unified"], "memory.max"
        elif "memory" in controllers.split(","):
            roots, file = [cgroups / "memory"], "memory.limit_in_bytes"
        else:
            continue
        own = Path(path.lstrip("/"))
        # In a container, the group itself is often mounted as the root.
        for root in roots:
            for folder in (root / own, *(root / parent for parent in own.parents)):
                found += _limit(folder / file)
    return [limit for limit in found if limit < NO_LIMIT]


def _limit(file: Path) -> list[int]:
    try:
        return [int(file.read_text())]
    except (OSError, ValueError):  # there is none, or it is "max"
        return []
