"""The processes of Python models ("stubs" in Triton's words). Triton may call one dead that still runs."""

import contextlib
import os
import re
import signal
from pathlib import Path

PROCESSES = Path("/proc")
PROGRAM = "triton_python_backend_stub"


def kill_stubs(model: str, process: str | None, prefix: str) -> int:
    """Kill the processes of all instances and versions of a model; return how many still ran.

    Processes of several versions have the same names, and a lack of processor time affects all of them.
    process: the name of one, if known; it differs from the model's if its instance group has a name.
    prefix: of the names of its server's shared memory.
    """
    is_instance = re.compile(rf"{re.escape(model)}_\d+(_\d+)?").fullmatch
    killed = 0
    for folder in PROCESSES.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
            program, *arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            is_ours = Path(program).name == PROGRAM and any(argument.startswith(prefix) for argument in arguments)
            if is_ours and (process in arguments or any(map(is_instance, arguments))):
                os.kill(int(folder.name), signal.SIGKILL)
                killed += 1
    return killed
