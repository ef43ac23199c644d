"""Who may call: tokens, JSON Web Tokens and certificates, over gRPC and HTTP."""

import hashlib
import hmac
import http.server
import json
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import jwt
import numpy as np
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import polywand
from polywand_contract.v1.annotation_pb2 import ListModelsRequest
from polywand_contract.v1.annotation_pb2_grpc import AnnotationServiceStub
from tests.running import Service, running_service, wait_for

CA = trustme.CA()
TOKEN, SCRAPER, NEW = "t" * 32, "s" * 32, "n" * 32
KEY, OTHER_KEY = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
ISSUER, AUDIENCE = "https://login.example", "polywand"
PIXELS = np.zeros((64, 64, 3), np.uint8)


def hash_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def principals(*hashes: str) -> str:
    tokens = ", ".join(f'"{one}"' for one in hashes)
    return f"""
[[principal]]
name = "cvat"
tokens_sha256 = [{tokens}]
[[principal]]
name = "prometheus"
tokens_sha256 = ["{hash_of(SCRAPER)}"]
roles = ["metrics"]
[[principal]]
name = "studio"
certificate = "studio.example"
"""


def jwks(*keys: ec.EllipticCurvePrivateKey) -> str:
    algorithm = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256)
    made = [json.loads(algorithm.to_jwk(key.public_key())) for key in keys]
    return json.dumps({"keys": [one | {"kid": str(number)} for number, one in enumerate(made)]})


