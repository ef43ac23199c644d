"""Sources: which data sets the user named, and reading them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polywand_zoo.evaluation import layouts
from polywand_zoo.evaluation.coco import photos_of, read_coco, read_ids
from polywand_zoo.evaluation.objects import DataSet


class SourcesError(ValueError):
    """The named data sets do not fit together, or there are none."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Folders and files of data sets; None where the user has none.

    images: of masks, or of coco. objects: a file with ids of annotations, to which coco is restricted.
    limit: of the objects of each data set.
    """

    grabcut: Path | None = None
    berkeley: Path | None = None
    davis: Path | None = None
    sbd: Path | None = None
    coco: Path | None = None
    objects: Path | None = None
    masks: Path | None = None
    images: Path | None = None
    limit: int | None = None

    def read(self) -> list[DataSet]:
        """List their objects.

        Raises:
            SourcesError, DataError
        """
        self._check()
        return [data.spread(self.limit) for data in self._sets()]

    def _check(self) -> None:
        if self.objects and not self.coco:
            raise SourcesError("--objects needs --coco")
        if self.masks and (self.coco or not self.images):
            raise SourcesError("--masks needs --images, and goes without --coco")
        if self.images and not (self.masks or self.coco):
            raise SourcesError("--images needs --masks or --coco")
        if not any((self.grabcut, self.berkeley, self.davis, self.sbd, self.coco, self.masks)):
            raise SourcesError("name some data: --images with --masks, --coco, --grabcut, --berkeley, --davis or --sbd")

    def _sets(self) -> Iterator[DataSet]:
        if self.grabcut:
            yield layouts.read_grabcut(self.grabcut)
        if self.berkeley:
            yield layouts.read_berkeley(self.berkeley)
        if self.davis:
            yield layouts.read_davis(self.davis)
        if self.sbd:
            yield layouts.read_sbd(self.sbd)
        if self.coco:
            only = read_ids(self.objects) if self.objects else None
            yield read_coco(self.coco, self.images or photos_of(self.coco), only)
        if self.masks and self.images:
            yield layouts.read_folders(self.images, self.masks)
