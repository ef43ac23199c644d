"""The service that an evaluation starts for itself: `polywand-server` with its embedded Triton, as a child process."""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import polywand
from polywand_zoo.evaluation.modelfolder import ModelError, is_there, read_folder

START_SECONDS = 120.0
POLL_SECONDS = 0.1
STOP_SECONDS = 30.0
ADDRESS = re.compile(r"gRPC on ([\d.]+:\d+)")
LAST_LINES = 8
# The kernel sends the child SIGTERM when this process ends for any reason, so that it shuts down.
_RUN = """
import ctypes, os, runpy, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv.pop(1)):
    sys.exit(0)
runpy.run_module("polywand_server", run_name="__main__")
"""


@contextmanager
def own_service(repository: Path, models: Collection[str]) -> Iterator[str]:
    """Run the service on free loopback ports until the block ends; yields host:port once these models are ready.

    Also waits for the detectors that their crop policies use, where the repository has them: the service answers
    without proposals as long as the detector is not ready.

    Raises:
        ModelError: it cannot be started, or a model does not get ready; with the service's last log lines.
    """
    if importlib.util.find_spec("polywand_server") is None:
        raise ModelError("the service is not installed here (pip install 'polywand[embedded]'); or name one: --service")
    options = ["--host=127.0.0.1", "--grpc-port=0", "--http-port=0", f"--model-repository={repository}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POLYWAND_")}
    with tempfile.TemporaryDirectory(prefix="polywand-evaluate-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", _RUN, str(os.getpid()), *options],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env=environment,
                process_group=0,  # Ctrl-C reaches this process alone, which stops the child
            )
        try:
            yield _wait(process, log, [*models, *_detectors(repository, models)])
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _detectors(repository: Path, models: Collection[str]) -> set[str]:
    """List the detectors in the repository that these models' crop policies use."""
    found = set()
    for name in models:
        try:
            detector = read_folder(repository, name).detector
        except ModelError:
            continue  # the service says why
        if detector is not None and is_there(repository, detector):
            found.add(detector)
    return found


def _wait(process: subprocess.Popen[bytes], log: Path, models: Collection[str]) -> str:
    deadline = time.monotonic() + START_SECONDS
    target, lacking = "", "the service did not start"
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(POLL_SECONDS)
        if not target and (found := ADDRESS.search(log.read_text(errors="replace"))):
            target = found.group(1)
        if target:
            lacking = _not_ready(target, models)
            if not lacking:
                return target
    last = "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
    raise ModelError(f"{lacking}; the last that the service said:\n{last}")


def _not_ready(target: str, models: Collection[str]) -> str:
    """Say which model is not ready yet, and why; "" when all are."""
    with polywand.connect(target) as client:
        there = {model.name: model for model in client.models()}
    for name in models:
        if name not in there:
            return f"model '{name}' is not in the service's list"
        if not there[name].ready:
            return f"model '{name}' does not get ready: {there[name].state_message}"
    return ""
