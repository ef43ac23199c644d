"""Fixtures of the service's tests."""

import pytest

from polywand_contract.v1 import annotation_pb2_grpc
from tests.running import Service, images_in_use, wait_for


@pytest.fixture
def idle_stub(puppets: Service, puppet_stub) -> annotation_pb2_grpc.AnnotationServiceStub:
    """To the puppets, when no stream of an earlier test has an image any more."""
    wait_for(lambda: images_in_use(puppets) == 0, 60, puppets)
    return puppet_stub
