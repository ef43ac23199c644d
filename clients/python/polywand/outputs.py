"""Where pictures go: a file for one image, a folder for any number, and never over an input."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from polywand import files, overlay
from polywand.files import Source
from polywand_common.texts import shown

STANDARD_STREAMS = (0, 1)  # an input or an output that the shell opened is one as well
_FOLDER_ENDINGS = tuple(filter(None, (os.sep, os.altsep)))


def pictures(given: str | None, images: Sequence[Source], other_inputs: Iterable[Path] = ()) -> list[Path]:
    """Where the overlay of each image goes; empty when none is wanted. A folder is made if need be.

    An older picture is replaced, but not by a name that was made from an image's in that image's own folder.
    What a name means does not depend on how many images there are: it is a folder when it ends in a slash, is one
    already, or is new and has no suffix; else it is a picture. Raises click.UsageError when it is neither or would
    overwrite an input, and click.ClickException when the folder cannot be made.
    """
    if given is None:
        return []
    if not given:
        raise click.UsageError("--overlay is empty: name a picture or a folder.")
    path = Path(given)
    try:
        is_folder = given.endswith(_FOLDER_ENDINGS) or path.is_dir() or not (path.suffix or path.exists())
    except ValueError as error:  # a NUL in the name
        raise click.UsageError(f"'{shown(given)}' is no file name.") from error
    targets = _in_folder(path, images) if is_folder else [_one_picture(path, images)]
    refuse_inputs(targets, [*(image.name for image in images if not image.is_standard_input), *other_inputs])
    if is_folder:
        _refuse_neighbours(path, targets, images)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise click.ClickException(f"The folder {shown(path)} cannot be made: {reason}.") from error
    return targets


def refuse_inputs(targets: Iterable[Path], inputs: Iterable[str | Path]) -> None:
    """Raise click.UsageError when a file that is to be written is an input, by whatever name, or standard input's."""
    taken = files.identities([*inputs, *STANDARD_STREAMS])
    for target in targets:
        if files.identities([target]) & taken:
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


def _refuse_neighbours(folder: Path, targets: Iterable[Path], images: Iterable[Source]) -> None:
    """Where images lie, what has an overlay's name may be one of them that was not named this time."""
    if files.identities([folder]) & files.identities(Path(image.name).parent for image in images):
        for target in targets:
            if os.path.lexists(target):
                raise click.UsageError(f"'{shown(target)}' is there already, beside the images: name another folder.")


def _one_picture(path: Path, images: Sequence[Source]) -> Path:
    if not overlay.can_write(path):
        raise click.UsageError(f"'{shown(path)}' does not end like a picture, such as .png or .jpg.")
    if len(images) > 1:
        raise click.UsageError(f"'{shown(path)}' is one picture, but there are {len(images)} images: name a folder.")
    return path
