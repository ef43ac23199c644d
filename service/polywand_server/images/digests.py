"""Digests of images as they are sent: `ImageInfo.digest` of the contract."""

import hashlib

from polywand_pictures.reader import check_range
from polywand_server.errors import InvalidInputError
from polywand_server.images.checks import in_terms_of
from polywand_server.images.picture import ImageDigest, RawImage, SentImage

DIGEST_BYTES = 32


def digest_of(image: SentImage) -> bytes:
    """Return the SHA-256 of a file's bytes, or of raw pixels with their format and size before them: 32 bytes."""
    hashed = hashlib.sha256()
    if isinstance(image, RawImage):
        pixels = image.pixels
        hashed.update(f"{pixels.format} {pixels.width} {pixels.height}\n".encode())
    hashed.update(image.data)
    return hashed.digest()


def check_digest(image: ImageDigest) -> None:
    """Refuse what cannot be a digest, or a range. Raises InvalidInputError."""
    if len(image.digest) != DIGEST_BYTES:
        text = f"a digest has {DIGEST_BYTES} bytes (SHA-256), and {len(image.digest)} came"
        raise InvalidInputError(image.field, text)
    with in_terms_of(image):
        check_range(image.value_range)
