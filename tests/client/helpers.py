"""What several of the client's tests use."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from tests.running import Service

FACE = (225, 110)
"""On the face of skimage's astronaut."""

KILL_SECONDS = 0.05


def polywand_threads() -> list[str]:
    """The client's own threads that live now; grpc's carry no name of ours."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("polywand")]


@contextmanager
def outage(service: Service) -> Iterator[None]:
    """Kill the service's Triton with SIGKILL, and again whenever it comes back, until the block ends."""
    over = threading.Event()

    def keep_killing() -> None:
        while not over.wait(KILL_SECONDS):
            _kill_triton(service)

    _kill_triton(service)
    killer = threading.Thread(target=keep_killing)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()


def _kill_triton(service: Service) -> None:
    for child in psutil.Process(service.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.name() == "tritonserver":
                child.kill()
