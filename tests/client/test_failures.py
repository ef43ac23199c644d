"""What the clients say when the server is away, hangs, dies or drains."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

import polywand
from polywand_contract.v1 import annotation_pb2 as pb
from tests.client.helpers import FACE, polywand_threads
from tests.client.scripted import Script, scripted_server
from tests.running import Service, running_service


@pytest.fixture
def empty_service(tmp_path: Path) -> Iterator[Service]:
    """A service of the test's own, to be hurt; it has no models, and needs none to take images."""
    (tmp_path / "models").mkdir()
    with running_service(tmp_path / "log", f"--model-repository={tmp_path / 'models'}") as service:
        yield service


def test_no_server_is_told_in_a_sentence() -> None:
    with polywand.connect("localhost:1") as client:
        with pytest.raises(polywand.Unavailable, match=r"No Polywand server answers at localhost:1\. Is it running\?"):
            client.models()
        image = np.zeros((4, 4, 3), np.uint8)
        for options in ({"reconnect": False}, {"timeout": 0.5}):  # it may be starting
            with pytest.raises(polywand.Unavailable, match="No Polywand server answers at localhost:1"):
                client.open(image, **options)
            with pytest.raises(polywand.Unavailable, match="No Polywand server answers at localhost:1"):
                list(client.detect_stream([image], **options))
    assert not polywand_threads()


def test_the_environment_names_the_server(monkeypatch: pytest.MonkeyPatch, server: Service) -> None:
    monkeypatch.delenv("POLYWAND_TARGET", raising=False)
    assert polywand.connect().target == "localhost:50051"
    monkeypatch.setenv("POLYWAND_TARGET", server.target)
    with polywand.connect() as client:
        assert client.models()


@pytest.mark.parametrize(("timeout", "reconnect"), [(30, False), (3, True)])
def test_a_server_that_dies_fails_every_waiting_prompt(
    empty_service: Service, astronaut: NDArray[np.uint8], timeout: float, reconnect: bool
) -> None:
    """At once, or when the time is over in which the session has looked for another one."""
    with (
        polywand.connect(empty_service.target, timeout=timeout) as client,
        client.open(astronaut, reconnect=reconnect) as session,
    ):
        empty_service.process.send_signal(signal.SIGSTOP)
        with ThreadPoolExecutor(3) as threads:
            waiting = [threads.submit(session.prompt, "x", object_id=str(n), positive=[FACE]) for n in range(3)]
            time.sleep(0.3)
            assert not any(prompt.done() for prompt in waiting)
            empty_service.process.kill()
            for prompt in waiting:
                error = prompt.exception(20)
                assert isinstance(error, polywand.Unavailable)
                assert "did not answer" not in str(error)
        with pytest.raises(polywand.Unavailable):
            session.prompt("x", positive=[FACE])


def test_a_server_that_hangs_is_given_up_after_the_timeout(
    empty_service: Service, astronaut: NDArray[np.uint8]
) -> None:
    with polywand.connect(empty_service.target, timeout=2) as client, client.open(astronaut) as session:
        empty_service.process.send_signal(signal.SIGSTOP)
        try:
            calls: list[Callable[[], object]] = [
                lambda: session.prompt("x", positive=[FACE]),
                lambda: client.detect(astronaut),
                lambda: next(client.detect_stream([astronaut])),
                client.models,
            ]

            def check(call: Callable[[], object]) -> None:
                started = time.monotonic()
                with pytest.raises(polywand.Unavailable, match="did not answer") as error:
                    call()
                assert error.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
                assert 1.9 < time.monotonic() - started < 20  # less than the 30 seconds of the default

            with ThreadPoolExecutor(len(calls)) as threads:
                assert list(threads.map(check, calls)) == [None] * len(calls)
        finally:
            os.kill(empty_service.process.pid, signal.SIGCONT)


def test_a_draining_server_says_so(empty_service: Service, astronaut: NDArray[np.uint8]) -> None:
    with polywand.connect(empty_service.target) as client, client.open(astronaut, reconnect=False) as session:
        empty_service.process.send_signal(signal.SIGTERM)
        empty_service.process.wait(60)
        with pytest.raises(polywand.Draining, match="draining"):
            session.prompt("x", positive=[FACE])


class CutOnce(Script):
    """Calls through a proxy whose replica stops at the wrong moment: the first one is cancelled."""

    def ListModels(self, request: pb.ListModelsRequest, context: grpc.ServicerContext) -> pb.ListModelsResponse:  # noqa: N802
        if not self.arrivals:
            self.arrivals.append((time.monotonic(), request))
            context.abort(grpc.StatusCode.CANCELLED, "")
        return super().ListModels(request, context)


async def test_a_unary_call_that_a_proxy_cancels_is_made_again() -> None:
    with scripted_server(CutOnce(pages=[["disk"]])) as target, polywand.connect(target, timeout=20) as client:
        assert [model.name for model in client.models()] == ["disk"]
    with scripted_server(CutOnce(pages=[["disk"]])) as target:
        async with polywand.aio.connect(target, timeout=20) as async_client:
            assert [model.name for model in await async_client.models()] == ["disk"]
