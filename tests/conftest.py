"""Fixtures: two real services, each with its own Triton, for each pytest process; and real photos.

`server` has the models that are shipped: for what the tools promise. `puppets` has models in Python that take some
milliseconds (tests/puppets.py): for what the service promises, whatever the model. Each starts when a test first wants
it and serves until the process ends. A test that harms its service, or needs other options, starts its own with
`running_service`, on puppets where it can.
"""

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray

from polywand_contract.v1 import annotation_pb2_grpc
from tests.puppets import OPTIONS, make_puppets
from tests.running import REPOSITORY, Service, running_service

# A job in the background ignores Ctrl-C, and so would the programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files with the fewest tests first: those are the slow ones, and workers end together on quick ones."""
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: tests[item.path])  # stable: a file's tests stay in order


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
def puppet_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of the puppets, to which a test may add what it also removes."""
    return make_puppets(tmp_path_factory.mktemp("puppets") / "models")


@pytest.fixture(scope="session")
def puppets(puppet_models: Path) -> Iterator[Service]:
    """The service with its embedded Triton and puppets, with little memory for images and masks."""
    log = puppet_models.parent / "log"
    with running_service(log, f"--model-repository={puppet_models}", *OPTIONS) as service:
        service.wait_ready()
        yield service


@pytest.fixture(scope="session")
def puppet_stub(puppets: Service) -> Iterator[annotation_pb2_grpc.AnnotationServiceStub]:
    """The contract's stub to the puppets."""
    with grpc.insecure_channel(puppets.target) as opened:
        yield annotation_pb2_grpc.AnnotationServiceStub(opened)


@pytest.fixture(scope="session")
def astronaut() -> NDArray[np.uint8]:
    """A portrait, RGB uint8 [512, 512, 3]."""
    return skimage.data.astronaut()


@pytest.fixture(scope="session")
def coffee() -> NDArray[np.uint8]:
    """A cup on a table, RGB uint8 [400, 600, 3]."""
    return skimage.data.coffee()
