"""The process between the service and tritonserver: it cleans up, however the service ends.

    python -I -S launch.py TOKEN SCRATCH tritonserver ...

Standard input is the lifeline: the service holds its other end and writes nothing. When it is closed (by the service,
or because the service was killed), tritonserver and the processes of its models are killed. SIGTERM is passed on to
tritonserver, which then finishes its requests. After any end this process removes the shared memory of TOKEN and the
directory SCRATCH, and exits with tritonserver's status, or with 128 plus the signal that ended it.

The kernel's parent-death signal alone is not enough: it is sent when the *thread* that started the child ends, it
reaches the child but not the child's children, and it cleans nothing up. If this process itself is killed, that signal
ends tritonserver, the processes of its models notice and end, and the next launch on this machine cleans up.

It imports only the standard library (-I -S), so it starts in milliseconds.
"""

import contextlib
import ctypes
import fcntl
import os
import platform
import re
import selectors
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
REAP_TIMEOUT_S = 5.0

_LOCK_NAME = re.compile(r"polywand-([0-9a-f]{8})\.lock")
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER = 1
# Without it, kernels before 5.16 switch a mitigation on that slows down the whole process.
_SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4
# By machine: its name for filters, and the numbers of the system calls fchmod and seccomp.
_SYSTEM_CALLS = {"x86_64": (0xC000003E, 91, 317), "aarch64": (0xC00000B7, 52, 277)}
_POOL_MODE = 0o644  # of Triton's memory pools


def scratch_name(token: str) -> str:
    """Return the name of the directory that belongs to a token (eight hexadecimal digits)."""
    return f"polywand-{token}"


def region_prefix(token: str) -> str:
    """Return the prefix of the names of a token's shared memory regions."""
    return f"polywand-{token}-"


def lock(token: str) -> int:
    """Lock the token, so that other launches see that it is in use; return the lock's descriptor.

    A process id would not do: ids are reused, and mean nothing in another container that shares this memory.
    """
    path = SHARED_MEMORY / f"polywand-{token}.lock"
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            descriptor = _make_locked(path)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # a sweep removed the file between opening and locking


def _make_locked(path: Path) -> int:
    """Create a lock file that is locked before it has its name.

    Otherwise a sweep could take it for a dead launch's, and remove the files of the token.
    """
    unnamed = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileExistsError):
            os.link(unnamed, path)
    finally:
        unnamed.unlink()
    return descriptor


def sweep(scratch_root: Path) -> None:
    """Remove what dead launches of this user left: launches whose lock file exists and is not locked."""
    for path in SHARED_MEMORY.glob("polywand-*.lock"):
        match = _LOCK_NAME.fullmatch(path.name)
        if match:
            with contextlib.suppress(OSError):  # locked, another user's, or just removed
                _sweep_one(path, match[1], scratch_root)


def _sweep_one(path: Path, token: str, scratch_root: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_uid == os.geteuid():
            remove(token, scratch_root / scratch_name(token))
    finally:
        os.close(descriptor)


def remove(token: str, scratch: Path) -> None:
    """Remove a token's shared memory, scratch directory and lock file. The caller holds its lock, or it is dead."""
    for region in SHARED_MEMORY.glob(f"{region_prefix(token)}*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(scratch, ignore_errors=True)
    (SHARED_MEMORY / f"polywand-{token}.lock").unlink(missing_ok=True)


def remove_environments(processes: Path = Path("/proc"), environments: Path = Path("/tmp")) -> None:
    """Remove the empty directories that Triton's Python backend made for servers of this user that were killed; none
    while a server runs to which it may belong.
    """
    for process in processes.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if process.stat().st_uid == os.geteuid() and (process / "comm").read_text() == "tritonserver\n":
                return
    for directory in environments.glob("python_env_*"):
        with contextlib.suppress(OSError):  # another user's, or in use
            if directory.stat().st_uid == os.geteuid():
                directory.rmdir()


def keep_regions_private(libc: ctypes.CDLL) -> bool:
    """Keep Triton's memory pools unreadable for other users from the start; return whether that is possible here.

    The library boost creates a pool and then sets its mode with fchmod, whatever the umask is. So in this process and
    its children fchmod(..., 0644) is made to do nothing, and the umask counts. A later chmod is not enough: a process
    that has opened a pool by then can go on reading it. A mount namespace with its own /dev/shm needs privileges on
    many systems.

    Not possible where CUDA has to create its device first, which it does with a setuid program.
    """
    os.umask(0o077)
    if platform.machine() not in _SYSTEM_CALLS:
        return False
    if os.path.exists("/proc/driver/nvidia") and not os.path.exists("/dev/nvidia-uvm"):
        return False
    machine, fchmod, seccomp = _SYSTEM_CALLS[platform.machine()]
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 4),  # load the machine
            (0x15, 0, 5, machine),  # continue if equal, else jump to the end
            (0x20, 0, 0, 0),  # load the system call
            (0x15, 0, 3, fchmod),
            (0x20, 0, 0, 24),  # load its second argument
            (0x15, 0, 1, _POOL_MODE),
            (0x06, 0, 0, 0x00050000),  # do nothing, with errno 0
            (0x06, 0, 0, 0x7FFF0000),  # do it
        )
    )
    instructions = ctypes.create_string_buffer(program)
    filter_ = struct.pack("HP", len(program) // 8, ctypes.addressof(instructions))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    flags = _SECCOMP_FILTER_FLAG_SPEC_ALLOW
    return bool(libc.syscall(ctypes.c_long(seccomp), _SECCOMP_SET_MODE_FILTER, flags, filter_) == 0)


def wait_for_end(child: subprocess.Popen[bytes], lifeline: int, wakeups: int) -> None:
    """Return when the child has exited or the lifeline is closed; pass SIGTERM on until then.

    wakeups: where the interpreter writes the numbers of signals (`signal.set_wakeup_fd`).
    """
    service = os.getppid()
    with selectors.DefaultSelector() as selector:
        selector.register(lifeline, selectors.EVENT_READ)
        selector.register(wakeups, selectors.EVENT_READ)
        while child.poll() is None:
            ready = {key.fd for key, _ in selector.select(timeout=1)}
            if wakeups in ready and signal.SIGTERM in os.read(wakeups, 64):
                child.terminate()
            # Check the parent's id too: a child that the service forked may keep the lifeline's other end open.
            if (lifeline in ready and not os.read(lifeline, 64)) or os.getppid() != service:
                return


def kill_group(child: subprocess.Popen[bytes]) -> int:
    """Kill the rest of the child's process group, reap it, and return the child's exit status as a shell does."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(REAP_TIMEOUT_S)
    deadline = time.monotonic() + REAP_TIMEOUT_S
    with contextlib.suppress(ChildProcessError):
        # The models' processes are children of this one now (the subreaper), and hold shared memory until they end.
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.01)
    if child.returncode is None:
        return 128 + signal.SIGKILL
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def launch(token: str, scratch: Path, command: list[str]) -> int:
    """Run the command to its end and clean up; return its exit status."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    lock(token)  # until this process ends
    sweep(scratch.parent)
    keep_regions_private(libc)
    wakeups, notify = os.pipe()
    os.set_blocking(notify, False)
    signal.set_wakeup_fd(notify)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    launcher = os.getpid()

    def die_with_launcher() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != launcher:
            os._exit(128 + signal.SIGKILL)

    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=die_with_launcher,  # safe: this process has one thread  # noqa: PLW1509
    )
    try:
        wait_for_end(child, sys.stdin.fileno(), wakeups)
    finally:
        status = kill_group(child)
        remove(token, scratch)
        remove_environments()
    return status


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
