"""What those who run the service rely on: health, reflection, metrics, shutdown, recovery, a Triton elsewhere."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import grpc
import psutil
import pytest
import trustme
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from polywand_server.triton.embedded.wheel import assemble, environment, find_wheel
from tests.faults.relay import Relay
from tests.interactors import DISK, Gate, add_interactor
from tests.running import (
    REPOSITORY,
    WAND_VERSION,
    Service,
    copy_newest,
    outage,
    running_service,
    tritonservers,
    wait_for,
)
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

SERVICE = "polywand.v1.AnnotationService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
CLICK = prompt("wand_click", (220, 130, POSITIVE))


@pytest.fixture
def own_service(tmp_path):
    """A service that the test may harm."""
    models = copy_newest(tmp_path / "models", "nanodet")
    add_interactor(models, "disk", DISK)
    with running_service(tmp_path / "log", f"--model-repository={models}") as service:
        service.wait_ready("disk", "nanodet")
        yield service


@pytest.mark.parametrize("name", ["", SERVICE])
def test_health_check_says_serving(channel, name):
    health = health_pb2_grpc.HealthStub(channel)
    assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == SERVING


def test_reflection_tells_the_contract(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {SERVICE, "grpc.health.v1.Health"} <= set(database.get_services())
    assert "polywand/v1/annotation.proto" in database.FindFileContainingSymbol(SERVICE).name


def test_the_http_port_tells_life_and_readiness(server):
    assert server.get("/livez") == (200, "alive\n")
    assert server.get("/readyz") == (200, "ready\n")
    assert server.get("/nowhere")[0] == 404


def test_metrics_move(server, stub, astronaut):
    def moved() -> dict[str, float]:
        samples = (
            'polywand_grpc_requests_total{code="OK",method="polywand.v1.AnnotationService/Detect"}',
            'polywand_grpc_requests_total{code="NOT_FOUND",method="polywand.v1.AnnotationService/Detect"}',
            'polywand_prompts_total{model="wand_click",outcome="segmentation"}',
            'polywand_prompts_total{model="wand_click",outcome="error"}',
            'polywand_prompts_total{model="unknown",outcome="error"}',
            'polywand_inferences_total{model="nanodet",outcome="ok",version="1"}',
            f'polywand_inferences_total{{model="wand",outcome="ok",version="{WAND_VERSION}"}}',
            'polywand_stage_duration_seconds_count{model="wand_click",stage="prepare"}',
            'polywand_stage_duration_seconds_count{model="wand_click",stage="triton"}',
            'polywand_stage_duration_seconds_count{model="wand_click",stage="geometry"}',
            'polywand_stage_duration_seconds_count{model="nanodet",stage="decode"}',
            'polywand_stage_duration_seconds_count{model="",stage="decode"}',
            "polywand_image_bytes_count",
            "polywand_image_pixels_count",
            'polywand_images_total{outcome="decoded"}',
            'polywand_image_lookups_total{outcome="hit"}',
            'polywand_image_lookups_total{outcome="miss"}',
        )
        return {sample: server.metric(sample) for sample in samples}

    before = moved()
    new = raw_image(astronaut ^ 1)  # no test has sent it before
    for _ in range(2):
        stub.Detect(pb.DetectRequest(model="nanodet", image=new))
    with pytest.raises(grpc.RpcError):
        stub.Detect(pb.DetectRequest(model="made up by a client", image=raw_image(astronaut)))
    with InteractStream(stub) as stream:
        stream.ask(raw_image(astronaut ^ 2))
        stream.ask(CLICK)
        stream.ask(prompt("wand_click", (9999, 1, POSITIVE)))  # refused at once, since it is not in the image
        stream.ask(prompt("made up by a client", (1, 1, POSITIVE)))
    after = moved()
    assert all(after[sample] > before[sample] for sample in before), {s: after[s] - before[s] for s in before}
    assert server.metric("polywand_triton_up") == 1
    assert server.metric('polywand_models_ready{kind="interactor"}') >= 2
    assert server.metric('polywand_models_ready{kind="detector"}') >= 1
    page = server.get("/metrics")[1]
    assert "polywand_build_info{" in page
    assert "made up by a client" not in page


def test_sigterm_drains_and_leaves_nothing(tmp_path, astronaut):
    """Health turns, the stream is told to reconnect, what it asks is answered nevertheless, Triton is gone."""
    models = tmp_path / "models"
    add_interactor(models, "disk", DISK)
    with running_service(tmp_path / "log", f"--model-repository={models}", "--drain-seconds=60") as service:
        service.wait_ready("disk")
        family = psutil.Process(service.process.pid).children(recursive=True)
        assert tritonservers(service)
        drains_around_a_prompt(service, models, raw_image(astronaut))
        assert service.process.wait(50) == 0
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


def drains_around_a_prompt(service: Service, models: Path, image: pb.Image) -> None:
    with grpc.insecure_channel(service.target) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert next(watch).status == SERVING
        with InteractStream(annotation_pb2_grpc.AnnotationServiceStub(channel)) as stream:
            stream.ask(image)
            with Gate(models, "disk") as gate:
                sequence = stream.send(prompt("disk", (220, 130, POSITIVE)))
                gate.wait_until_begun()
                service.process.send_signal(signal.SIGTERM)
                assert next(watch).status == NOT_SERVING
                assert "reconnect" in stream.receive().draining.message  # while the prompt is in work
                another = stream.send(prompt("disk", (100, 130, POSITIVE)))
                stream.wait_until_read()
            for expected in (sequence, another):
                reply = stream.receive()
                assert reply.sequence == expected
                assert reply.segmentation.shape.polygons
            assert stream.receive_end() == grpc.StatusCode.OK


def test_sigterm_waits_for_an_image_that_is_still_on_its_way(own_service, astronaut):
    """A slow line takes seconds for what was begun in time; it is answered like everything else."""
    with (
        Relay(own_service.target, 200_000) as relay,
        grpc.insecure_channel(relay.target) as channel,
    ):
        stub = annotation_pb2_grpc.AnnotationServiceStub(channel)
        coming = stub.Detect.future(pb.DetectRequest(model="nanodet", image=raw_image(astronaut)), timeout=60)
        assert relay.full.wait(30)
        time.sleep(2)  # so that the service has taken note of what has reached its socket
        own_service.process.send_signal(signal.SIGTERM)
        wait_for(lambda: own_service.get("/readyz") == (503, "not ready: draining\n"), 30, own_service)
        time.sleep(1.5)
        relay.go_on.set()
        assert [found.label for found in coming.result().detections]
    assert own_service.process.wait(60) == 0
    assert "cancelled" not in own_service.log.read_text()


def test_a_service_killed_outright_leaves_no_triton(own_service):
    family = psutil.Process(own_service.process.pid).children(recursive=True)
    own_service.process.kill()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


UNWATCHED = """
import sys
from polywand_server.cli import main
from polywand_server.triton.embedded.process import TritonProcess

