"""Node's packages, for the tests of the contract and of the TypeScript client."""

import fcntl
import functools
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
INSTALLED = "node_modules/.package-lock.json"
INSTALL_SECONDS = 300


def run(*command: str | Path, cwd: Path = ROOT, seconds: float = 120, **more: str) -> subprocess.CompletedProcess[str]:
    """Run one of the installed packages' commands, or node itself; more: variables of its environment."""
    install()
    environment = os.environ | {"PATH": f"{ROOT / 'node_modules/.bin'}:{os.environ['PATH']}", "NO_COLOR": "1"} | more
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )


@functools.cache
def install() -> None:
    """Install what package-lock.json says, unless it is there. Fails with make's sentence where npm is missing."""
    lock = Path(os.environ.get("TMPDIR", "/tmp")) / f"polywand-npm-{os.getuid()}.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # of the processes that run tests side by side, one installs
        done = subprocess.run(
            ["make", "--silent", INSTALLED],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    assert done.returncode == 0, done.stderr
