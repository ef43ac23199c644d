"""Quotas: what each principal has in use, over all of its connections, and whether it may have more."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from polywand_server.caller import current
from polywand_server.config import MEBIBYTE
from polywand_server.errors import QuotaError, Reason, TooLargeError
from polywand_server.ops import metrics
from polywand_server.principal import Principal, Quotas

# Of what is freed by other requests, no one knows when.
RETRY_SECONDS = 1.0
# Between two looks for principals that have gone.
SWEEP_SECONDS = 10.0
# So that a client that waits as long as it was told is not refused by a rounding error.
_ENOUGH = 1 - 1e-6


class Bucket:
    """A token bucket: a second's worth at once, at least one, and then so many per second. It is full at first."""

    def __init__(self) -> None:
        self._tokens = math.inf
        self._at = time.monotonic()

    def take(self, per_second: float) -> float:
        """Take a token; return 0, or if there is none, the seconds until there is one."""
        self._fill(per_second)
        if self._tokens >= _ENOUGH:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / per_second

    def is_full(self, per_second: float) -> bool:
        """Whether it is as a new one."""
        self._fill(per_second)
        return self._tokens >= max(1.0, per_second)

    def _fill(self, per_second: float) -> None:
        now = time.monotonic()
        self._tokens = min(self._tokens + (now - self._at) * per_second, max(1.0, per_second))
        self._at = now


@dataclass(slots=True)
class Account:
    """What one principal has in use. buckets: by the quota's name."""

    principal: Principal
    calls: int = 0
    streams: int = 0
    buckets: dict[str, Bucket] = field(default_factory=dict)


class Accounts:
    """The accounts of all principals, by name. Where there is no principal, all may be had, and nothing is counted.

    quotas_of: the quotas of a principal as they are now.
    """

    def __init__(self, quotas_of: Callable[[Principal], Quotas]) -> None:
        self._quotas_of = quotas_of
        self._accounts: dict[str, Account] = {}
        self._swept_at = time.monotonic()

    @contextmanager
    def call(self, *, is_stream: bool) -> Iterator[None]:
        """Count the current call until the block ends. Raises QuotaError."""
        principal = current().principal
        if not principal.name:
            yield
            return
        account, quotas = self._account(principal), self._quotas_of(principal)
        if quotas.calls is not None and account.calls >= quotas.calls:
            raise _refusal(principal, "calls", f"{quotas.calls} calls at once", RETRY_SECONDS)
        if is_stream and quotas.streams is not None and account.streams >= quotas.streams:
            raise _refusal(principal, "streams", f"{quotas.streams} streams at once", RETRY_SECONDS)
        account.calls += 1
        account.streams += is_stream
        try:
            yield
        finally:
            account.calls -= 1
            account.streams -= is_stream

    def prompt(self) -> None:
        """Count a prompt of the current call. Raises QuotaError."""
        if (principal := current().principal).name:
            self._take(principal, "prompts_per_second", self._quotas_of(principal).prompts_per_second)

    def frame(self) -> None:
        """Count a frame of the current call. Raises QuotaError."""
        if (principal := current().principal).name:
            self._take(principal, "frames_per_second", self._quotas_of(principal).frames_per_second)

    def image_bytes(self, principal: Principal) -> int | None:
        """Return the most bytes of decoded images that a principal may have; None is no limit."""
        return self._quotas_of(principal).image_bytes if principal.name else None

    def _take(self, principal: Principal, quota: str, per_second: float | None) -> None:
        if per_second is None:
            return
        bucket = self._account(principal).buckets.setdefault(quota, Bucket())
        if seconds := bucket.take(per_second):
            raise _refusal(principal, quota, f"{per_second:g} {quota.replace('_', ' ')}", seconds)

    def _account(self, principal: Principal) -> Account:
        account = self._accounts.get(principal.name)
        if account is None:
            self._sweep()
            account = self._accounts[principal.name] = Account(principal)
        return account

    def _sweep(self) -> None:
        """Forget the principals that have gone, now and then."""
        now = time.monotonic()
        if now - self._swept_at < SWEEP_SECONDS:
            return
        self._swept_at = now
        self._accounts = {name: account for name, account in self._accounts.items() if not self._has_gone(account)}

    def _has_gone(self, account: Account) -> bool:
        quotas = self._quotas_of(account.principal)
        return account.calls == 0 and all(
            (rate := getattr(quotas, quota)) is None or bucket.is_full(rate)
            for quota, bucket in account.buckets.items()
        )


def images_full(principal: Principal, most: int, held: int, nbytes: int) -> QuotaError:
    """Make the error of an image for which there is no room in its principal's quota. held, nbytes: bytes, decoded."""
    text = f"{most // MEBIBYTE} MiB of images, {held // MEBIBYTE} MiB are in use, and this one needs {_up(nbytes)} MiB"
    return _refusal(principal, "image_mebibytes", text, RETRY_SECONDS)


def image_too_large(principal: Principal, most: int, field: str, nbytes: int) -> TooLargeError:
    """Make the error of an image that is larger than its principal's whole quota. nbytes: decoded."""
    metrics.QUOTA_REFUSALS.labels("image_mebibytes").inc()
    needs = f"the image needs {_up(nbytes)} MiB when decoded"
    text = f"{needs}; principal {principal.name!r} may have {most // MEBIBYTE} MiB of images"
    return TooLargeError(field, text, reason=Reason.QUOTA_EXCEEDED)


def _refusal(principal: Principal, quota: str, most: str, retry_seconds: float) -> QuotaError:
    metrics.QUOTA_REFUSALS.labels(quota).inc()
    seconds = math.ceil(retry_seconds * 1000) / 1000
    text = f"principal {principal.name!r} may have {most}: try again in {seconds:g} s"
    subject = f"principal:{principal.name} {quota}"
    return QuotaError(subject, text, seconds, reason=Reason.QUOTA_EXCEEDED, metadata={"quota": quota})


def _up(nbytes: int) -> int:
    return -(-nbytes // MEBIBYTE)
