"""File descriptors: as many as this process may have, and how connections share them."""

import logging
import resource
from dataclasses import dataclass

MAX_DESCRIPTORS = 65_536
LOW_DESCRIPTORS = 1024
# For the service itself: libraries and models that are read, Triton, event loop, workers, log.
OWN_DESCRIPTORS = 64
MAX_HTTP_CONNECTIONS = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Share:
    """How many connections may be open at a time, by port."""

    grpc: int
    http: int


def raise_limit() -> int:
    """Raise the process's limit of open descriptors as far as it may, and return it.

    At most MAX_DESCRIPTORS: some programs that we start close every number up to the limit. A limit above that stays.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def share_out(limit: int) -> Share:
    """Share a limit out, so that connections to one port leave room for the other and for the service itself.

    Where there is not enough for all, each port keeps a quarter.
    """
    http = max(1, min(MAX_HTTP_CONNECTIONS, limit // 4))
    share = Share(grpc=max(1, limit - http - OWN_DESCRIPTORS, limit // 4), http=http)
    if limit < LOW_DESCRIPTORS:
        log.warning(
            "this process may have %d descriptors open: it takes at most %d gRPC and %d HTTP connections at a time; "
            "raise the limit (ulimit -n, LimitNOFILE) for more",
            *(limit, share.grpc, share.http),
        )
    return share
