"""File descriptors: the limit of this process, and how many connections it allows."""

import logging
import resource
from dataclasses import dataclass

MAX_DESCRIPTORS = 65_536
LOW_DESCRIPTORS = 1024
# Reserved for the service itself: files that are read, Triton, the event loop, workers, the log.
OWN_DESCRIPTORS = 64
MAX_HTTP_CONNECTIONS = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The most connections that may be open at the same time, by port."""

    grpc: int
    http: int


def raise_limit() -> int:
    """Raise the process's limit of open descriptors as far as the system allows, and return it.

    To MAX_DESCRIPTORS at most, since some child processes close every number up to the limit. A higher limit is kept.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def connection_limits(limit: int) -> ConnectionLimits:
    """Divide a limit of descriptors, so that connections to one port leave room for the other port and the service.

    Where there are not enough for all, each port gets a quarter.
    """
    http = max(1, min(MAX_HTTP_CONNECTIONS, limit // 4))
    limits = ConnectionLimits(grpc=max(1, limit - http - OWN_DESCRIPTORS, limit // 4), http=http)
    if limit < LOW_DESCRIPTORS:
        log.warning(
            "the limit of open files is %d: at most %d gRPC and %d HTTP connections are accepted at the same time; "
            "raise it (ulimit -n, LimitNOFILE) for more",
            limit,
            limits.grpc,
            limits.http,
        )
    return limits
