"""Opening a photo that the server holds: by its bytes, again by its digest, and by fifty clients at once.

python -m tests.bench.reopen [--times 20] [--clients 50] [--megapixels 24]
"""

import argparse
import os
import socket
import statistics
import struct
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import cv2
import grpc

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.bench.machine import cpu_model
from tests.bench.photos import scaled
from tests.bench.report import number, table
from tests.running import Service, copy_newest, running_service
from tests.streams import InteractStream

DECODED = 'polywand_images_total{outcome="decoded"}'
# The field tcpi_bytes_acked of struct tcp_info in linux/tcp.h.
_TCP_INFO_BYTES, _BYTES_ACKED_AT = 256, 120


def sent_bytes(service: Service) -> int:
    """Bytes that this process has sent to the service on its open connections, by all that the other side confirms."""
    port, total = int(service.target.rpartition(":")[2]), 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.type == socket.SOCK_STREAM and connection.getpeername()[1] == port:
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
                    total += int(struct.unpack_from("=Q", info, _BYTES_ACKED_AT)[0])
    return total


def connected(service: Service, stack: ExitStack) -> annotation_pb2_grpc.AnnotationServiceStub:
    """A stub on a connection of its own, which is up."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    channel = stack.enter_context(grpc.insecure_channel(service.target, options=options))
    grpc.channel_ready_future(channel).result(timeout=30)
    return annotation_pb2_grpc.AnnotationServiceStub(channel)


def opened(service: Service, image: pb.Image) -> tuple[pb.InteractResponse, float, int]:
    """Open an image on a new stream of a new connection: the reply, milliseconds, and bytes sent, headers included."""
    with ExitStack() as stack:
        stub = connected(service, stack)
        before, began = sent_bytes(service), time.perf_counter()
        stream = stack.enter_context(InteractStream(stub))
        reply = stream.ask(image)
        milliseconds = (time.perf_counter() - began) * 1000
        assert reply.HasField("image"), reply
        return reply, milliseconds, sent_bytes(service) - before


def at_once(service: Service, image: pb.Image, clients: int) -> tuple[float, float]:
    """Let so many clients open the same photo at the same moment: decodings, and seconds until the last has it."""
    before, start = service.metric(DECODED), threading.Barrier(clients + 1)
    with ExitStack() as stack:
        stubs = [connected(service, stack) for _ in range(clients)]
        streams: list[InteractStream] = []

        def open_it(stub: annotation_pb2_grpc.AnnotationServiceStub) -> None:
            start.wait()
            stream = InteractStream(stub)
            streams.append(stream)
            assert stream.ask(image, 120).HasField("image")

        threads = [threading.Thread(target=open_it, args=(stub,)) for stub in stubs]
        for thread in threads:
            thread.start()
        start.wait()
        began = time.perf_counter()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
        for stream in streams:
            stack.enter_context(stream)
        return service.metric(DECODED) - before, seconds


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--megapixels", type=float, default=24)
    options = parser.parse_args()
    first, other = (
        pb.Image(encoded=cv2.imencode(".jpg", scaled(name, options.megapixels)[..., ::-1])[1].tobytes())
        for name in ("astronaut", "coffee")
    )
    with tempfile.TemporaryDirectory() as folder:
        repository = copy_newest(Path(folder) / "models", "nanodet")
        with running_service(Path(folder) / "log", f"--model-repository={repository}") as service:
            service.wait_ready("nanodet")
            reply, by_bytes, bytes_sent = opened(service, first)
            again = [opened(service, pb.Image(digest=reply.image.digest)) for _ in range(options.times)]
            resent = opened(service, first)
            decodings, seconds = at_once(service, other, options.clients)
    assert all(found.timing.decode_us == 0 for found, _, _ in (*again, resent))
    times, sent = [found[1] for found in again], max(found[2] for found in again)
    rows = [
        ("opened by its bytes, ms", number(by_bytes), ""),
        ("  bytes sent", number(bytes_sent), ""),
        ("opened again by its digest, ms: median", number(statistics.median(times)), "under 5"),
        ("  slowest", number(max(times)), ""),
        ("  bytes sent", number(sent), "under 1,000"),
        ("its bytes sent again, ms", number(resent[1]), ""),
        (f"{options.clients} clients at once: decodings", f"{decodings:.0f}", "1"),
        ("  seconds until the last has it", number(seconds), ""),
    ]
    print(f"{options.megapixels:g} megapixels, a JPEG of {len(first.encoded) / 1e6:.1f} MB; {options.times} times.")
    print(f"{cpu_model()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}\n")
    print(table(("what", "measured", "target"), rows))


if __name__ == "__main__":
    main()
