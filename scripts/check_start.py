"""Prove that the environment of the Python that runs this serves: start the service, wait until it is ready, end it."""

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

READY_SECONDS = 120
END_SECONDS = 60


def is_ready(port: int) -> bool:
    """Say whether the service answers that it is ready."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError):
        return False


def main() -> None:
    """Start, wait, end; exit with a sentence where that fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Path(sys.executable).with_name("polywand-server")
    with subprocess.Popen([server, "--host=127.0.0.1", "--grpc-port=0", f"--http-port={port}"]) as service:
        give_up_at = time.monotonic() + READY_SECONDS
        try:
            while not (ready := is_ready(port)) and service.poll() is None and time.monotonic() < give_up_at:
                time.sleep(0.2)
            service.send_signal(signal.SIGTERM)
            code = service.wait(END_SECONDS)
        finally:
            service.kill()
    if not ready or code:
        sys.exit(f"The service {'ended badly' if ready else 'was never ready'}; its exit code is {code}.")


if __name__ == "__main__":
    main()
