"""Texts that can be printed anywhere, whatever bytes a file's name or an argument holds."""

import os
import re


def printable(text: str) -> str:
    """Replace halves of characters, which stand for bytes that are not UTF-8, by the replacement character."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def shown(path: str | os.PathLike[str]) -> str:
    """Return a file's name for display, on one line: printable, and control characters escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in printable(os.fspath(path))
    )
