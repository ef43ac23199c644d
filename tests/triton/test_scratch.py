"""The folder of the embedded Triton's files: what is wrong with it is one sentence at the start."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.running import running_service


def start(*options: str, **environment: str) -> str:
    """Start a service that must not start; return what it says."""
    program = str(Path(sys.executable).parent / "polywand-server")
    command = [program, "--grpc-port=0", "--http-port=0", *options]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | environment)
    assert ran.returncode == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stderr


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a file system in memory."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "polywand-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("NOT RUN: only root can mount file systems")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_its_files_are_where_they_are_wanted_and_go_with_it(puppet_models, tmp_path):
    with mounted(tmp_path / "s", "size=64m") as scratch:
        options = f"--model-repository={puppet_models}", f"--scratch={scratch}", "--ready-models=disk"
        with running_service(tmp_path / "log", *options) as service:
            service.wait_ready()
            assert service.triton.startswith(f"unix:{scratch}/")
            (directory,) = scratch.iterdir()
            assert directory.stat().st_mode & 0o777 == 0o700
            service.process.terminate()
            assert service.process.wait(60) == 0
            assert list(scratch.iterdir()) == []


def test_programs_must_be_executable_there(puppet_models, tmp_path):
    with mounted(tmp_path / "s", "size=64m,noexec") as scratch:
        said = start(f"--model-repository={puppet_models}", f"--scratch={scratch}")
        assert f"--scratch: '{scratch}' is mounted noexec" in said
        said = start(f"--model-repository={puppet_models}", TMPDIR=str(scratch))
        assert f"'{scratch}' is mounted noexec" in said
        assert "--scratch" in said


def test_there_must_be_room(puppet_models, tmp_path):
    with mounted(tmp_path / "s", "size=1m") as scratch:
        assert "MiB left of" in start(f"--model-repository={puppet_models}", f"--scratch={scratch}")


def test_it_must_be_writable(puppet_models, tmp_path):
    with mounted(tmp_path / "s", "ro") as scratch:
        said = start(f"--model-repository={puppet_models}", f"--scratch={scratch}")
        assert f"--scratch: '{scratch}' cannot be written" in said


def test_it_must_be_there(puppet_models, tmp_path):
    said = start(f"--model-repository={puppet_models}", f"--scratch={tmp_path / 'none'}")
    assert f"--scratch: there is no folder '{tmp_path / 'none'}'" in said


def test_its_path_must_be_short_enough_for_a_socket(puppet_models, tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    assert "is too long for the path of a socket" in start(f"--model-repository={puppet_models}", f"--scratch={long}")
