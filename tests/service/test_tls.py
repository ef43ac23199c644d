"""TLS on the service's own ports, and which doors are open to other machines."""

import datetime
import itertools
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import trustme
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import polywand
from polywand.cli.root import main
from tests.faults.hostile import H2Connection, headers, message, reset
from tests.running import Service, running_service, wait_for

CA, OTHER_CA = trustme.CA(), trustme.CA()
IMAGE = np.zeros((64, 64, 3), np.uint8)
CONNECTIONS = 64  # to the HTTP port
BODIES_MEBIBYTES = 64
INTERACT = "/polywand.v1.AnnotationService/Interact"


@dataclass(frozen=True)
class Secured:
    """A service with TLS. folder: of its files, which may be changed."""

    service: Service
    folder: Path

    @property
    def target(self) -> str:
        return self.service.target.replace("127.0.0.1", "localhost")

    def https(self, path: str, client: trustme.LeafCert | None = None) -> tuple[int, str]:
        context = ssl.create_default_context(cadata=CA.cert_pem.bytes().decode())
        if client is not None:
            client.configure_cert(context)
        url = self.service.http.replace("http://127.0.0.1", "https://localhost") + path
        try:
            with urllib.request.urlopen(url, timeout=10, context=context) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def certificate(self) -> bytes:
        """The certificate that a new connection to the gRPC port gets, DER."""
        return presented(int(self.target.rpartition(":")[2]))


def of_http2() -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=CA.cert_pem.bytes().decode())
    context.set_alpn_protocols(["h2"])
    return context


def presented(port: int, context: ssl.SSLContext | None = None) -> bytes:
    plain = socket.create_connection(("127.0.0.1", port), 10)
    with (context or of_http2()).wrap_socket(plain, server_hostname="localhost") as encrypted:
        return encrypted.getpeercert(binary_form=True)


def chain_of(certificate: trustme.LeafCert) -> bytes:
    return b"".join(part.bytes() for part in certificate.cert_chain_pems)


def lay_out(folder: Path, certificate: trustme.LeafCert) -> tuple[str, ...]:
    """Write a certificate's files; return the options that name them."""
    for name, data in (("tls.crt", chain_of(certificate)), ("tls.key", certificate.private_key_pem.bytes())):
        (folder / f"{name}.new").write_bytes(data)
    for name in ("tls.crt", "tls.key"):  # not together: for a moment they do not belong to each other
        (folder / f"{name}.new").rename(folder / name)
    (folder / "ca.crt").write_bytes(CA.cert_pem.bytes())
    return f"--tls-cert={folder / 'tls.crt'}", f"--tls-key={folder / 'tls.key'}"


def credentials(client: trustme.LeafCert | None = None) -> grpc.ChannelCredentials:
    roots = CA.cert_pem.bytes()
    if client is None:
        return grpc.ssl_channel_credentials(roots)
    return grpc.ssl_channel_credentials(roots, client.private_key_pem.bytes(), chain_of(client))


def asked_health(target: str, given: grpc.ChannelCredentials) -> object:
    """The service's health over a new connection, or the status code of a refusal."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(target, given, options) as channel:
        try:
            return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20).status
        except grpc.RpcError as error:
            return error.code()


@pytest.fixture(scope="module")
def secured(puppet_models, tmp_path_factory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    options = (*lay_out(folder, CA.issue_cert("localhost")), "--metrics-port=0", "--no-reflection")
    options += (f"--bodies-mebibytes={BODIES_MEBIBYTES}",)
    models = (f"--model-repository={puppet_models}", "--ready-models=disk")
    with running_service(folder / "log", *models, *options) as service:
        service.wait_ready()
        yield Secured(service, folder)


@pytest.fixture(scope="module")
def mutual(puppets, tmp_path_factory) -> Iterator[Secured]:
    """A service that wants certificates of its clients; it uses the puppets' Triton."""
    folder = tmp_path_factory.mktemp("mutual")
    options = (*lay_out(folder, CA.issue_cert("localhost")), f"--tls-client-ca={folder / 'ca.crt'}")
    with running_service(folder / "log", f"--triton-url={puppets.triton}", "--metrics-port=0", *options) as service:
        service.wait_ready()
        yield Secured(service, folder)


def test_a_click_over_tls_and_probes_by_https(secured):
    with polywand.connect(secured.target, credentials=credentials()) as client, client.open(IMAGE) as session:
        assert session.prompt("disk", points=[(20, 20, "positive")]).polygons
    assert secured.https("/readyz") == (200, "ready\n")
    assert secured.https("/livez") == (200, "alive\n")


