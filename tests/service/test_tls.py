"""TLS on the service's own ports, and which doors are open to other machines."""

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
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import polywand
from tests.running import Service, running_service, wait_for

CA, OTHER_CA = trustme.CA(), trustme.CA()
IMAGE = np.zeros((64, 64, 3), np.uint8)
CONNECTIONS = 64  # to the HTTP port


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


def presented(port: int) -> bytes:
    context = ssl.create_default_context(cadata=CA.cert_pem.bytes().decode())
    context.set_alpn_protocols(["h2"])
    plain = socket.create_connection(("127.0.0.1", port), 10)
    with context.wrap_socket(plain, server_hostname="localhost") as encrypted:
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


def test_files_that_cannot_be_used_change_nothing_but_the_log(secured):
    before = secured.certificate()
    key = (secured.folder / "tls.key").read_bytes()
    (secured.folder / "tls.key").write_bytes(OTHER_CA.issue_cert("localhost").private_key_pem.bytes())
    wait_for(lambda: "is not that of the certificate" in secured.service.log.read_text(), 60, secured.service)
    (secured.folder / "tls.key").write_bytes(b"half of")
    wait_for(lambda: "is not a PEM private key" in secured.service.log.read_text(), 60, secured.service)
    assert secured.certificate() == before
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


def test_other_machines_are_served_without_locks_only_if_that_is_wanted(tmp_path, puppets):
    assert "--insecure" in start(tmp_path, "--host=0.0.0.0")
    with running_service(tmp_path / "log", "--host=0.0.0.0", "--insecure", f"--triton-url={puppets.triton}") as service:
        assert "neither TLS nor tokens" in service.log.read_text()
    locks = lay_out(tmp_path, CA.issue_cert("localhost"))
    with running_service(tmp_path / "log", "--host=::", *locks, f"--triton-url={puppets.triton}") as service:
        assert "neither tokens nor clients' certificates" in service.log.read_text()


def test_a_certificate_that_is_about_to_end_is_warned_of(tmp_path, puppets):
    import datetime  # noqa: PLC0415

    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3)
    options = lay_out(tmp_path, CA.issue_cert("localhost", not_after=soon))
    with running_service(tmp_path / "log", *options, f"--triton-url={puppets.triton}") as service:
        wait_for(lambda: "the TLS certificate in" in service.log.read_text(), 30, service)
