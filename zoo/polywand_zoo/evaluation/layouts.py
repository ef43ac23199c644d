"""Folders of images and masks, and the layouts in which f-BRS's and RITM's authors release the field's test sets.

| data set | images | masks |
|---|---|---|
| GrabCut | `data_GT/*` | `boundary_GT/*`: 0 outside, 128 undecided, above inside |
| Berkeley | `images/*` | `masks/*`: as GrabCut's |
| DAVIS | `img/*` | `gt/*`: inside where not black |
| SBD | `img/*.jpg`, of the names in `val.txt` | `inst/*.mat`: every number above 0 is an object |

An image and its mask share their name up to the first dot; an image without a mask is
listed as a flaw, and so is a mask without an image.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import scipy.io
from numpy.typing import NDArray

from polywand import PolywandError
from polywand.maskfiles import read_mask
from polywand_zoo.evaluation.objects import DataError, DataSet, Subject, Truth

# The image formats of these test sets; other files in the folders are ignored.
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
UNDECIDED = 128  # the grey of a GrabCut mask
SBD_LIST = "val.txt"
# The number of a frame at the end of its name, as in "car-turn_00012"; what is before it names the sequence.
FRAME = re.compile(r"(?P<sequence>.*\D)??[-_]?\d+")


def read_grabcut(folder: Path) -> DataSet:
    """Read GrabCut: 50 images with an object each. Raises DataError where the layout differs."""
    return _paired("GrabCut", folder / "data_GT", folder / "boundary_GT", _grey_band)


def read_berkeley(folder: Path) -> DataSet:
    """Read Berkeley: 100 objects. Raises DataError where the layout differs."""
    return _paired("Berkeley", folder / "images", folder / "masks", _grey_band)


def read_davis(folder: Path) -> DataSet:
    """Read DAVIS: 345 frames of 50 sequences, by their names. Raises DataError where the layout differs."""
    return _paired("DAVIS", folder / "img", folder / "gt", _not_black, _sequence)


def read_folders(images: Path, masks: Path) -> DataSet:
    """Read two folders of images and masks, inside where not black; folders in them are sequences.

    Raises:
        DataError: one of them is no folder.
    """
    return _paired(images.name or "images", images, masks, _not_black)


def read_sbd(folder: Path) -> DataSet:
    """Read SBD's validation part: 6671 objects of 2857 images. Raises DataError where the layout differs."""
    for needed in (folder / "img", folder / "inst"):
        _need(needed)
    try:
        names = (folder / SBD_LIST).read_text(encoding="utf-8").split()
    except OSError as error:
        raise DataError(folder / SBD_LIST, f"the list of images cannot be read ({error.strerror})") from error
    subjects: list[Subject] = []
    flaws: list[DataError] = []
    for name in names:
        image, masks = folder / "img" / f"{name}.jpg", folder / "inst" / f"{name}.mat"
        try:
            if not image.is_file():
                raise DataError(image, f"the image is missing, and {SBD_LIST} names it")
            numbers = np.unique(_instances(masks))
        except DataError as flaw:
            flaws.append(flaw)
            continue
        subjects += (
            Subject("SBD", "", f"{name}, object {number}", image, masks, partial(_instance, masks, int(number)))
            for number in numbers[numbers > 0]
        )
    return DataSet("SBD", subjects, flaws)


def _paired(
    data: str,
    images: Path,
    masks: Path,
    read: Callable[[Path], Truth],
    sequence: Callable[[Path], str] = lambda path: "" if path.parent == Path() else str(path.parent),
) -> DataSet:
    """Pair images and masks by their names; sequence: of an image, by its path in its folder."""
    flaws: list[DataError] = []
    photos, truths = _by_name(images, flaws), _by_name(masks, flaws)
    flaws += (DataError(photos[key], f"no mask of this name in {masks}") for key in photos.keys() - truths.keys())
    flaws += (DataError(truths[key], f"no image of this name in {images}") for key in truths.keys() - photos.keys())
    subjects = [
        Subject(
            data, sequence(photos[key].relative_to(images)), key, photos[key], truths[key], partial(read, truths[key])
        )
        for key in sorted(photos.keys() & truths.keys())
    ]
    return DataSet(data, subjects, sorted(flaws, key=str))


def _by_name(folder: Path, flaws: list[DataError]) -> dict[str, Path]:
    """The image files of a folder and those in it, by their paths up to the first dot of the name."""
    _need(folder)
    found: dict[str, Path] = {}
    for path in sorted(_images(folder)):
        key = str(path.relative_to(folder).parent / path.name.partition(".")[0])
        if key in found:
            flaws.append(DataError(path, f"it has the same name as {found[key].name}, which is used"))
        found.setdefault(key, path)
    return found


def _images(folder: Path) -> Iterator[Path]:
    return (
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _need(folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(folder, "there is no such folder")


def _sequence(path: Path) -> str:
    frame = FRAME.fullmatch(path.name.partition(".")[0])
    return ((frame and frame["sequence"]) or "").rstrip("-_")


def _not_black(path: Path) -> Truth:
    try:
        return Truth(read_mask(path))
    except PolywandError as error:
        raise DataError(path, "the mask is no image that OpenCV reads") from error


def _grey_band(path: Path) -> Truth:
    """Read a mask whose middle grey is neither inside nor outside."""
    encoded = np.fromfile(path, np.uint8)
    grey = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE) if len(encoded) else None
    if grey is None:
        raise DataError(path, "the mask is no image that OpenCV reads")
    undecided = grey == UNDECIDED
    # Some masks have 1 for inside.
    return Truth((grey > 0) & ~undecided, undecided if undecided.any() else None)


def _instances(path: Path) -> NDArray[np.int64]:
    """The numbers of objects of an SBD file, [H, W]; 0 is nothing."""
    try:
        numbers = scipy.io.loadmat(str(path))["GTinst"]["Segmentation"][0, 0]
    except Exception as error:  # its reader raises many types for damaged files
        raise DataError(path, f"the masks cannot be read ({type(error).__name__}: {error})") from error
    result: NDArray[np.int64] = np.asarray(numbers, np.int64)
    return result


def _instance(path: Path, number: int) -> Truth:
    return Truth(_instances(path) == number)
