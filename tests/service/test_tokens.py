"""Tokens and certificates name principals; what is wrong in the principals file is named."""

import hashlib
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from polywand_contract.v1.annotation_pb2 import ListModelsRequest
from polywand_contract.v1.annotation_pb2_grpc import AnnotationServiceStub
from polywand_server.auth.authenticator import CHECK_SECONDS, Authenticator, require
from polywand_server.auth.principals import PrincipalsError
from polywand_server.errors import ForbiddenError, UnauthenticatedError
from polywand_server.principal import ANYBODY, Role
from tests.running import Service, running_service

TOKEN = "t" * 32
HASH = hashlib.sha256(TOKEN.encode()).hexdigest()
ENTRY = f'[[principal]]\nname = "cvat"\ntokens_sha256 = ["{HASH}"]\n'


def _file(folder: Path, text: str) -> Path:
    path = folder / "principals.toml"
    path.write_text(text)
    return path


def test_a_token_names_its_principal_with_its_quotas(tmp_path: Path) -> None:
    text = "[quotas]\ncalls = 3\n" + ENTRY + "[principal.quotas]\nimage_mebibytes = 2\n"
    principal = Authenticator(_file(tmp_path, text)).authenticate([f"Bearer {TOKEN}"])
    assert (principal.name, principal.quotas.calls, principal.quotas.image_bytes) == ("cvat", None, 2 << 20)
    require(principal, Role.ANNOTATE)
    with pytest.raises(ForbiddenError, match="metrics"):
        require(principal, Role.METRICS)


def test_a_certificate_names_its_principal(tmp_path: Path) -> None:
    path = _file(tmp_path, '[[principal]]\nname = "cvat"\ncertificate = "cvat.example"\n')
    assert Authenticator(path).authenticate([], ["other", "cvat.example"]).name == "cvat"


def test_without_a_file_everybody_may_call() -> None:
    assert Authenticator(None).authenticate([]) is ANYBODY


@pytest.mark.parametrize(
    "headers",
    [[], ["Basic abc"], ["Bearer"], ["Bearer wrong"], [f"Bearer {TOKEN}"] * 2, ["Bearer " + "x" * 16384], ["Bearer ä"]],
)
def test_a_call_without_a_right_token_is_refused(tmp_path: Path, headers: list[str]) -> None:
    with pytest.raises(UnauthenticatedError):
        Authenticator(_file(tmp_path, ENTRY)).authenticate(headers)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[", "TOML"),
        ("other = 1", "other"),
        ("principal = 1", "principal"),
        ("[[principal]]\nname = 1", "principal 1: name"),
        (ENTRY + 'roles = ["root"]', r"\(cvat\): roles"),
        (ENTRY + ENTRY, "principal 2 .*name"),
        (ENTRY + '[[principal]]\nname = "b"\ntokens_sha256 = ["' + HASH + '"]', r"\(b\): tokens_sha256"),
        ('[[principal]]\nname = "a"\ntokens_sha256 = ["12"]', "tokens_sha256"),
        ('[[principal]]\nname = "a"', "needs"),
        ("[quotas]\ncalls = -1", "calls"),
        ("[quotas]\nstreams = 1.5", "streams"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(PrincipalsError, match=named):
        Authenticator(_file(tmp_path, text))


def test_a_call_needs_a_token_and_health_does_not(tmp_path: Path, puppets: Service) -> None:
    path, options = _file(tmp_path, ENTRY), (f"--triton-url={puppets.triton}",)
    with (
        running_service(tmp_path / "log", *options, f"--principals={path}") as service,
        grpc.insecure_channel(service.target) as channel,
    ):
        stub = AnnotationServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ListModels(ListModelsRequest())
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        stub.ListModels(ListModelsRequest(), metadata=(("authorization", f"Bearer {TOKEN}"),))
        HealthStub(channel).Check(HealthCheckRequest())
        assert service.metric('polywand_refused_calls_total{reason="NOT_AUTHENTICATED"}') == 1


def test_a_rotated_token_is_taken_and_a_wrong_new_file_keeps_the_old_one(tmp_path: Path) -> None:
    authenticator = Authenticator(_file(tmp_path, ENTRY))
    other = hashlib.sha256(b"new").hexdigest()
    _file(tmp_path, ENTRY.replace(HASH, other))
    time.sleep(CHECK_SECONDS)
    assert authenticator.authenticate(["Bearer new"]).name == "cvat"
    with pytest.raises(UnauthenticatedError):
        authenticator.authenticate([f"Bearer {TOKEN}"])
    _file(tmp_path, "wrong = 1")
    time.sleep(CHECK_SECONDS)
    assert authenticator.authenticate(["Bearer new"]).name == "cvat"
