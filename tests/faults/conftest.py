"""Fixtures: services to be harmed, on repositories that may be changed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from polywand_contract.v1 import annotation_pb2_grpc
from tests.faults.clients import own_connection
from tests.faults.models import make_repository
from tests.running import Service, running_service

MODELS = ("wand_click", "shade", "snail")
STREAM_MEMORY_MEBIBYTES = 16
DRAIN_SECONDS = 60  # none of it is used where all clients read
# For one inference among hundreds, on a machine that has other things to do: how soon is for the benchmark to say.
PATIENCE_SECONDS = 150


@pytest.fixture(scope="package")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the shipped click network and two models that keep a journal."""
    return make_repository(tmp_path_factory.mktemp("faults") / "models")


@pytest.fixture(scope="package")
def sturdy(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service that has to stand all those clients; when a test ends, nothing of its clients may be left in it."""
    patience = (f"--infer-timeout-seconds={PATIENCE_SECONDS}", f"--prompt-timeout-seconds={PATIENCE_SECONDS}")
    options = (f"--model-repository={repository}", *patience)
    with running_service(tmp_path_factory.mktemp("sturdy") / "log", *options) as service:
        service.wait_ready(*MODELS)
        yield service


@pytest.fixture
def drain_seconds() -> int:
    """How long the fresh service waits for its streams' ends; a test may want it shorter."""
    return DRAIN_SECONDS


@pytest.fixture
def fresh(repository: Path, tmp_path: Path, drain_seconds: int) -> Iterator[Service]:
    """A service of the test's own: to be ended, or to be measured without the traces of other tests."""
    options = (f"--stream-memory-mebibytes={STREAM_MEMORY_MEBIBYTES}", f"--drain-seconds={drain_seconds}")
    with running_service(tmp_path / "log", f"--model-repository={repository}", *options) as service:
        service.wait_ready(*MODELS)
        yield service


@pytest.fixture
def sturdy_stub(sturdy: Service) -> Iterator[annotation_pb2_grpc.AnnotationServiceStub]:
    """To the sturdy service, on a connection of the test's own."""
    with own_connection(sturdy) as channel:
        yield annotation_pb2_grpc.AnnotationServiceStub(channel)


@pytest.fixture
def fresh_stub(fresh: Service) -> Iterator[annotation_pb2_grpc.AnnotationServiceStub]:
    """To the fresh service."""
    with own_connection(fresh) as channel:
        yield annotation_pb2_grpc.AnnotationServiceStub(channel)
