"""NVIDIA's tritonserver in the nvidia-pytriton wheel: its files, its command line and its environment."""

import ctypes.util
import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from polywand_server.triton.embedded.launch import region_prefix

STUB_TIMEOUT_S = 120  # how long a Python model may take to start; that includes reading and compiling a large network

_OWN_BACKENDS = Path(__file__).parent / "backends"
_SOCKET = "grpc"
_METRICS_SOCKET = "metrics"


class EmbeddedTritonError(Exception):
    """The embedded Triton cannot be started; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """Paths inside the installed wheel.

    libraries: the folder of libraries that tritonserver is linked with. stub: the executable that runs Python models
    with this interpreter's version. libpython: that the stub is linked with; None if the dynamic loader finds it.
    """

    server: Path
    libraries: Path
    python_backend: Path
    stub: Path
    libpython: Path | None


def find_wheel() -> Wheel:
    """Find the wheel without importing it (its import is slow).

    Raises:
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
        raise EmbeddedTritonError(f"the nvidia-pytriton in {package} cannot run models with Python {version}")
    return Wheel(
        server=root / "bin" / "tritonserver",
        libraries=package.parent / "nvidia_pytriton.libs",
        python_backend=root / "backends" / "python",
        stub=stub,
        libpython=_find_libpython(version),
    )


def assemble(wheel: Wheel, scratch: Path) -> list[Path]:
    """Copy the wheel's Python backend, our own backends and a link to libpython into a private directory.

    Returns the files that Triton reads when it starts the process of a model.

    Triton needs the stub beside the backend's library, and the wheel must not be changed. Links would not do: Triton
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
    # In its own directory: the interpreter's lib directory may hold libraries that tritonserver must not load.
    (scratch / "lib").mkdir()
    if wheel.libpython:
        library = scratch / "lib" / wheel.libpython.name
        library.symlink_to(wheel.libpython)
        files.append(library)
    return files


def without_spaces(repository: Path, scratch: Path) -> Path:
    """Return a path of the repository without spaces: Triton splits the command lines of its stubs at spaces.

    The path itself if possible, since Triton's messages contain it; else a link in the scratch directory.
    """
    if not any(character.isspace() for character in str(repository)):
        return repository
    link = scratch / "models"
    link.symlink_to(repository)
    return link


def socket_url(scratch: Path) -> str:
    """Return tritonserver's address for gRPC clients.

    A Unix socket in the private directory: no other user can connect (a client of Triton can make it run code), there
    is no port to conflict with another, and tensors arrive a third faster than over loopback TCP.
    """
    return f"unix:{socket_path(scratch)}"


def socket_path(scratch: Path) -> Path:
    """Return the socket's path; Triton appends its port, 0, to the address."""
    return scratch / f"{_SOCKET}:0"


def metrics_url(scratch: Path) -> str:
    """Return the address of tritonserver's Prometheus metrics (HTTP): a Unix socket, for the same reasons."""
    return f"unix:{scratch / _METRICS_SOCKET}"


def command(wheel: Wheel, repository: Path, scratch: Path, token: str, traces_url: str | None) -> list[str]:
    """Return tritonserver's command line.

    traces_url: where it sends the spans of requests that come with a trace, by OTLP over HTTP; None: nowhere.
    """
    traces = []
    if traces_url is not None:
        # Rate 0: no other requests, which would be of nobody's trace.
        settings = ("mode=opentelemetry", "level=TIMESTAMPS", "rate=0", f"opentelemetry,url={traces_url}")
        resource = "opentelemetry,resource=service.name=polywand-triton"
        traces = [f"--trace-config={setting}" for setting in (*settings, resource)]
    return [
        str(wheel.server),
        f"--model-repository={repository}",
        f"--backend-directory={scratch / 'backends'}",
        f"--backend-config=python,shm-region-prefix-name={region_prefix(token)}",
        f"--backend-config=python,stub-timeout-seconds={STUB_TIMEOUT_S}",
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",
        "--strict-readiness=false",  # with strict readiness, one broken model makes the server unready
        f"--grpc-address=unix:{scratch / _SOCKET}",
        "--grpc-port=0",  # part of the socket's path: Triton appends it to the address
        "--allow-http=false",
        "--allow-metrics=true",
        f"--metrics-address={metrics_url(scratch)}",
        *traces,
    ]


def environment(wheel: Wheel, scratch: Path) -> dict[str, str]:
    """Return the environment variables of tritonserver and of the interpreters in its stubs.

    A stub's interpreter ignores PYTHONPATH and PYTHONHOME. It uses the packages of the first `python3` on PATH, so that
    has to be this interpreter.
    """
    libraries = [str(wheel.libraries), str(scratch / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
    path = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return os.environ | {
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "PATH": ":".join(path),
        # With epoll, gRPC's poller is often not woken at the end, and tritonserver exits 10 s late.
        "GRPC_POLL_STRATEGY": "poll",
    }


def _find_libpython(version: str) -> Path | None:
    name = f"libpython{version}.so.1.0"
    # The last one is where scripts/make-venv puts Debian's libpython, which its python3 package lacks.
    folders = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib", f"{sys.prefix}/lib"]
    for folder in filter(None, folders):
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    if ctypes.util.find_library(f"python{version}"):
        return None
    raise EmbeddedTritonError(f"{name} is missing; Triton needs it for Python models (Debian: libpython{version})")
