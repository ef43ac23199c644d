"""Fixtures: services to be harmed, on repositories that may be changed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from polywand_contract.v1 import annotation_pb2_grpc
from tests.faults.clients import own_connection
from tests.faults.footprint import wait_for_rest
from tests.faults.models import make_repository
from tests.running import Service, running_service

MODELS = ("quick", "steady", "shade", "snail")
DRAIN_SECONDS = 60  # none of it is used where all clients read
# For one inference among hundreds, on a machine that has other things to do: how soon is for the benchmark to say.
PATIENCE_SECONDS = 150


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a quick interactor and two models that keep a journal."""
    return make_repository(tmp_path_factory.mktemp("faults") / "models")


@pytest.fixture(scope="session")
def sturdy_service(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service that all tests share which leave it as it was."""
    patience = (f"--infer-timeout-seconds={PATIENCE_SECONDS}", f"--prompt-timeout-seconds={PATIENCE_SECONDS}")
    options = (f"--model-repository={repository}", *patience)
    with running_service(tmp_path_factory.mktemp("sturdy") / "log", *options) as service:
        service.wait_ready(*MODELS)
        yield service


@pytest.fixture
def sturdy(sturdy_service: Service) -> Service:
    """That service, when nothing is left of the clients of the test before: what it counts is of this test alone."""
    wait_for_rest(sturdy_service)
    return sturdy_service


@pytest.fixture
def drain_seconds() -> int:
    """How long the fresh service waits for its streams' ends; a test may want it shorter."""
    return DRAIN_SECONDS


@pytest.fixture
def fresh(repository: Path, tmp_path: Path, drain_seconds: int) -> Iterator[Service]:
    """A service of the test's own, which it ends."""
    options = (f"--model-repository={repository}", f"--drain-seconds={drain_seconds}")
    with running_service(tmp_path / "log", *options) as service:
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
