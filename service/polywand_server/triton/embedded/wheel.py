"""NVIDIA's tritonserver as the nvidia-pytriton wheel carries it: where it is, and what it wants around it."""

import ctypes.util
import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from polywand_server.triton.embedded.launch import region_prefix

STUB_TIMEOUT_S = 120  # how long a Python model may take to start; reading and compiling a large network is part of it

_OWN_BACKENDS = Path(__file__).parent / "backends"
_SOCKET = "grpc"


class EmbeddedTritonError(Exception):
    """The embedded Triton cannot be started. The text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """Paths inside the installed wheel.

    libraries: what tritonserver is linked with. stub: the executable in which a Python model of this interpreter's
    version runs. libpython: what the stub is linked with; None when the dynamic loader finds it by itself.
    """

    server: Path
    libraries: Path
    python_backend: Path
    stub: Path
    libpython: Path | None


def find_wheel() -> Wheel:
    """Find the wheel without importing it (it brings along much that is not needed here).

    EmbeddedTritonError: it is not installed, has no stub for this Python, or libpython is missing.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedTritonError(
            "no tritonserver is installed here: install polywand[embedded], or give --triton-url of one elsewhere"
        )
    package = Path(spec.submodule_search_locations[0])
    root = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise EmbeddedTritonError(f"the nvidia-pytriton in {package} does not run Python {version} models")
    return Wheel(
        server=root / "bin" / "tritonserver",
        libraries=package.parent / "nvidia_pytriton.libs",
        python_backend=root / "backends" / "python",
        stub=stub,
        libpython=_find_libpython(version),
    )


def assemble(wheel: Wheel, scratch: Path) -> list[Path]:
    """Lay out the backends (the wheel's Python backend, then ours on top of it) and libpython in a private directory.

    Returns the files that Triton reads when it starts the process of a model.

    Triton wants the stub beside the backend's library, and a wheel must not be written to. Copies, because Triton
    refuses a library whose real path is outside of the backend's folder.
    """
    scratch.mkdir(mode=0o700)
    python_backend = scratch / "backends" / "python"
    for folder in (python_backend.parent, python_backend):
        folder.mkdir()
    files = [Path(shutil.copy(source, python_backend)) for source in (*wheel.python_backend.glob("*.*"), wheel.stub)]
    for model in _OWN_BACKENDS.glob("*/model.py"):
        backend = scratch / "backends" / model.parent.name
        backend.mkdir()
        files.append(Path(shutil.copy(model, backend)))
    # A directory of its own: the interpreter's lib directory may hold other libraries that tritonserver must not get.
    (scratch / "lib").mkdir()
    if wheel.libpython:
        library = scratch / "lib" / wheel.libpython.name
        library.symlink_to(wheel.libpython)
        files.append(library)
    return files


def without_blanks(repository: Path, scratch: Path) -> Path:
    """Return a path of the repository that has no blank in it: Triton splits its stubs' command lines there.

    Its own where that will do, since Triton's messages name it; else a link in the scratch directory.
    """
    if not any(character.isspace() for character in str(repository)):
        return repository
    link = scratch / "models"
    link.symlink_to(repository)
    return link


def socket_url(scratch: Path) -> str:
    """Return where tritonserver listens, for gRPC clients.

    A Unix socket in the private directory: nobody else on the machine can reach it (whoever reaches Triton can make it
    load code), no port can be taken, and tensors arrive a third faster than over loopback TCP.
    """
    return f"unix:{socket_path(scratch)}"


def socket_path(scratch: Path) -> Path:
    """Return the socket's path; Triton appends its port, 0, to what it is told."""
    return scratch / f"{_SOCKET}:0"


def command(wheel: Wheel, repository: Path, scratch: Path, token: str, metrics_port: int | None) -> list[str]:
    """Return tritonserver's command line. metrics_port: Triton's own Prometheus metrics on loopback; None: none."""
    metrics = ["--allow-metrics=false"]
    if metrics_port is not None:
        metrics = ["--allow-metrics=true", "--metrics-address=127.0.0.1", f"--metrics-port={metrics_port}"]
    return [
        str(wheel.server),
        f"--model-repository={repository}",
        f"--backend-directory={scratch / 'backends'}",
        f"--backend-config=python,shm-region-prefix-name={region_prefix(token)}",
        f"--backend-config=python,stub-timeout-seconds={STUB_TIMEOUT_S}",
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",
        "--strict-readiness=false",  # one broken model must not make the server look away
        f"--grpc-address=unix:{scratch / _SOCKET}",
        "--grpc-port=0",  # Triton appends it to the address, and gRPC takes all of it as the socket's path
        "--allow-http=false",
        *metrics,
    ]


def environment(wheel: Wheel, scratch: Path) -> dict[str, str]:
    """Return the environment of tritonserver and of the interpreters in its stubs.

    The stub's interpreter is isolated: PYTHONPATH and PYTHONHOME mean nothing to it. It takes the environment of the
    first `python3` on PATH, so that has to be this one's.
    """
    libraries = [str(wheel.libraries), str(scratch / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
    path = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return os.environ | {
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "PATH": ":".join(path),
        # With epoll, gRPC's poller is often not woken at the end, and tritonserver exits 10 s after it has finished.
        "GRPC_POLL_STRATEGY": "poll",
    }


def _find_libpython(version: str) -> Path | None:
    name = f"libpython{version}.so.1.0"
    # The last: where scripts/make-venv puts Debian's, whose python3 comes without.
    folders = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib", f"{sys.prefix}/lib"]
    for folder in filter(None, folders):
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    if ctypes.util.find_library(f"python{version}"):
        return None
    raise EmbeddedTritonError(f"{name} is missing, which Triton runs Python models with (Debian: libpython{version})")