def signed(key: ec.EllipticCurvePrivateKey = KEY, kid: str = "0", **claims: object) -> str:
    known = {"sub": "alice", "iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 600}
    whole = {name: value for name, value in (known | claims).items() if value is not None}
    return jwt.encode(whole, key, "ES256", {"kid": kid})


def base64(data: str | bytes) -> str:
    return urlsafe_b64encode(data.encode() if isinstance(data, str) else data).rstrip(b"=").decode()


@dataclass(frozen=True)
class Guarded:
    """A service that wants tokens. folder: of its files."""

    service: Service
    folder: Path
    channel: grpc.Channel

    def code(self, *metadata: tuple[str, str]) -> grpc.StatusCode:
        """The status of a call with this metadata."""
        try:
            AnnotationServiceStub(self.channel).ListModels(ListModelsRequest(), metadata=metadata)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    def by(self, token: str) -> grpc.StatusCode:
        return self.code(("authorization", f"Bearer {token}"))

    def http(self, path: str, token: str | None = None) -> tuple[int, str | None]:
        """Status, and the header that says how to authenticate."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(self.service.http + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, None
        except urllib.error.HTTPError as error:
            return error.code, error.headers["www-authenticate"]


@pytest.fixture(scope="module")
def guarded(puppets, tmp_path_factory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "principals.toml").write_text(principals(hash_of(TOKEN)))
    (folder / "jwks.json").write_text(jwks(KEY))
    tokens = f"--principals={folder / 'principals.toml'}", f"--jwks={folder / 'jwks.json'}"
    claims = f"--jwt-issuer={ISSUER}", f"--jwt-audience={AUDIENCE}"
    with (
        running_service(folder / "log", f"--triton-url={puppets.triton}", *tokens, *claims) as service,
        grpc.insecure_channel(service.target) as channel,
    ):
        service.wait_ready()
        yield Guarded(service, folder, channel)


def test_a_call_needs_a_token_and_health_and_probes_need_none(guarded):
    assert guarded.code() is grpc.StatusCode.UNAUTHENTICATED
    assert guarded.by(TOKEN) is grpc.StatusCode.OK
    health_pb2_grpc.HealthStub(guarded.channel).Check(health_pb2.HealthCheckRequest())
    assert guarded.http("/livez")[0] == guarded.http("/readyz")[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        [("authorization", "Basic abc")],
        [("authorization", "Bearer")],
        [("authorization", f"Bearer {'w' * 32}")],
        [("authorization", f"Bearer {TOKEN}")] * 2,
        [("authorization", f"Bearer {'x' * 10_000}")],
        [("authorization-bin", b"\xff")],
    ],
)
def test_what_is_no_token_is_refused_counted_and_logged_without_it(guarded, sent):
    sample = 'polywand_refused_calls_total{reason="NOT_AUTHENTICATED"}'
    assert guarded.code(*sent) is grpc.StatusCode.UNAUTHENTICATED
    page = urllib.request.Request(guarded.service.http + "/metrics", headers={"authorization": f"Bearer {SCRAPER}"})
    with urllib.request.urlopen(page) as response:
        assert float(response.read().decode().split(sample)[1].split()[0]) >= 1
    log = guarded.service.log.read_text()
    assert "refused a call" in log
    assert not any(secret in log for secret in (TOKEN, "w" * 32, "x" * 100))


def test_a_role_is_needed_on_both_ports(guarded):
    assert guarded.by(SCRAPER) is grpc.StatusCode.PERMISSION_DENIED
    assert guarded.http("/metrics") == (401, "Bearer")
    assert guarded.http("/metrics/triton", "wrong") == (401, "Bearer")
    assert guarded.http("/metrics", TOKEN) == (403, None)
    assert guarded.http("/metrics", SCRAPER) == (200, None)


def test_reflection_needs_a_token(guarded):
    stub = reflection_pb2_grpc.ServerReflectionStub(guarded.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.ServerReflectionInfo(iter([request])))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert list(stub.ServerReflectionInfo(iter([request]), metadata=[("authorization", f"Bearer {TOKEN}")]))


def test_the_sdk_sends_its_token_and_says_what_is_wrong(guarded):
    with polywand.connect(guarded.service.target, token=TOKEN) as client, client.open(PIXELS) as session:
        assert session.prompt("disk", points=[(20, 20, "positive")]).polygons
    with polywand.connect(guarded.service.target, token="wrong") as client:
        with pytest.raises(polywand.Unauthenticated, match="token"):
            client.models()
        with pytest.raises(polywand.Unauthenticated), client.open(PIXELS):
            pass
    with polywand.connect(guarded.service.target, token=SCRAPER) as client, pytest.raises(polywand.PermissionDenied):
        client.models()


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({}, grpc.StatusCode.OK),
        ({"polywand_roles": ["annotate", "of another service"]}, grpc.StatusCode.OK),
        ({"polywand_roles": ["metrics"]}, grpc.StatusCode.PERMISSION_DENIED),
        ({"polywand_roles": "annotate"}, grpc.StatusCode.UNAUTHENTICATED),
        ({"exp": int(time.time()) - 600}, grpc.StatusCode.UNAUTHENTICATED),
        ({"nbf": int(time.time()) + 86_400}, grpc.StatusCode.UNAUTHENTICATED),
        ({"exp": None}, grpc.StatusCode.UNAUTHENTICATED),
        ({"sub": None}, grpc.StatusCode.UNAUTHENTICATED),
        ({"sub": "not a name"}, grpc.StatusCode.UNAUTHENTICATED),
        ({"aud": "another"}, grpc.StatusCode.UNAUTHENTICATED),
        ({"iss": "https://another.example"}, grpc.StatusCode.UNAUTHENTICATED),
        ({"key": OTHER_KEY}, grpc.StatusCode.UNAUTHENTICATED),
        ({"kid": "unknown"}, grpc.StatusCode.UNAUTHENTICATED),
    ],
)
def test_a_json_web_token_counts_as_its_claims_say(guarded, claims, code):
    token = signed(**claims)
    assert guarded.by(token) is code
    assert guarded.by(token) is code  # the second time it is remembered


def test_a_token_without_a_signature_or_with_a_secret_as_key_is_refused(guarded):
    claims = {"sub": "eve", "iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 600}
    public = (guarded.folder / "jwks.json").read_text()
    head = f"{base64(json.dumps({'alg': 'HS256', 'kid': '0'}))}.{base64(json.dumps(claims))}"
    by_secret = f"{head}.{base64(hmac.digest(public.encode(), head.encode(), 'sha256'))}"
    for token in (jwt.encode(claims, None, "none", {"kid": "0"}), by_secret):
        assert guarded.by(token) is grpc.StatusCode.UNAUTHENTICATED


def test_tokens_and_keys_are_exchanged_under_load_and_no_call_fails(guarded):
    stop, failed, done = threading.Event(), [], []
    current = {"token": TOKEN, "jwt": signed()}

    def call(kind: str) -> None:
        while not stop.is_set():
            code = guarded.by(current[kind])
            (done if code is grpc.StatusCode.OK else failed).append(code)

    callers = [threading.Thread(target=call, args=(kind,)) for kind in current]
    for caller in callers:
        caller.start()
    path, keys = guarded.folder / "principals.toml", guarded.folder / "jwks.json"
    try:
        path.write_text(principals(hash_of(TOKEN), hash_of(NEW)))
        keys.write_text(jwks(KEY, OTHER_KEY))
        wait_for(lambda: guarded.by(NEW) is grpc.StatusCode.OK, 30)
        newer = signed(OTHER_KEY, "1")
        wait_for(lambda: guarded.by(newer) is grpc.StatusCode.OK, 30)
        current.update(token=NEW, jwt=newer)
        count = len(done)
        wait_for(lambda: len(done) > count + 10 or failed, 30)
        path.write_text(principals(hash_of(NEW)))
        wait_for(lambda: guarded.by(TOKEN) is grpc.StatusCode.UNAUTHENTICATED, 30)
        keys.write_text(jwks(OTHER_KEY).replace('"kid": "0"', '"kid": "1"'))
        wait_for(lambda: guarded.by(signed()) is grpc.StatusCode.UNAUTHENTICATED, 30)
        path.write_text("wrong = 1\n")
        wait_for(lambda: "the principals stay as they were" in guarded.service.log.read_text(), 30)
        keys.write_text("{}")
        wait_for(lambda: "the keys of tokens stay as they were" in guarded.service.log.read_text(), 30)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
        path.write_text(principals(hash_of(TOKEN)))
        keys.write_text(jwks(KEY))
    assert failed == []
    wait_for(lambda: guarded.by(TOKEN) is guarded.by(signed()) is grpc.StatusCode.OK, 30)


def test_keys_come_from_an_https_url_and_a_new_one_is_fetched_when_a_token_names_it(puppets, tmp_path, monkeypatch):
    served = {"keys": jwks(KEY)}
    CA.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))

    class Keys(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(served["keys"].encode())

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CA.issue_cert("localhost").configure_cert(context)
    server = http.server.ThreadingHTTPServer(("localhost", 0), Keys)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = f"--triton-url={puppets.triton}", f"--jwks=https://localhost:{server.server_port}/keys"
    try:
        with (
            running_service(tmp_path / "log", *options) as service,
            grpc.insecure_channel(service.target) as channel,
        ):
            guarded = Guarded(service, tmp_path, channel)
            assert guarded.by(signed(aud=None)) is grpc.StatusCode.OK
            served["keys"] = jwks(KEY, OTHER_KEY)
            wait_for(lambda: guarded.by(signed(OTHER_KEY, "1")) is grpc.StatusCode.OK, 30, service)
            served["keys"] = "nonsense"
            assert guarded.by(signed(OTHER_KEY, "7")) is grpc.StatusCode.UNAUTHENTICATED
            assert guarded.by(signed()) is grpc.StatusCode.OK
    finally:
        server.shutdown()


def test_keys_that_cannot_be_fetched_yet_are_not_the_clients_fault(puppets, tmp_path):
    options = f"--triton-url={puppets.triton}", "--jwks=https://localhost:9/keys"
    with running_service(tmp_path / "log", *options) as service, grpc.insecure_channel(service.target) as channel:
        assert Guarded(service, tmp_path, channel).by(signed()) is grpc.StatusCode.UNAVAILABLE


def test_a_clients_certificate_is_its_principal(puppets, tmp_path):
    own = CA.issue_cert("localhost")
    own.private_key_pem.write_to_path(tmp_path / "tls.key")
    own.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    CA.cert_pem.write_to_path(tmp_path / "ca.crt")
    (tmp_path / "principals.toml").write_text(principals(hash_of(TOKEN)))
    tls = [f"--tls-{name}={tmp_path / file}" for name, file in (("cert", "tls.crt"), ("key", "tls.key"))]
    locks = *tls, f"--tls-client-ca={tmp_path / 'ca.crt'}", f"--principals={tmp_path / 'principals.toml'}"
    with running_service(tmp_path / "log", f"--triton-url={puppets.triton}", "--metrics-port=0", *locks) as service:
        for name, code in (("studio.example", grpc.StatusCode.OK), ("other.example", grpc.StatusCode.UNAUTHENTICATED)):
            client = CA.issue_cert(name)
            chain = b"".join(part.bytes() for part in client.cert_chain_pems)
            given = grpc.ssl_channel_credentials(CA.cert_pem.bytes(), client.private_key_pem.bytes(), chain)
            target = service.target.replace("127.0.0.1", "localhost")
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.secure_channel(target, given, options) as channel:
                assert Guarded(service, tmp_path, channel).code() is code


ENTRY = f'[[principal]]\nname = "cvat"\ntokens_sha256 = ["{hash_of(TOKEN)}"]\n'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[", "is not TOML"),
        ("other = 1", "other"),
        ("principal = 1", "principal"),
        ("[[principal]]\nname = 1", "principal 1: name"),
        (ENTRY + 'roles = ["root"]', "(cvat): roles"),
        (ENTRY + ENTRY, "principal 2 (cvat): name"),
        (ENTRY + f'[[principal]]\nname = "b"\ntokens_sha256 = ["{hash_of(TOKEN)}"]', "(b): tokens_sha256"),
        ('[[principal]]\nname = "a"\ntokens_sha256 = ["12"]', "tokens_sha256"),
        ('[[principal]]\nname = "a"', "needs"),
        ("[quotas]\ncalls = -1", "calls"),
        ("[quotas]\nstreams = 1.5", "streams"),
    ],
)
def test_a_mistake_in_the_principals_is_one_sentence_at_the_start(tmp_path, text, named):
    (tmp_path / "principals.toml").write_text(text)
    said = start(f"--principals={tmp_path / 'principals.toml'}")
    assert named in said
    assert str(tmp_path) in said


@pytest.mark.parametrize("keys", ["", "{}", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', None])
def test_keys_that_cannot_be_used_are_one_sentence_at_the_start(tmp_path, keys):
    if keys is not None:
        (tmp_path / "jwks.json").write_text(keys)
    assert "--jwks" in start(f"--jwks={tmp_path / 'jwks.json'}")


def test_keys_come_by_https_alone():
    assert "neither a file nor an https URL" in start("--jwks=http://login.example/keys")


def start(*options: str) -> str:
    """Start a service that must not start; return what it says."""
    program = str(Path(sys.executable).parent / "polywand-server")
    ports = ("--grpc-port=0", "--http-port=0", "--triton-url=127.0.0.1:9")
    ran = subprocess.run([program, *ports, *options], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stderr
