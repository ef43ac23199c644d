"""Check that this Python's environment can serve: start the service, wait until it is ready, stop it."""

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
    """Return whether /readyz answers 200."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError):
        return False


def main() -> None:
    """Start, wait, stop; exit with an error text if one of them fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Path(sys.executable).with_name("polywand-server")
    with subprocess.Popen([server, "--host=127.0.0.1", "--grpc-port=0", f"--http-port={port}"]) as service:
        deadline = time.monotonic() + READY_SECONDS
        try:
            while not (ready := is_ready(port)) and service.poll() is None and time.monotonic() < deadline:
                time.sleep(0.2)
            service.send_signal(signal.SIGTERM)
            code = service.wait(END_SECONDS)
        finally:
            service.kill()
    if not ready or code:
        sys.exit(f"The service {'did not stop cleanly' if ready else 'did not become ready'}; its exit code is {code}.")


if __name__ == "__main__":
    main()
