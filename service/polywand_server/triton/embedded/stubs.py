"""The processes of Python models ("stubs" in Triton's words), which Triton starts and may give up on too early."""

import contextlib
import os
import re
import signal
from pathlib import Path

PROCESSES = Path("/proc")
PROGRAM = "triton_python_backend_stub"


def kill_stubs(model: str, process: str | None, prefix: str) -> int:
    """Kill the processes of a model, all instances and versions of it, if they live; returns how many did.

    Versions have processes of equal names, and what starves one process starves all.
    process: the name of one, where it is known: not that of the model if its instance group has a name of its own.
    prefix: what the names of its server's shared memory begin with.
    """
    is_instance = re.compile(rf"{re.escape(model)}_\d+(_\d+)?").fullmatch
    killed = 0
    for folder in PROCESSES.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended while we looked, or is another user's
            program, *arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            is_ours = Path(program).name == PROGRAM and any(argument.startswith(prefix) for argument in arguments)
            if is_ours and (process in arguments or any(map(is_instance, arguments))):
                os.kill(int(folder.name), signal.SIGKILL)
                killed += 1
    return killed
