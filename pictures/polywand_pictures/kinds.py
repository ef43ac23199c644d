"""The format of a file, and errors for formats that are not supported."""

from polywand_pictures import heif, webp
from polywand_pictures.errors import UnreadableError

READ = "JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF or HEIC"
# First bytes of files, and their format.
_STARTS = (
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    *((start, "TIFF") for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    (b"BM", "BMP"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
)
# The same for formats that are not supported.
_NOT_READ: tuple[tuple[bytes, str], ...] = (
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\xff\xd8\xff\xf7", "JPEG-LS"),
    (b"8BPS", "Photoshop (PSD)"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"IIRO", "camera raw (ORF)"),
    (b"IIRS", "camera raw (ORF)"),
    (b"MMOR", "camera raw (ORF)"),
    (b"IIU\0", "camera raw (RW2)"),
    (b"FUJIFILMCCD-RAW", "camera raw (RAF)"),
    (b"FOVb", "camera raw (X3F)"),
    (b"SIMPLE  =", "FITS"),
    (b"\x89HDF", "HDF5"),
    (b"\0\0\1\0", "Windows icon (ICO)"),
    (b"gimp xcf", "GIMP (XCF)"),
    (b"DDS ", "DDS"),
    (b"\xabKTX", "KTX"),
    (b"qoif", "QOI"),
    (b"PF\n", "PFM"),
    (b"Pf\n", "PFM"),
    *((b"P%d" % number, "PNM") for number in range(1, 8)),
    (b"PK\3\4", "ZIP"),
    (b"\x1f\x8b", "gzip"),
    (b"\x1aE\xdf\xa3", "Matroska video"),
    (b"\0\0\1\xba", "MPEG video"),
)


def kind_of(data: memoryview) -> str:
    """Return the format of a file: "JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF" or "HEIC".

    Raises UnreadableError for other formats, which names the format if it is known.
    """
    head = bytes(data[:32])
    for start, name in _NOT_READ:
        if head.startswith(start) and not (name == "PNM" and head[2:3] not in b" \t\r\n#"):
            raise not_read(name)
    kind = next((name for start, name in _STARTS if head.startswith(start)), None)
    kind = kind or ("WEBP" if webp.is_webp(data) else heif.brand(data))
    if kind is None:
        raise _unknown(data)
    return kind


def not_read(name: str) -> UnreadableError:
    """Make the error for a format that is known but not supported."""
    return UnreadableError(f"this is a {name} file, which is not read: save it as PNG or JPEG")


def _unknown(data: memoryview) -> UnreadableError:
    if bytes(data[4:8]) == b"ftyp":
        name = bytes(data[8:12])
        return not_read("camera raw (CR3)" if name == b"crx " else "video")
    if bytes(data[128:132]) == b"DICM":
        return not_read("DICOM")
    text = bytes(data[:1024]).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in text):
        return not_read("SVG")
    if text.startswith((b"<!doctype html", b"<html")):
        return UnreadableError("this is an HTML page, not an image: was it downloaded without logging in?")
    return UnreadableError(f"this is not an image that can be read ({READ})")
