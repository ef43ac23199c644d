"""The processes of Python models ("stubs" in Triton's words), which Triton starts and may give up on too early."""

import contextlib
import os
import signal
from pathlib import Path

_PROGRAM = "triton_python_backend_stub"


def kill_stub(name: str, prefix: str, processes: Path = Path("/proc")) -> int:
    """Kill the processes of a model's instance ("m_0_0"), one for each version; returns how many there were.

    prefix: what the names of its server's shared memory begin with.
    """
    killed = 0
    for process in processes.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended while we looked, or is another user's
            program, *arguments = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            is_ours = Path(program).name == _PROGRAM and any(argument.startswith(prefix) for argument in arguments)
            if is_ours and name in arguments:
                os.kill(int(process.name), signal.SIGKILL)
                killed += 1
    return killed
