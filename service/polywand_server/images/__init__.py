"""Images: checked by their header, decoded once, held as RGB with a pyramid of halves, and leased."""

from polywand_server.images.lease import Lease
from polywand_server.images.picture import EncodedImage, ImageDigest, ImageSource, Picture, RawImage
from polywand_server.images.standalone import decode_image
from polywand_server.images.store import ImageStore

__all__ = [
    "EncodedImage",
    "ImageDigest",
    "ImageSource",
    "ImageStore",
    "Lease",
    "Picture",
    "RawImage",
    "decode_image",
]
