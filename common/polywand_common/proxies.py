"""HTTP proxies in the environment, as gRPC reads them."""

import ipaddress
import os
import re
from dataclasses import dataclass
from typing import Any

_SCHEMES = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds", "passthrough")  # of gRPC's resolvers
_UNPROXIED_SCHEMES = ("unix", "unix-abstract", "vsock", "xds")
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # gRPC uses the first that is set; lower case only
_NO_PROXY_VARIABLES = ("no_grpc_proxy", "no_proxy")


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy that the environment sets.

    url: without user name and password. variable: the environment variable that sets it.
    """

    url: str
    variable: str


def direct(target: str) -> list[tuple[str, Any]]:
    """Return channel options that bypass proxies for a target on this machine."""
    return [("grpc.enable_http_proxy", 0)] if is_local(target) else []


def proxy_of(target: str) -> Proxy | None:
    """Return the proxy through which gRPC reaches a target, or None."""
    if is_local(target) or scheme(target) in _UNPROXIED_SCHEMES:
        return None
    host = _host(target)
    for variable in _NO_PROXY_VARIABLES:
        if (listed := os.environ.get(variable)) is not None:
            if any(entry and _covers(entry, host) for entry in re.split(r"[,\s]+", listed)):
                return None
            break
    for variable in _PROXY_VARIABLES:
        if url := os.environ.get(variable):
            return Proxy(f"http://{url.rpartition('//')[2].rpartition('@')[2].partition('/')[0]}", variable)
    return None


def _covers(entry: str, host: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return host.lower().endswith(entry.lower().lstrip("*"))


def scheme(target: str) -> str:
    """Return the scheme of a target, such as "dns"; "" for plain host:port."""
    first, colon, _ = target.partition(":")
    return first.lower() if colon and first.lower() in _SCHEMES else ""


def authority(target: str) -> str:
    """Return the host:port of a target, without its scheme."""
    return target.partition(":")[2].rpartition("/")[2] if scheme(target) else target


def _host(target: str) -> str:
    address = authority(target)
    return address[1:].partition("]")[0] if address.startswith("[") else address.rpartition(":")[0] or address


def is_local(target: str) -> bool:
    """Return whether a target's name or address is of this machine."""
    if scheme(target) in _UNPROXIED_SCHEMES[:3]:
        return True
    host = _host(target).lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback or host in ("0.0.0.0", "::")
    except ValueError:
        return False