def test_without_tls_neither_port_answers(secured):
    with grpc.insecure_channel(secured.service.target) as channel, pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(OSError, match=r"Connection|Remote|reset"):
        urllib.request.urlopen(f"{secured.service.http}/livez", timeout=10)


def test_the_metrics_port_is_plain_and_has_what_the_http_port_then_lacks(secured):
    status, page = secured.service.get("/metrics")
    assert (status, "polywand_build_info" in page) == (200, True)
    assert secured.service.get("/readyz") == (200, "ready\n")
    assert secured.https("/metrics")[0] == 404
    assert secured.service.metric("polywand_tls_certificate_expiry_timestamp_seconds") > 1.7e9


def test_reflection_can_be_switched_off(secured):
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.secure_channel(secured.target, credentials()) as channel, pytest.raises(grpc.RpcError) as caught:
        list(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request])))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_silent_connections_before_their_handshake_block_no_probe(secured):
    port = int(secured.service.http.rpartition(":")[2])
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(2 * CONNECTIONS)]
    try:
        assert secured.https("/livez") == (200, "alive\n")
    finally:
        for connection in silent:
            connection.close()


def test_certificates_change_under_load_and_no_call_fails(secured):
    stop, failed, done = threading.Event(), [], []
    logged = len(secured.service.log.read_text())

    def call() -> None:
        with polywand.connect(secured.target, credentials=credentials()) as client:
            while not stop.is_set():
                try:
                    client.segment(IMAGE, [polywand.Prompt(model="disk", points=[(20, 20, "positive")])])
                    assert asked_health(secured.target, credentials()) == health_pb2.HealthCheckResponse.SERVING
                    done.append(1)
                except Exception as error:
                    failed.append(error)
                    return

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        for _ in range(3):
            newer = CA.issue_cert("localhost")
            lay_out(secured.folder, newer)
            expected = ssl.PEM_cert_to_DER_cert(newer.cert_chain_pems[0].bytes().decode())
            wait_for(lambda expected=expected: secured.certificate() == expected, 60, secured.service)
            assert presented(int(secured.service.http.rpartition(":")[2])) == expected
            count = len(done)
            wait_for(lambda count=count: failed or len(done) > count + 3, 60, secured.service)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert failed == []
    assert "stays" not in secured.service.log.read_text()[logged:]  # a change that was read half-way is no news


def test_files_that_cannot_be_used_change_nothing_but_the_log(secured):
    before = secured.certificate()
    key = (secured.folder / "tls.key").read_bytes()
    (secured.folder / "tls.key").write_bytes(OTHER_CA.issue_cert("localhost").private_key_pem.bytes())
    wait_for(lambda: "is not that of the certificate" in secured.service.log.read_text(), 60, secured.service)
    (secured.folder / "tls.key").write_bytes(b"half of")
    wait_for(lambda: "is not a PEM private key" in secured.service.log.read_text(), 60, secured.service)
    assert secured.certificate() == before
    assert secured.service.log.read_text().count("is not that of the certificate") == 1
    (secured.folder / "tls.key").write_bytes(key)


def test_with_mutual_tls_only_clients_of_the_named_ca_come_in(mutual):
    ours, foreign = CA.issue_cert("annotator.example"), OTHER_CA.issue_cert("annotator.example")
    assert asked_health(mutual.target, credentials(ours)) == health_pb2.HealthCheckResponse.SERVING
    assert asked_health(mutual.target, credentials()) is grpc.StatusCode.UNAVAILABLE
    assert asked_health(mutual.target, credentials(foreign)) is grpc.StatusCode.UNAVAILABLE
    assert mutual.https("/livez", ours) == (200, "alive\n")
    for refused in (None, foreign):
        with pytest.raises(OSError, match=r"(?i)certificate|ssl|reset|closed"):
            mutual.https("/livez", refused)
    assert mutual.service.get("/readyz")[0] == 200  # on the metrics port


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_protocols_before_tls_1_2_are_refused(secured):
    context = of_http2()
    context.set_ciphers("DEFAULT@SECLEVEL=0")  # else this side would refuse
    for address in (secured.target, secured.service.http):
        port = int(address.rpartition(":")[2])
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert presented(port, context)
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(OSError, match=r"(?i)protocol|reset"):
            presented(port, context)


def test_calls_that_are_reset_at_once_over_tls_take_none_from_others(secured):
    over, port = threading.Event(), int(secured.target.rpartition(":")[2])

    def attack() -> None:
        for _ in range(20):
            connection = H2Connection("127.0.0.1", port, of_http2())
            for stream in itertools.islice(itertools.count(1, 2), 250):
                connection.send(headers(stream, INTERACT), message(stream, b"\x08\x01"), reset(stream))
            connection.close()
        over.set()

    threading.Thread(target=attack, daemon=True).start()
    for _ in range(10):
        with polywand.connect(secured.target, credentials=credentials()) as client, client.open(IMAGE) as session:
            assert session.prompt("disk", points=[(20, 20, "positive")]).polygons
    assert over.wait(60)


