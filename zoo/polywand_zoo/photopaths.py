"""Finds photos by the names that annotation tools write: with folders of another machine, backslashes, or as URLs."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote, urlsplit

# Behind which Label Studio names files that it serves from a disk: /data/local-files/?d=folder/photo.jpg
_LOCAL_FILE = "?d="


def find_photo(folders: Sequence[Path], name: str) -> Path | None:
    """Find the file that a name means in the first of the folders that has it; None where none has.

    As it stands, before all; then with less and less of the folders in it, with either slash, its %20 read, whether or
    not it is a URL, and letters with accents in one piece or two.
    """
    for read in _readings(name):
        for folder in folders:
            if _is_file(folder / read):
                return folder / read
    return None


def is_name(name: object) -> bool:
    """Whether a file may have this name at all."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half a character, as JSON can write it
        return False
    return True


def _readings(name: str) -> Iterator[str]:
    """What a name may mean, the most literal first, and more folders of it before fewer."""
    seen = {name}
    yield name
    path = name.partition(_LOCAL_FILE)[2] or name
    ways = [_parts(way) for way in (path, unquote(path), _path_of_url(path))]
    for count in range(max(map(len, ways)), 0, -1):
        for parts in ways:
            rest = "/".join(parts[-count:])
            for reading in (rest, normalize("NFC", rest), normalize("NFD", rest)):
                if len(parts) >= count and reading not in seen and is_name(reading):
                    seen.add(reading)
                    yield reading


def _parts(path: str) -> list[str]:
    return [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]


def _path_of_url(name: str) -> str:
    try:
        return unquote(urlsplit(name).path)
    except ValueError:  # as of http://[
        return name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False
