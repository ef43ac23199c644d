"""A model gets a new version, and loses it again, while annotators work with it: nobody notices but by the number."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient

from polywand.v1 import annotation_pb2 as pb
from polywand.v1.annotation_pb2_grpc import AnnotationServiceStub
from tests.faults.clients import Annotator, own_connection
from tests.running import REPOSITORY, Service, running_service, wait_for

MODEL = "wand_click"
SOON_SECONDS = 30
ANSWERS = 6  # by each annotator, after a change has shown


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Path]]:
    """A service, and the folder of its model, which has version 1."""
    root = tmp_path_factory.mktemp("two-versions")
    folder = root / "models" / MODEL
    shutil.copytree(REPOSITORY / MODEL, folder)
    with running_service(root / "log", f"--model-repository={folder.parent}") as service:
        service.wait_ready(MODEL)
        yield service, folder


@contextmanager
def annotators(service: Service, image) -> Iterator[tuple[list[Annotator], Annotator]]:
    """Three who take the newest version, and one who insists on version 1."""
    with ExitStack() as stack:
        stub = AnnotationServiceStub(stack.enter_context(own_connection(service)))
        newest = [stack.enter_context(Annotator(stub, image, model=MODEL, seed=seed)) for seed in range(3)]
        yield newest, stack.enter_context(Annotator(stub, image, model=MODEL, version=1, seed=3))


def versions(annotator: Annotator) -> list[int]:
    """Of every reply so far; a reply that is no outline fails the test."""
    assert all(reply.HasField("segmentation") for reply in annotator.replies), annotator.replies[-1]
    return [reply.segmentation.version for reply in annotator.replies]


def all_answer_with(version: int, newest: list[Annotator]) -> bool:
    return all(versions(annotator)[-ANSWERS:] == [version] * ANSWERS for annotator in newest)


def reload(service: Service) -> None:
    with InferenceServerClient(service.triton) as triton:
        triton.load_model(MODEL)


def listed(service: Service) -> list[int]:
    with own_connection(service) as channel:
        (model,) = AnnotationServiceStub(channel).ListModels(pb.ListModelsRequest()).models
    return [version.version for version in model.versions if version.ready]


def test_a_new_version_is_used_as_soon_as_it_is_loaded_and_the_old_one_on_demand(two_versions, astronaut):
    service, folder = two_versions
    with annotators(service, astronaut) as (newest, old):
        wait_for(lambda: all_answer_with(1, newest), SOON_SECONDS, service)
        shutil.copytree(folder / "1", folder / "2")
        reload(service)
        wait_for(lambda: all_answer_with(2, newest), SOON_SECONDS, service)
        wait_for(lambda: listed(service) == [1, 2], SOON_SECONDS, service)
        for annotator in newest:
            annotator.stop()
            assert all(before <= after for before, after in pairwise(versions(annotator)))
        old.stop()
        assert set(versions(old)) == {1}


def test_a_version_that_is_taken_back_is_missed_by_nobody(two_versions, astronaut):
    service, folder = two_versions
    if not (folder / "2").exists():
        shutil.copytree(folder / "1", folder / "2")
        reload(service)
    with annotators(service, astronaut) as (newest, old):
        wait_for(lambda: all_answer_with(2, newest), SOON_SECONDS, service)
        shutil.rmtree(folder / "2")
        reload(service)
        wait_for(lambda: all_answer_with(1, newest), SOON_SECONDS, service)
        wait_for(lambda: listed(service) == [1], SOON_SECONDS, service)
        for annotator in newest:
            annotator.stop()
            assert all(before >= after for before, after in pairwise(versions(annotator)))
        old.stop()
        assert set(versions(old)) == {1}
