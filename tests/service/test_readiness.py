"""What ready means: every model was tried once, and what is named in --ready-models serves."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.bench.at_once import detect_and_click
from tests.running import Service, copy_newest, running_service, wait_for
from tests.streams import is_ready, raw_image
from tests.tools.tending import add_puppet

MANY = 150
HEADERS_BYTES = 8 * 1024


def add_many_tools(repository: Path) -> None:
    """One model that is many tools with long names."""
    config = add_puppet(repository, "many", 1) / "config.pbtxt"
    text = config.read_text()
    found = re.search(r"string_value: '(\{.*\})'", text)
    card = json.loads(found[1])
    tools = {"tools": {f"tool{number:03}{'_of_many' * 15}": card for number in range(MANY)}}
    config.write_text(text.replace(found[0], f"string_value: '{json.dumps(tools)}'"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository where one version is broken, beside folders that are no models."""
    folder = tmp_path_factory.mktemp("readiness")
    repository = copy_newest(folder / "models", "wand", "nanodet")
    (repository / "nanodet" / "2").mkdir()
    (repository / "nanodet" / "2" / "model.onnx").write_text("x\n")
    for name in ("notes", "__pycache__", "nanodet/2~", "wand/notes"):
        (repository / name).mkdir()
    add_many_tools(repository)
    return repository


@pytest.fixture(scope="module")
def service(repository: Path) -> Iterator[Service]:
    with running_service(repository.parent / "log", f"--model-repository={repository}") as running:
        yield running


@pytest.fixture(scope="module")
def channel(service: Service) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(service.target) as opened:
        yield opened


def test_a_script_that_waits_for_readiness_works_at_once(service):
    detect_and_click(service, "wand_click")


def test_the_log_of_a_start_says_ready_once_and_warns_of_what_is_broken_alone(service):
    own = [line for line in service.log.read_text().splitlines() if " polywand_server." in line]
    assert sum(line.endswith("polywand_server.server: ready") for line in own) == 1
    warnings = [line for line in own if " INFO " not in line]
    assert all("nanodet" in line or "model.onnx" in line for line in warnings), warnings


def test_a_version_that_is_broken_at_the_start_says_why_and_comes_when_its_file_is_right(service, repository, channel):
    stub = annotation_pb2_grpc.AnnotationServiceStub(channel)

    def nanodet() -> dict[int, str]:
        models = {model.name: model for model in stub.ListModels(pb.ListModelsRequest()).models}
        assert not {"notes", "__pycache__"} & models.keys()
        assert is_ready(models["nanodet"])
        return {version.version: version.state_message for version in models["nanodet"].versions}

    assert nanodet()[1] == ""
    assert "model.onnx" in nanodet()[2]
    whole = (repository / "nanodet" / "1" / "model.onnx").read_bytes()
    (repository / "nanodet" / "2" / "model.onnx").write_bytes(whole)
    wait_for(lambda: nanodet() == {1: "", 2: ""}, 60, service)


@pytest.mark.parametrize("field", ["model", "version"])
def test_an_error_about_names_fits_into_headers_however_many_there_are(channel, astronaut, field):
    stub = annotation_pb2_grpc.AnnotationServiceStub(channel)
    request = pb.DetectRequest(model="nanodet", version=77, image=raw_image(astronaut))
    if field == "model":
        request = pb.DetectRequest(model="nobody", image=raw_image(astronaut))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Detect(request)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    sent = sum(len(key) + 4 / 3 * len(value) for key, value in caught.value.trailing_metadata())
    assert 3 * len(caught.value.details()) + sent < HEADERS_BYTES


def test_readiness_of_named_models_waits_for_them_and_for_nothing_else(tmp_path):
    """A name may come later: until then it is told what is missing, to people and to the log."""
    repository = tmp_path / "models"
    add_puppet(repository, "one", 1)
    options = (f"--model-repository={repository}", "--ready-models=one, late")
    with running_service(tmp_path / "log", *options) as service, grpc.insecure_channel(service.target) as channel:
        says = "not ready: waiting for 'late', but there is no such tool or model; there are: one\n"
        wait_for(lambda: service.get("/readyz") == (503, says), 60, service)
        assert "--ready-models names no tool or model: late; there are: one" in service.log.read_text()
        assert service.get("/livez") == (200, "alive\n")
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        add_puppet(tmp_path, "late", 1).rename(repository / "late")
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        assert service.get("/readyz") == (200, "ready\n")
        # What comes later takes no readiness away.
        add_puppet(tmp_path, "broken", 1, broken=[1]).rename(repository / "broken")
        wait_for(lambda: "model broken did not load" in service.log.read_text(), 60, service)
        assert service.get("/readyz") == (200, "ready\n")


def test_an_empty_name_among_those_of_ready_models_is_one_sentence():
    command = [str(Path(sys.executable).parent / "polywand-server"), "--ready-models=nanodet,,wand"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "'--ready-models'" in done.stderr
    assert "a name in the list is empty" in done.stderr
