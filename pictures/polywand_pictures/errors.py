"""Errors of image files; the texts are for the file's owner."""


class PictureError(Exception):
    """An image file cannot be read; the text says why."""


class UnreadableError(PictureError):
    """It is not of a supported format, or is damaged or truncated."""


class TooMuchError(PictureError):
    """Decoding it would take more work than any honest file."""


class RangeError(PictureError):
    """The given range of values cannot be used for this file."""


def damaged(why: object) -> UnreadableError:
    """Make the error of a file whose format is known and whose content is invalid."""
    return UnreadableError(f"the image is damaged or truncated ({why})")
