"""What several of the client's tests use."""

import threading

FACE = (225, 110)
"""On the face of skimage's astronaut."""


def polywand_threads() -> list[str]:
    """The client's own threads that live now; grpc's carry no name of ours."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("polywand")]
