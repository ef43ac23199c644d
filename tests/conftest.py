"""Fixtures: one real service with one real Triton for the whole run, and real photos."""

import signal
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray

from polywand_contract.v1 import annotation_pb2_grpc
from tests.running import REPOSITORY, Service, running_service

# A job in the background ignores Ctrl-C, and so would the programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service with its embedded Triton and all models of the repository."""
    log = tmp_path_factory.mktemp("service") / "log"
    with running_service(
        log, f"--model-repository={REPOSITORY}", "--max-image-pixels=30000000", "--max-image-mebibytes=80"
    ) as service:
        service.wait_ready("nanodet", "grabcut", "wand_click")
        yield service


@pytest.fixture(scope="session")
def channel(server: Service) -> Iterator[grpc.Channel]:
    """A plain gRPC channel to the service."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server.target, options=options) as opened:
        yield opened


@pytest.fixture(scope="session")
def stub(channel: grpc.Channel) -> annotation_pb2_grpc.AnnotationServiceStub:
    """The contract's generated stub: what any other language would have."""
    return annotation_pb2_grpc.AnnotationServiceStub(channel)


@pytest.fixture(scope="session")
def astronaut() -> NDArray[np.uint8]:
    """A portrait, RGB uint8 [512, 512, 3]."""
    return skimage.data.astronaut()


@pytest.fixture(scope="session")
def coffee() -> NDArray[np.uint8]:
    """A cup on a table, RGB uint8 [400, 600, 3]."""
    return skimage.data.coffee()
