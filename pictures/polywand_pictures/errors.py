"""What can be wrong with a picture file; the texts are for the person who has it."""


class PictureError(Exception):
    """A picture file is not read; its text says why."""


class UnreadableError(PictureError):
    """It is no picture that is read here, or it is damaged or truncated."""


class TooMuchError(PictureError):
    """Decoding it would take more work than any honest file."""


class RangeError(PictureError):
    """The range of values that was said cannot be used for this file."""


def damaged(why: object) -> UnreadableError:
    """Make the error of a file whose kind is known and whose content is wrong."""
    return UnreadableError(f"the image is damaged or truncated ({why})")
