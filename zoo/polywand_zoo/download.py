"""Downloads of large files, resumed after an interruption; parts of different files are never joined."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import httpx

ATTEMPTS = 3  # tries in a row that receive nothing
FIRST_PAUSE_SECONDS = 1.0

WEB_PAGES = ("text/html", "application/xhtml+xml")
_WEB_PAGE = "{url} is a web page, not a file: open it in a browser, and download what it offers there"

# Given where a transfer begins and the whole size, if it is known: shows it while it lasts; to be called with every
# number of bytes that has come.
Progress = Callable[[int, int | None], AbstractContextManager[Callable[[int], object]]]


class DownloadError(Exception):
    """The download failed; the message says why. What was received is kept where a later try can continue it."""


class _BrokenError(Exception):
    """The transfer failed in a way that may pass with another try; the message says how."""


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where the bytes beside it come from, as JSON in a file.

    validator: a strong ETag or a date, by which the server detects whether the file is still the same; empty if it gave
    none. sha256: of the whole file, empty until it is whole.
    """

    url: str
    validator: str = ""
    sha256: str = ""


def file_name(url: str) -> str:
    """Return the file's name in a URL; empty if it has none.

    Raises:
        DownloadError: it is no address of the web.
    """
    try:
        parsed = urlsplit(url)
        is_of_the_web = parsed.scheme in ("http", "https") and bool(parsed.hostname) and bool(httpx.URL(url))
    except (ValueError, httpx.InvalidURL):
        is_of_the_web = False
    if not is_of_the_web:
        raise DownloadError(f"{url} is no address of the web: it has to begin with https:// or http:// and a host")
    return unquote(PurePosixPath(urlsplit(url).path).name).replace("/", "_").lstrip(".")


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None,
    progress: Progress,
    tell: Callable[[str], None],
    timeout_seconds: float,
) -> str:
    """Download a file unless it is there already; returns its SHA-256.

    url: one that `file_name` accepts.
    target: where it is kept, with a small `.json` beside it that says where it comes from.
    sha256: that it has to have, in small letters; None if it is not known.
    tell: called with a line when the file exists already, and when a transfer failed and is resumed.
    timeout_seconds: how long to wait for the next byte.

    Raises:
        DownloadError
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            found = _downloaded_before(url, target, sha256)
            if found:
                tell(f"{target} is there already")
                return found
            _fetch(url, target, progress, tell, timeout_seconds)
            return _finish(url, target, sha256)
    except OSError as error:
        raise DownloadError(f"{target} cannot be written: {error.strerror or error}") from error


def _downloaded_before(url: str, target: Path, wanted: str | None) -> str:
    """Return the sum of a whole file from the same URL; empty if it is missing, damaged or another one."""
    origin = _origin_of(target)
    if not target.is_file() or origin is None or origin.url != url or not origin.sha256:
        return ""
    return origin.sha256 if _sha256(target) == origin.sha256 and wanted in (None, origin.sha256) else ""


def _fetch(url: str, target: Path, progress: Progress, tell: Callable[[str], None], timeout_seconds: float) -> None:
    """Transfer until the part is whole; tries that bring nothing are counted."""
    part, failures = _part_of(target), 0
    farthest = _size(part)
    while True:
        try:
            with httpx.Client(follow_redirects=True, timeout=timeout_seconds) as client:
                return _transfer(client, url, part, progress)
        except (_BrokenError, httpx.TransportError) as error:
            reason = _in_words(error, url, timeout_seconds)
            failures = 0 if _size(part) > farthest else failures + 1
            farthest = max(farthest, _size(part))
            if failures >= ATTEMPTS or isinstance(error, httpx.ConnectError | httpx.UnsupportedProtocol):
                kept = "; the same command goes on from what has come" if _may_go_on(url, part) else ""
                raise DownloadError(f"{reason}{kept}") from error
            tell(f"{reason}: trying again")
            time.sleep(FIRST_PAUSE_SECONDS * 2**failures)
        except httpx.TooManyRedirects as error:
            raise DownloadError(f"{url} leads round in circles") from error


def _transfer(client: httpx.Client, url: str, part: Path, progress: Progress) -> None:
    """Get the rest of a part, or the whole file where the server has another version of it."""
    headers = {"Accept-Encoding": "identity"}  # ranges and sums are of the file itself
    origin = _origin_of(part)
    if origin is not None and _may_go_on(url, part):
        headers |= {"Range": f"bytes={_size(part)}-", "If-Range": origin.validator}
    with client.stream("GET", url, headers=headers) as response:
        if _has_nothing_more(response, part):
            return
        start, total = _accept(response, url, part)
        if total is not None:
            _check_space(part, total - start)
        if start == 0:
            part.unlink(missing_ok=True)  # first, so that these bytes never lie beside another file's validator
            _write_origin(part, _Origin(url, _validator(response)))
        with part.open("ab" if start else "wb") as file, progress(start, total) as advance:
            for chunk in response.iter_raw():
                file.write(chunk)
                advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and _size(part) != total:
        raise _BrokenError(f"{_host(url)} sent {_size(part)} bytes of {total}")


def _accept(response: httpx.Response, url: str, part: Path) -> tuple[int, int | None]:
    """Read a response's headers: the offset of its first byte, and the whole file's size if known.

    Raises:
        DownloadError, _BrokenError
    """
    if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        _discard(part)
        raise _BrokenError(f"{_host(url)} has nothing beyond what has come")
    if response.status_code >= 500 or response.status_code == httpx.codes.TOO_MANY_REQUESTS:
        raise _BrokenError(f"{_host(url)} answers {response.status_code} {response.reason_phrase}")
    if response.status_code == httpx.codes.NOT_FOUND:
        raise DownloadError(f"{url} does not exist (404)")
    if response.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
        raise DownloadError(
            f"{url} cannot be downloaded: the server answers {response.status_code} {response.reason_phrase}"
        )
    if response.headers.get("Content-Type", "").partition(";")[0].strip().lower() in WEB_PAGES:
        raise DownloadError(_WEB_PAGE.format(url=url))
    if response.status_code == httpx.codes.OK:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    start, total = _content_range(response)
    if start != _size(part):
        _discard(part)
        raise _BrokenError(f"{_host(url)} sent another part of the file than was asked for")
    return start, total


def _has_nothing_more(response: httpx.Response, part: Path) -> bool:
    """Whether the part is whole; the server would have sent another file from its beginning."""
    is_at_end = response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE
    return is_at_end and response.headers.get("Content-Range") == f"bytes */{_size(part)}"


def _content_range(response: httpx.Response) -> tuple[int, int | None]:
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if match is None:
        return -1, None
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _finish(url: str, target: Path, wanted: str | None) -> str:
    """Check the whole part and rename it to the target."""
    part = _part_of(target)
    with part.open("rb") as content:
        if content.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html")):
            _discard(part)
            raise DownloadError(_WEB_PAGE.format(url=url))
    found = _sha256(part)
    if wanted is not None and found != wanted:
        _discard(part)
        raise DownloadError(f"{url} has SHA-256 {found}, not {wanted} as it should: it was deleted")
    origin = _origin_of(part) or _Origin(url)
    target.unlink(missing_ok=True)  # so that an old file never lies beside the new one's origin
    _write_origin(target, _Origin(url, origin.validator, found))
    part.rename(target)
    _origin_path(part).unlink(missing_ok=True)
    return found


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _origin_path(part).unlink(missing_ok=True)


def _may_go_on(url: str, part: Path) -> bool:
    """Whether a part can be continued: it is of this URL, and its server sent a validator."""
    origin = _origin_of(part)
    return _size(part) > 0 and origin is not None and origin.url == url and bool(origin.validator)


def _validator(response: httpx.Response) -> str:
    etag: str = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if free < needed:
        raise DownloadError(
            f"{part.parent} has {free / 1e6:.1f} MB free, and the download needs {needed / 1e6:.1f} MB more"
        )


def _in_words(error: Exception, url: str, timeout_seconds: float) -> str:
    host = _host(url)
    match error:
        case _BrokenError():
            return str(error)
        case httpx.ConnectTimeout():
            return f"{host} did not answer within {timeout_seconds:g} s"
        case httpx.TimeoutException():
            return f"{host} sent nothing for {timeout_seconds:g} s"
        case httpx.ConnectError():
            return f"{host} cannot be reached ({error})"
        case _:
            return f"{host} broke off the download ({error})"


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Lock the download of this file; another command that wants it fails with a message."""
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(f"{target} is being downloaded by another command") from None
        yield


def _part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _origin_path(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def _origin_of(file: Path) -> _Origin | None:
    try:
        return _Origin(**json.loads(_origin_path(file).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _write_origin(file: Path, origin: _Origin) -> None:
    _origin_path(file).write_text(json.dumps(asdict(origin), indent=1) + "\n")


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
