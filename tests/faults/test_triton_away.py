"""Triton is killed, or hangs, while annotators work: streams get errors, live on, and are answered again after it."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import psutil
import pytest

from polywand_contract.v1.annotation_pb2_grpc import AnnotationServiceStub
from tests.faults.clients import Annotator, own_connection, status
from tests.faults.conftest import MODELS
from tests.faults.footprint import model_processes, shared_memory, tritonserver
from tests.faults.models import count, journal_of
from tests.faults.victim import FIRST_CLICK, SECOND_CLICK
from tests.running import Service, running_service, wait_for
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

ANNOTATORS = 3
CALLED_DEAD = "Triton calls a process of model 'quick' dead"
RESTARTS = "polywand_triton_restarts_total"
SLOW = prompt("shade", FIRST_CLICK, SECOND_CLICK)
CLICK = prompt("quick", (220, 130, POSITIVE))
OK, UNAVAILABLE, DEADLINE_EXCEEDED = (
    grpc.StatusCode.OK,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


# Gives up on an answer soon, as a Triton that hangs gives none; and on that Triton a little later.
IMPATIENT = ("--infer-timeout-seconds=3", "--triton-hang-seconds=4")
SENT = "--shared-memory-mebibytes=0"  # tensors, instead of shared with Triton


@pytest.fixture(scope="module")
def service(request, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose Triton comes to harm, and which has to be the same after it."""
    log = tmp_path_factory.mktemp("triton-away") / "log"
    options = [f"--model-repository={repository}", *request.param]
    with running_service(log, *options) as running:
        running.wait_ready(*MODELS)
        yield running


def went_on(annotator: Annotator) -> bool:
    """Whether the annotator has met an error, and then got answers again."""
    codes = [status(reply) for reply in annotator.replies]
    return set(codes) > {OK} and codes[-3:] == [OK] * 3


@pytest.mark.parametrize(
    ("service", "harm", "in_the_air"),
    [
        ((), signal.SIGKILL, {UNAVAILABLE}),
        (IMPATIENT, signal.SIGSTOP, {UNAVAILABLE, DEADLINE_EXCEEDED}),
        ((*IMPATIENT, SENT), signal.SIGSTOP, {UNAVAILABLE, DEADLINE_EXCEEDED}),
    ],
    ids=["killed", "hung", "hung, with tensors that are sent"],
    indirect=["service"],
)
def test_streams_live_on_without_triton_and_work_again_with_the_next_one(
    service, repository, astronaut, harm, in_the_air
):
    restarts = service.metric(RESTARTS)
    journal = journal_of(repository, "shade")
    began = count(journal, "began")
    harmed = tritonserver(service)
    with ExitStack() as stack:
        stub = AnnotationServiceStub(stack.enter_context(own_connection(service)))
        annotators = [stack.enter_context(Annotator(stub, astronaut, seed=seed)) for seed in range(ANNOTATORS)]
        stream = stack.enter_context(InteractStream(stub))
        stream.ask(raw_image(astronaut))
        first = stream.ask(CLICK)
        wait_for(lambda: all(len(annotator.replies) > 3 for annotator in annotators), 60, service)
        shared = shared_memory(service)

        slow = stream.send(SLOW)
        wait_for(lambda: count(journal, "began") == began + 1, 60, service)
        os.kill(harmed.pid, harm)
        reply = stream.receive(60)
        assert reply.sequence == slow
        assert status(reply) in in_the_air, reply
        assert status(stream.ask(prompt("quick", (150, 400, POSITIVE)), 60)) in in_the_air

        wait_for(lambda: all(went_on(annotator) for annotator in annotators), 60, service)
        undone = stream.ask(CLICK)
        assert undone.timing.inferences == 0
        assert undone.segmentation == first.segmentation
        assert stream.ask(prompt("quick", (150, 400, POSITIVE))).segmentation.shape.polygons
        for annotator in annotators:
            replies = annotator.stop()
            assert set(map(status, replies)) <= {OK, *in_the_air}
            assert all(reply.segmentation.shape.polygons for reply in replies if status(reply) == OK)
    assert service.metric(RESTARTS) == restarts + 1
    assert not harmed.is_running()
    service.wait_ready(*MODELS)
    wait_for(lambda: len(shared_memory(service)) <= len(shared), 60, service)


@pytest.mark.parametrize("service", [()], ids=[""], indirect=True)
def test_a_model_that_stood_still_comes_back_and_triton_goes_on(service, astronaut):
    """Triton calls a model's process dead that had no share of the processor for a second or two; it may live."""
    restarts, server = service.metric(RESTARTS), tritonserver(service)
    with ExitStack() as stack:
        stub = AnnotationServiceStub(stack.enter_context(own_connection(service)))
        annotators = [stack.enter_context(Annotator(stub, astronaut, seed=seed)) for seed in range(ANNOTATORS)]
        wait_for(lambda: all(len(annotator.replies) > 3 for annotator in annotators), 60, service)
        frozen = model_processes(service, "quick")
        assert frozen
        called_dead = service.log.read_text().count(CALLED_DEAD)
        for process in frozen:
            process.suspend()
        wait_for(lambda: service.log.read_text().count(CALLED_DEAD) > called_dead, 60, service)
        for process in frozen:
            with suppress(psutil.NoSuchProcess):
                process.resume()
        wait_for(lambda: all(went_on(annotator) for annotator in annotators), 60, service)
        for annotator in annotators:
            replies = annotator.stop()
            assert set(map(status, replies)) <= {OK, UNAVAILABLE}
            assert all(reply.segmentation.shape.polygons for reply in replies if status(reply) == OK)
    assert service.metric(RESTARTS) == restarts
    assert server.is_running()
    assert not set(frozen) & set(model_processes(service, "quick"))
