"""Paths of overlays: a file for one image, a folder for any number, and never an input."""

import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

import click

from polywand import files
from polywand.files import Source
from polywand_common.texts import shown

STANDARD_STREAMS = (0, 1)  # files that the shell opened count as inputs, too
_PICTURE_MODULES = ("cv2", "PIL", "simplejpeg")
_FOLDER_ENDINGS = tuple(filter(None, (os.sep, os.altsep)))


def pictures(given: str | None, images: Sequence[Source], other_inputs: Iterable[Path] = ()) -> list[Path]:
    """Return the path of each image's overlay; empty without --overlay. A missing folder is made.

    given: a folder if it ends in a slash, is one, or is new and has no suffix; else a picture, for one image.
    An older picture is replaced, unless its name was derived from an image's and it is in that image's folder.
    Raises click.UsageError when the name is neither or would overwrite an input, and click.ClickException when the
    folder cannot be made or the extra `overlay` is not installed.
    """
    if given is None:
        return []
    require_pictures("--overlay")
    if not given:
        raise click.UsageError("--overlay is empty: name a picture or a folder.")
    path = Path(given)
    try:
        is_folder = given.endswith(_FOLDER_ENDINGS) or path.is_dir() or not (path.suffix or path.exists())
    except ValueError as error:  # a NUL in the name
        raise click.UsageError(f"'{shown(given)}' is not a file name.") from error
    targets = _in_folder(path, images) if is_folder else [_one_picture(path, images)]
    refuse_inputs(targets, [*(image.name for image in images if not image.is_standard_input), *other_inputs])
    if is_folder:
        _refuse_existing(path, targets, images)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise click.ClickException(f"The folder {shown(path)} cannot be made: {reason}.") from error
    return targets


def require_pictures(option: str) -> None:
    """Raise click.ClickException unless what an option needs to read and draw pictures is installed."""
    if missing := [module for module in _PICTURE_MODULES if find_spec(module) is None]:
        raise click.ClickException(f"{option} needs {', '.join(missing)}: pip install 'polywand[overlay]'")


def refuse_inputs(targets: Iterable[Path], inputs: Iterable[str | Path]) -> None:
    """Raise click.UsageError when a file to write is an input under any name, or a standard stream's."""
    refused = files.identities([*inputs, *STANDARD_STREAMS])
    for target in targets:
        if files.identities([target]) & refused:
            raise click.UsageError(f"This would overwrite the input '{shown(target)}': name another file.")


def _in_folder(folder: Path, images: Sequence[Source]) -> list[Path]:
    targets: dict[str, Source] = {}
    for image in images:
        name = f"{'stdin' if image.is_standard_input else Path(image.name).stem}.png"
        if (other := targets.setdefault(os.path.normcase(name), image)) is not image:
            raise click.UsageError(
                f"Two of the images have the same name, and so would their overlays: "
                f"'{shown(other.name)}' and '{shown(image.name)}'."
            )
    return [folder / name for name in targets]


def _refuse_existing(folder: Path, targets: Iterable[Path], images: Iterable[Source]) -> None:
    """In a folder of images, a file with an overlay's name may be another image. Raises click.UsageError."""
    if files.identities([folder]) & files.identities(Path(image.name).parent for image in images):
        for target in targets:
            if os.path.lexists(target):
                raise click.UsageError(f"'{shown(target)}' exists already, beside the images: name another folder.")


def _one_picture(path: Path, images: Sequence[Source]) -> Path:
    from polywand import overlay  # noqa: PLC0415 - needs an extra

    if not overlay.can_write(path):
        raise click.UsageError(f"'{shown(path)}' does not have the suffix of a picture, such as .png or .jpg.")
    if len(images) > 1:
        raise click.UsageError(f"'{shown(path)}' is one picture, but there are {len(images)} images: name a folder.")
    return path