def test_messages_that_never_become_whole_are_bounded_over_tls_too(secured):
    part, port = bytes(20 << 20), int(secured.target.rpartition(":")[2])
    connections = [H2Connection("127.0.0.1", port, of_http2()) for _ in range(4)]
    for connection in connections:
        connection.send(headers(1, INTERACT))
        connection.announce(1, 24 << 20, part, 30)
    wait_for(lambda: "ending the calls of ipv4:127.0.0.1" in secured.service.log.read_text(), 60, secured.service)
    for connection in connections:
        connection.close()
    # What arrived whole is not taken for what did not: three times the limit, message after message.
    large = np.zeros((2048, 4096, 3), np.uint8)
    before = secured.service.log.read_text().count("ending the calls of")
    with polywand.connect(secured.target, credentials=credentials()) as client:
        for number in range(3 * BODIES_MEBIBYTES // 24):
            large[0, 0, 0] = number  # else its digest alone is sent
            assert client.segment(large, [polywand.Prompt(model="disk", points=[(20, 20, "positive")])])
    assert secured.service.log.read_text().count("ending the calls of") == before


def test_a_secret_of_kubernetes_changes_by_a_link_and_authorities_change_too(puppets, tmp_path):
    """All files are links through one link, which is replaced. Authorities may have names that are not ASCII."""
    secret = tmp_path / "secret"

    def publish(name: str, authorities: bytes) -> bytes:
        certificate = CA.issue_cert("localhost")
        (secret / name).mkdir(parents=True)
        lay_out(secret / name, certificate)
        (secret / name / "ca.crt").write_bytes(authorities)
        (secret / "..new").symlink_to(name)
        (secret / "..new").rename(secret / "..data")
        return ssl.PEM_cert_to_DER_cert(certificate.cert_chain_pems[0].bytes().decode())

    first = publish("..1", b"# Z\xfcrich\n" + CA.cert_pem.bytes())
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (secret / name).symlink_to(f"..data/{name}")
    names = (("cert", "tls.crt"), ("key", "tls.key"), ("client-ca", "ca.crt"))
    options = [f"--tls-{option}={secret / name}" for option, name in names]
    ours, other = CA.issue_cert("annotator.example"), OTHER_CA.issue_cert("annotator.example")
    triton = f"--triton-url={puppets.triton}"
    with running_service(tmp_path / "log", triton, "--metrics-port=0", *options) as service:
        service.wait_ready()
        secured = Secured(service, secret)

        def certificate() -> bytes:
            context = of_http2()
            ours.configure_cert(context)
            return presented(int(secured.target.rpartition(":")[2]), context)

        assert certificate() == first
        assert asked_health(secured.target, credentials(other)) is grpc.StatusCode.UNAVAILABLE
        second = publish("..2", CA.cert_pem.bytes() + "# Türktrust\n".encode() + OTHER_CA.cert_pem.bytes())
        wait_for(lambda: certificate() == second, 60, service)
        for client in (ours, other):
            assert asked_health(secured.target, credentials(client)) == health_pb2.HealthCheckResponse.SERVING
            assert secured.https("/livez", client) == (200, "alive\n")
        publish("..3", OTHER_CA.cert_pem.bytes())
        wait_for(lambda: asked_health(secured.target, credentials(ours)) is grpc.StatusCode.UNAVAILABLE, 60, service)
        assert asked_health(secured.target, credentials(other)) == health_pb2.HealthCheckResponse.SERVING
        assert "stays" not in service.log.read_text()


def test_a_service_with_tls_stops_in_order_with_clients_connected(puppets, tmp_path):
    options = (*lay_out(tmp_path, CA.issue_cert("localhost")), f"--triton-url={puppets.triton}", "--metrics-port=0")
    with running_service(tmp_path / "log", *options) as service:
        service.wait_ready()
        port = int(service.http.rpartition(":")[2])
        silent = socket.create_connection(("127.0.0.1", port))
        idle = of_http2().wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")
        service.process.terminate()
        assert service.process.wait(60) == 0, service.log.read_text()[-2000:]
        assert "stopped" in service.log.read_text().splitlines()[-1]
        silent.close()
        idle.close()


def test_the_command_line_has_an_authority_and_a_certificate_of_its_own(mutual, tmp_path):
    ours, foreign = tmp_path / "ours", tmp_path / "foreign"
    for folder, certificate in ((ours, CA.issue_cert("a.example")), (foreign, CA.issue_cert("b.example"))):
        folder.mkdir()
        lay_out(folder, certificate)
    authority, certificate, key = (str(ours / name) for name in ("ca.crt", "tls.crt", "tls.key"))
    files = ("--tls-ca", authority, "--tls-cert", certificate, "--tls-key", key)

    def run(*options: str, **environment: str) -> tuple[int, str]:
        ran = CliRunner().invoke(main, ["--target", mutual.target, *options, "info"], env=environment)
        return ran.exit_code, ran.output

    assert run(*files)[0] == 0
    named = {"POLYWAND_TLS_CA": authority, "POLYWAND_CLIENT_CERT": certificate, "POLYWAND_CLIENT_KEY": key}
    assert run(**named)[0] == 0
    assert run("--tls-ca", authority)[0] == 1
    # Beside a server, these are the server's.
    of_server = {"POLYWAND_TLS_CERT": certificate, "POLYWAND_TLS_KEY": key}
    assert run("--tls-ca", authority, **of_server)[0] == 1
    wrong = {
        ("--tls-cert", certificate): "belong together",
        ("--tls-cert", certificate, "--tls-key", str(foreign / "tls.key")): "'--tls-cert' / '--tls-key'",
        ("--tls-ca", key): "'--tls-ca'",
        ("--tls-ca", str(tmp_path / "none")): "does not exist",
    }
    for options, text in wrong.items():
        code, said = run(*options)
        assert (code, text in said) == (2, True), said


def start(folder: Path, *options: str) -> str:
    """Start a service that must not start; return what it says."""
    program = str(Path(sys.executable).parent / "polywand-server")
    ports = ("--grpc-port=0", "--http-port=0", "--triton-url=127.0.0.1:9")
    ran = subprocess.run([program, *ports, *options], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode in (1, 2), ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stderr


def test_a_service_does_not_start_with_files_that_it_cannot_use(tmp_path):
    certificate = CA.issue_cert("localhost")
    both = lay_out(tmp_path, certificate)
    other = tmp_path / "other.key"
    other.write_bytes(OTHER_CA.issue_cert("localhost").private_key_pem.bytes())
    text = tmp_path / "text"
    text.write_text("hello\n")
    assert "belong together" in start(tmp_path, both[0])
    assert "--tls-client-ca needs" in start(tmp_path, f"--tls-client-ca={text}")
    assert f"--tls-key: the key in '{other}'" in start(tmp_path, both[0], f"--tls-key={other}")
    assert f"--tls-cert: '{text}' is not a PEM certificate" in start(tmp_path, f"--tls-cert={text}", both[1])
    assert f"--tls-key: '{text}' is not a PEM private key" in start(tmp_path, both[0], f"--tls-key={text}")
    assert f"--tls-client-ca: '{text}' is not a PEM" in start(tmp_path, *both, f"--tls-client-ca={text}")
    assert "does not exist" in start(tmp_path, both[0], f"--tls-key={tmp_path / 'none'}")
    long = tmp_path / "long"
    long.write_bytes(bytes(2 << 20))
    assert f"--tls-client-ca: '{long}' has more than" in start(tmp_path, *both, f"--tls-client-ca={long}")


def test_a_key_that_clients_of_grpc_could_not_use_is_refused(tmp_path):
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(30)).sign(key, None)
    (tmp_path / "tls.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "tls.key").write_bytes(key.private_bytes(*pem))
    said = start(tmp_path, f"--tls-cert={tmp_path / 'tls.crt'}", f"--tls-key={tmp_path / 'tls.key'}")
    assert f"--tls-cert: the key of '{tmp_path / 'tls.crt'}' must be RSA, or an elliptic curve P-256 or P-384" in said


def test_other_machines_are_served_without_locks_only_if_that_is_wanted(tmp_path, puppets):
    assert "--insecure" in start(tmp_path, "--host=0.0.0.0")
    with running_service(tmp_path / "log", "--host=0.0.0.0", "--insecure", f"--triton-url={puppets.triton}") as service:
        assert "neither TLS nor tokens" in service.log.read_text()
    locks = lay_out(tmp_path, CA.issue_cert("localhost"))
    with running_service(tmp_path / "log", "--host=::", *locks, f"--triton-url={puppets.triton}") as service:
        assert "neither tokens nor clients' certificates" in service.log.read_text()


def test_a_certificate_that_is_about_to_end_is_warned_of(tmp_path, puppets):
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3)
    options = lay_out(tmp_path, CA.issue_cert("localhost", not_after=soon))
    with running_service(tmp_path / "log", *options, f"--triton-url={puppets.triton}") as service:
        wait_for(lambda: "the TLS certificate in" in service.log.read_text(), 30, service)
