"""Where the server is, and how the transport behaves."""

import os

DEFAULT_TARGET = "localhost:50051"
TARGET_VARIABLE = "POLYWAND_TARGET"
TIMEOUT_S = 30.0

MAX_SEND_BYTES = 256 << 20  # more than any image that a server takes; it answers with its own limit
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # a polygon at tolerance 0 and a mask are as large as they are
    ("grpc.max_send_message_length", MAX_SEND_BYTES),
    # Notices within 40 s that a server vanished without a word, and keeps idle connections through NATs open.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]


def resolve_target(target: str | None) -> str:
    """Return `target`, else what the environment variable POLYWAND_TARGET says, else "localhost:50051"."""
    return target or os.environ.get(TARGET_VARIABLE) or DEFAULT_TARGET
