"""Holders: streams that keep a picture, and whose picture is dropped when the budget has no room for another."""

from collections import Counter, defaultdict
from typing import Protocol

from polywand_server.caller import current
from polywand_server.images.lease import Lease
from polywand_server.images.picture import Picture

# A stream without requests for this long is idle: its picture is dropped before another image is refused.
IDLE_SECONDS = 10.0
# Of a client, see `Caller.share`, that holds more than its share, pictures that were not used for this long are
# dropped, too.
UNUSED_SECONDS = 0.5


class Holder(Protocol):
    """A stream that keeps a picture."""

    @property
    def share(self) -> str:
        """Whose share of the server the stream uses, see `Caller.share`."""
        ...

    @property
    def image_lease(self) -> Lease | None:
        """The lease of its picture, if it has one."""
        ...

    def idle_seconds(self) -> float:
        """Seconds since its last request or reply; 0 while something is in work."""
        ...

    def drop_image(self) -> None:
        """Drop the picture."""
        ...


class Holders:
    """All streams that keep pictures."""

    def __init__(self) -> None:
        self._holders: set[Holder] = set()

    def add(self, holder: Holder) -> None:
        """Add a stream."""
        self._holders.add(holder)

    def remove(self, holder: Holder) -> None:
        """Remove a stream."""
        self._holders.discard(holder)

    def drop_one_image(self) -> bool:
        """Drop a picture that no request uses from all streams that keep it; return whether one was dropped.

        The client that holds most is first, and of its pictures the least recently used. All streams that keep it must
        be idle, or unused for UNUSED_SECONDS if their client holds more than the calling one, and more than its share.
        """
        keepers: defaultdict[Picture, list[Holder]] = defaultdict(list)
        leases: dict[Picture, int] = {}
        for holder in self._holders:
            if (lease := holder.image_lease) is not None:
                keepers[lease.picture].append(holder)
                leases[lease.picture] = lease.count
        held: Counter[str] = Counter()
        for picture, holders in keepers.items():
            held.update(dict.fromkeys({holder.share for holder in holders}, picture.nbytes))
        asking = current().share
        most = max(held.total() / max(1, len(held | Counter({asking: 1}))), held[asking])

        def may_drop(holder: Holder) -> bool:
            return holder.idle_seconds() >= (UNUSED_SECONDS if held[holder.share] > most else IDLE_SECONDS)

        def rank(holders: list[Holder]) -> tuple[int, float]:
            return -max(held[holder.share] for holder in holders), -min(holder.idle_seconds() for holder in holders)

        for picture, holders in sorted(keepers.items(), key=lambda item: rank(item[1])):
            if len(holders) == leases[picture] and all(map(may_drop, holders)):
                for holder in holders:
                    holder.drop_image()
                return True
        return False
