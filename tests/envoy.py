"""A real proxy before several replicas: Envoy, as deployments run it, as a child process."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS = 30
CLUSTER = "replicas"


@dataclass(frozen=True)
class Proxy:
    """A running proxy. target: of its gRPC port. admin: base URL of its admin port."""

    target: str
    admin: str

    def healthy(self) -> set[int]:
        """The ports of the replicas that it sends calls to."""
        return {
            host["address"]["socket_address"]["port_value"]
            for cluster in _get(f"{self.admin}/clusters?format=json")["cluster_statuses"]
            if cluster["name"] == CLUSTER
            for host in cluster.get("host_statuses", [])
            if host["health_status"].get("eds_health_status") == "HEALTHY"
            and not any(flag for name, flag in host["health_status"].items() if name.startswith("failed"))
        }


def free_port() -> int:
    """Return a port at which nothing listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def proxy_to(ports: Sequence[int], folder: Path) -> Iterator[Proxy]:
    """Run Envoy before the replicas at these ports until the block ends. folder: for its files.

    Replicas take turns. Those whose health check fails get no calls; nothing is retried.
    """
    config, admin_address, log = folder / "envoy.json", folder / "envoy-admin", folder / "envoy-log"
    config.write_text(json.dumps(_config(ports)))
    program = shutil.which("envoy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    assert program is not None, "envoy is not installed; it is a requirement of the extra dev"
    command = [program, "-c", str(config), "--admin-address-path", str(admin_address)]
    options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
    with log.open("wb") as output:
        process = subprocess.Popen([*command, *options], stdout=output, stderr=output)
    try:
        yield _started(process, admin_address, log)
    finally:
        process.kill()
        process.wait()


def _started(process: subprocess.Popen[bytes], admin_address: Path, log: Path) -> Proxy:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, KeyError, IndexError, ValueError):
            admin = f"http://{admin_address.read_text().strip()}"
            (listener,) = _get(f"{admin}/listeners?format=json")["listener_statuses"]
            return Proxy(f"127.0.0.1:{listener['local_address']['socket_address']['port_value']}", admin)
        time.sleep(0.05)
    raise AssertionError(f"the proxy did not start:\n{log.read_text()[-4000:]}")


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _typed(kind: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/envoy.extensions.{kind}", **fields}


def _config(ports: Sequence[int]) -> dict[str, Any]:
    router = {"name": "router", "typed_config": _typed("filters.http.router.v3.Router")}
    route = {"match": {"prefix": "/"}, "route": {"cluster": CLUSTER, "timeout": "0s"}}
    manager = _typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="grpc",
        codec_type="HTTP2",
        stream_idle_timeout="0s",
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        http_filters=[router],
    )
    health_check = {
        "grpc_health_check": {},
        "interval": "0.2s",
        "no_traffic_interval": "0.2s",
        "timeout": "2s",
        "healthy_threshold": 1,
        "unhealthy_threshold": 1,
    }
    protocol = _typed("upstreams.http.v3.HttpProtocolOptions", explicit_http_config={"http2_protocol_options": {}})
    endpoints = [{"endpoint": {"address": _address(port)}} for port in ports]
    cluster = {
        "name": CLUSTER,
        "connect_timeout": "1s",
        "lb_policy": "ROUND_ROBIN",
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "health_checks": [health_check],
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol},
        "load_assignment": {"cluster_name": CLUSTER, "endpoints": [{"lb_endpoints": endpoints}]},
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    return {
        "admin": {"address": _address(0)},
        "static_resources": {
            "listeners": [{"name": "grpc", "address": _address(0), "filter_chains": [chain]}],
            "clusters": [cluster],
        },
    }
