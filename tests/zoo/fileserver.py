"""A web server on loopback that serves one file, well or badly."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PATIENCE_SECONDS = 60


@dataclass
class FileServer:
    """What is served at any path; change it between requests.

    etag, modified: sent if not empty. ranges: whether Range and If-Range are honoured.
    cut_after: bytes of the body after which the connection is cut, once for each number in the list.
    claim: the size that is claimed, if it is not the true one.
    hang_after: where in the file nothing comes any more. status: instead of 200.
    seen: the Range header of every request, empty where there was none.
    """

    content: bytes
    etag: str = '"one"'
    modified: str = ""
    ranges: bool = True
    kind: str = "application/octet-stream"
    sized: bool = True
    claim: int | None = None
    status: int = 200
    cut_after: list[int] = field(default_factory=list)
    hang_after: int | None = None
    seen: list[str] = field(default_factory=list)
    url: str = ""
    ended: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving(file: FileServer) -> Iterator[FileServer]:
    """Serve on a free port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self, file)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a client that goes in the middle is what some tests are about

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    # Its end waits for the next poll.
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    file.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield file
    finally:
        file.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def answer(handler: BaseHTTPRequestHandler, file: FileServer) -> None:
    wanted = handler.headers.get("Range", "")
    file.seen.append(wanted)
    is_same = handler.headers.get("If-Range", file.etag) in (file.etag, file.modified)
    start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and file.ranges and is_same else None
    size = len(file.content)
    if start is not None and start >= size:
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{size}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    body = file.content[start or 0 :]
    handler.send_response(file.status if start is None else 206)
    if start is not None:
        handler.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
    for name, value in (("ETag", file.etag), ("Last-Modified", file.modified), ("Content-Type", file.kind)):
        if value:
            handler.send_header(name, value)
    handler.send_header(*(("Content-Length", str(file.claim or len(body))) if file.sized else ("Connection", "close")))
    handler.end_headers()
    handler.close_connection = not file.sized
    send_body(handler, file, start or 0)


def send_body(handler: BaseHTTPRequestHandler, file: FileServer, start: int) -> None:
    body = file.content[start:]
    if file.cut_after:
        handler.wfile.write(body[: file.cut_after.pop(0)])
        handler.close_connection = True
    elif file.hang_after is not None:
        handler.wfile.write(file.content[start : max(start, file.hang_after)])
        handler.wfile.flush()
        file.ended.wait(PATIENCE_SECONDS)
        handler.close_connection = True
    else:
        handler.wfile.write(body)