kill = TritonProcess.kill

async def fail(self):
    TritonProcess.kill = kill
    raise PermissionError("of what nobody thought of")

TritonProcess.kill = fail
sys.argv[1:] = ["--grpc-port=0", "--http-port=0", "--model-repository", *sys.argv[1:]]
main()
"""


def test_a_service_that_cannot_watch_over_its_triton_any_more_says_so_and_ends(tmp_path):
    """Whoever runs it starts it again; else Triton would stay away for good."""
    (tmp_path / "models").mkdir()
    command = [sys.executable, "-c", UNWATCHED, str(tmp_path / "models")]
    with (tmp_path / "log").open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    log = tmp_path / "log"
    try:
        wait_for(lambda: "Triton answers" in log.read_text(), 60)
        family = psutil.Process(process.pid).children(recursive=True)
        next(child for child in family if child.name() == "tritonserver").kill()
        assert process.wait(60) == 1
    finally:
        process.kill()
    assert "the task 'keep Triton running' ended, which it must not: stopping" in log.read_text()
    assert "of what nobody thought of" in log.read_text()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


def test_a_killed_triton_is_unavailable_for_a_while_and_the_stream_lives_on(own_service, astronaut):
    with grpc.insecure_channel(own_service.target) as channel:
        stub = annotation_pb2_grpc.AnnotationServiceStub(channel)
        with InteractStream(stub) as stream:
            stream.ask(raw_image(astronaut))
            first = stream.ask(prompt("disk", (220, 130, POSITIVE)))
            with outage(own_service):
                reply = stream.ask(prompt("disk", (150, 400, POSITIVE)))
                assert reply.error.code == grpc.StatusCode.UNAVAILABLE.value[0], reply
                assert "riton" in reply.error.message
                retry = error_details_pb2.RetryInfo()
                assert reply.error.details[0].Unpack(retry)
                assert 0 < retry.retry_delay.ToTimedelta().total_seconds() < 1
                with pytest.raises(grpc.RpcError) as caught:
                    stub.Detect(pb.DetectRequest(model="nanodet", image=raw_image(astronaut)))
                assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
                wait_for(lambda: own_service.get("/readyz")[0] == 503, 30, own_service)

            def answers() -> bool:
                return bool(stream.ask(prompt("disk", (150, 400, POSITIVE))).segmentation.shape.polygons)

            wait_for(answers, 60, own_service)
            wait_for(lambda: own_service.get("/readyz")[0] == 200, 30, own_service)
            assert (
                stream.ask(prompt("disk", (220, 130, POSITIVE))).segmentation == first.segmentation
            )  # remembered over the outage
            restarts = own_service.log.read_text().count("restarting it")
            assert own_service.metric("polywand_triton_restarts_total") == restarts >= 1


@pytest.fixture
def certificates(tmp_path):
    """PEM files of a private authority, of Triton on localhost, and of the service as its client."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name in ("localhost", "polywand"):
        issued = authority.issue_cert(name)
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    return tmp_path


