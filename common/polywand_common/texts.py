"""Printable texts from any bytes in file names and arguments."""

import os
import re


def printable(text: str) -> str:
    """Replace surrogates, which Python decodes invalid UTF-8 to, by the replacement character."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def shown(path: str | os.PathLike[str]) -> str:
    """Return a file name for display: on one line, printable, with control characters escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in printable(os.fspath(path))
    )
