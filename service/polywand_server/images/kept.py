"""Kept pictures: those that nothing uses now, and that are likely to be opened again."""

from collections import OrderedDict, defaultdict

from polywand_server.images.lease import Key
from polywand_server.images.picture import Picture
from polywand_server.ops import metrics

# Of the limit, for each picture beside its pixels: or else there were no limit for tiny ones.
PICTURE_BYTES = 4096


class KeptPictures:
    """Pictures without a lease, the least recently used first. most_bytes: limit of all; 0 keeps none.

    nbytes: of all now.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._pictures: OrderedDict[Key, Picture] = OrderedDict()
        self._owned: defaultdict[str, OrderedDict[Key, None]] = defaultdict(OrderedDict)  # by principal
        self.nbytes = 0

    def put(self, key: Key, picture: Picture) -> None:
        """Keep a picture; the oldest ones are dropped where it is too much."""
        if picture.nbytes + PICTURE_BYTES > self._most:
            return
        self._pictures[key] = picture
        self._owned[key.principal][key] = None
        self.nbytes += picture.nbytes
        while self.nbytes + len(self._pictures) * PICTURE_BYTES > self._most:
            self._drop(next(iter(self._pictures)), "limit")

    def take(self, key: Key) -> Picture | None:
        """Remove a picture and return it, if it is here."""
        picture = self._pictures.pop(key, None)
        if picture is not None:
            self.nbytes -= picture.nbytes
            del self._owned[key.principal][key]
            if not self._owned[key.principal]:
                del self._owned[key.principal]
        return picture

    def drop_one(self) -> bool:
        """Drop the least recently used picture to make room; return whether there was one."""
        return self._drop(next(iter(self._pictures), None), "room")

    def drop_one_of(self, principal: str) -> bool:
        """Drop a principal's least recently used picture for its quota; return whether there was one."""
        return self._drop(next(iter(self._owned.get(principal, ())), None), "quota")

    def _drop(self, key: Key | None, reason: str) -> bool:
        if key is None:
            return False
        self.take(key)
        metrics.IMAGE_EVICTIONS.labels(reason).inc()
        return True