@pytest.fixture
def triton_by_hand(certificates, tmp_path):
    """NVIDIA's tritonserver as somebody else would run it: on a TCP port, for clients with a certificate only."""
    wheel, scratch = find_wheel(), tmp_path / "by-hand"
    assemble(wheel, scratch)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = [
        *(str(wheel.server), f"--model-repository={REPOSITORY}", f"--backend-directory={scratch / 'backends'}"),
        *("--model-control-mode=explicit", "--load-model=wand", "--disable-auto-complete-config"),
        *("--grpc-address=127.0.0.1", f"--grpc-port={port}", "--allow-http=false", "--allow-metrics=false"),
        *("--grpc-use-ssl=true", "--grpc-use-ssl-mutual=true", f"--grpc-root-cert={certificates / 'ca.pem'}"),
        f"--grpc-server-cert={certificates / 'localhost.pem'}",
        f"--grpc-server-key={certificates / 'localhost.key'}",
    ]
    with (tmp_path / "triton.log").open("wb") as log:
        process = subprocess.Popen(arguments, env=environment(wheel, scratch), stdout=log, stderr=log)
    yield f"localhost:{port}"
    process.terminate()
    process.wait(30)


def test_a_triton_elsewhere_serves_over_mutual_tls(triton_by_hand, certificates, tmp_path, astronaut):
    """Nothing is loaded on its behalf: what it has is what there is."""
    options = [f"--triton-url={triton_by_hand}", f"--triton-tls-ca={certificates / 'ca.pem'}"]
    identity = [
        f"--triton-tls-key={certificates / 'polywand.key'}",
        f"--triton-tls-cert={certificates / 'polywand.pem'}",
    ]
    with running_service(tmp_path / "log", *options, *identity) as service:
        service.wait_ready("wand_click")
        assert not tritonservers(service)
        with grpc.insecure_channel(service.target) as channel:
            stub = annotation_pb2_grpc.AnnotationServiceStub(channel)
            listed = [model.name for model in stub.ListModels(pb.ListModelsRequest()).models]
            assert listed == ["wand_box", "wand_click", "wand_extreme"]
            with InteractStream(stub) as stream:
                stream.ask(raw_image(astronaut))
                assert stream.ask(CLICK).segmentation.shape.polygons
    with running_service(tmp_path / "log without a certificate", *options) as stranger:
        wait_for(lambda: "WARNING" in stranger.log.read_text(), 30, stranger)  # a poll has been refused
        assert "Triton answers" not in stranger.log.read_text()
        assert stranger.get("/readyz")[0] == 503


def test_without_any_triton_the_service_is_alive_and_not_ready(tmp_path):
    with running_service(tmp_path / "log", "--triton-url=127.0.0.1:9") as service:
        assert service.get("/livez")[0] == 200
        wait_for(lambda: service.get("/readyz") == (503, "not ready: Triton does not answer\n"), 30, service)
        with grpc.insecure_channel(service.target) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest()).status == NOT_SERVING
            stub = annotation_pb2_grpc.AnnotationServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.Detect(pb.DetectRequest(model="nanodet", image=pb.Image(encoded=b"x")))
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model-repository=/nowhere/at/all"], "there is no model repository at '/nowhere/at/all'"),
        (["--triton-url=127.0.0.1:9", "--triton-tls-key=pyproject.toml"], "belong together"),
    ],
)
def test_a_wrong_option_is_one_sentence(tmp_path, options, sentence):
    with pytest.raises(AssertionError) as caught, running_service(tmp_path / "log", *options):
        pass
    assert sentence in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(("host", "others"), [("::1", ["[::1]"]), ("::", ["[::1]", "127.0.0.1"])])
def test_the_service_listens_on_ipv6_where_the_machine_has_it(tmp_path, host, others):
    """Where it has none, the sentence names the option that is wrong."""
    options = [f"--host={host}", "--insecure", "--triton-url=127.0.0.1:9"]
    if not has_ipv6():
        with pytest.raises(AssertionError) as caught, running_service(tmp_path / "log", *options):
            pass
        assert "choose another --host" in str(caught.value)
        return
    with running_service(tmp_path / "log", *options) as service:
        grpc_port, http_port = (address.rpartition(":")[2] for address in (service.target, service.http))
        for other in others:
            with urllib.request.urlopen(f"http://{other}:{http_port}/livez", timeout=10) as response:
                assert response.status == 200
            with grpc.insecure_channel(f"{other}:{grpc_port}") as channel:
                models = annotation_pb2_grpc.AnnotationServiceStub(channel).ListModels(pb.ListModelsRequest())
                assert not models.models


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_an_address_of_another_machine_is_one_sentence(tmp_path):
    options = ["--host=192.0.2.1", "--insecure", "--triton-url=127.0.0.1:9"]
    with pytest.raises(AssertionError) as caught, running_service(tmp_path / "log", *options):
        pass
    assert "choose another --host" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_port_in_use_is_one_sentence(server, tmp_path):
    port = server.target.rpartition(":")[2]
    log = tmp_path / "log"
    with pytest.raises(AssertionError) as caught, running_service(log, "--triton-url=x:1", f"--grpc-port={port}"):
        pass
    assert f"127.0.0.1:{port} (is it in use?)" in str(caught.value)


def test_every_option_is_an_environment_variable():
    def run(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "polywand-server"), *options]
        return subprocess.run(
            command, env=os.environ | variables, capture_output=True, text=True, timeout=120, check=False
        )

    refused = run(POLYWAND_MAX_IMAGE_PIXELS="not a number")
    assert refused.returncode == 2
    assert "--max-image-pixels" in refused.stderr
    told = run("--help").stdout
    options = re.findall(r"^  (--[a-z-]+)", told, re.MULTILINE)
    assert len(options) > 10
    for option in set(options) - {"--version"}:
        assert "POLYWAND_" + option.removeprefix("--").upper().replace("-", "_") in told
