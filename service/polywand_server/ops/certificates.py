"""The certificate of the service's own ports: read from PEM files, and read again when they change."""

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from polywand_server.config import ServerTls
from polywand_server.ops import metrics

POLL_SECONDS = 1.0
# Before a certificate's end, warn once in WARN_EVERY_SECONDS.
WARN_DAYS = 7
WARN_EVERY_SECONDS = 86_400.0
MAX_FILE_BYTES = 1 << 20

T = TypeVar("T")

log = logging.getLogger(__name__)


class CertificateError(Exception):
    """The files cannot be used; the text names the option and the file."""


@dataclass(frozen=True, slots=True)
class Files:
    """The contents of the PEM files. client_roots: None where clients need no certificate."""

    certificate_chain: bytes
    private_key: bytes
    client_roots: bytes | None

    @classmethod
    def read(cls, tls: ServerTls) -> "Files":
        """Read the files. Raises CertificateError."""
        return cls(
            _read("--tls-cert", tls.certificate_chain),
            _read("--tls-key", tls.private_key),
            _read("--tls-client-ca", tls.client_roots) if tls.client_roots else None,
        )


class Certificates:
    """The newest certificate that is valid as a whole: chain, key and the roots of clients belong together.

    Raises:
        CertificateError: the files that are there at the start cannot be used.
    """

    def __init__(self, tls: ServerTls) -> None:
        self._tls = tls
        self._files = self._seen = Files.read(tls)
        self._use(self._files)
        self._warned_at = -WARN_EVERY_SECONDS

    @property
    def context(self) -> ssl.SSLContext:
        """For new connections to the HTTP ports."""
        return self._context

    def credentials(self) -> grpc.ServerCredentials:
        """For the gRPC port; its new connections use the newest certificate."""
        require = self._tls.client_roots is not None
        # The second is called for each handshake, in a thread of gRPC's.
        return grpc.dynamic_ssl_server_credentials(self._of_grpc, lambda: self._of_grpc, require)

    async def run(self) -> None:
        """Follow the files until cancelled. A change that cannot be used is logged, and what was read before stays."""
        while True:
            self._warn_of_end()
            await asyncio.sleep(POLL_SECONDS)
            try:
                files = await asyncio.to_thread(Files.read, self._tls)
                if files == self._seen:
                    continue
                self._seen = files
                await asyncio.to_thread(self._use, files)
            except CertificateError as error:
                self._warn(f"the certificate that is in use stays: {error}")
            else:
                self._unusable = ""
                log.info("new TLS certificate, valid until %s", self._end.isoformat(timespec="seconds"))

    def _use(self, files: Files) -> None:
        """Use these files from now on. Raises CertificateError."""
        tls = self._tls
        certificate = _parse("--tls-cert", tls.certificate_chain, lambda: _certificates(files.certificate_chain))[0]
        key = _parse("--tls-key", tls.private_key, lambda: load_pem_private_key(files.private_key, None))
        if _public(certificate.public_key()) != _public(key.public_key()):
            raise CertificateError(f"--tls-key: the key in '{tls.private_key}' is not that of the certificate")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with _as_file(files.certificate_chain) as chain, _as_file(files.private_key) as key_file:
            _parse("--tls-cert", tls.certificate_chain, lambda: context.load_cert_chain(chain, key_file))
        roots = files.client_roots
        if roots is not None and tls.client_roots is not None:
            _parse("--tls-client-ca", tls.client_roots, lambda: _certificates(roots))
            context.load_verify_locations(cadata=roots.decode())
            context.verify_mode = ssl.CERT_REQUIRED
        # gRPC keeps no more than these bytes, so that chain, key and roots change together.
        pair = [(files.private_key, files.certificate_chain)]
        require = roots is not None
        self._of_grpc = grpc.ssl_server_certificate_configuration(pair, roots)
        self._context, self._files, self._end = context, files, certificate.not_valid_after_utc
        self._unusable = ""
        self._warned_at = -WARN_EVERY_SECONDS
        metrics.CERTIFICATE_END.set(self._end.timestamp())
        log.debug("TLS certificate of %s, clients %s", certificate.subject.rfc4514_string(), require)

    def _warn(self, text: str) -> None:
        """Warn of files that cannot be used, once while the reason stays."""
        if text != self._unusable:
            self._unusable = text
            log.warning("%s", text)

    def _warn_of_end(self) -> None:
        left = (self._end - datetime.now(UTC)).total_seconds()
        if left < WARN_DAYS * 86_400 and time.monotonic() - self._warned_at > WARN_EVERY_SECONDS:
            self._warned_at = time.monotonic()
            state = "ends" if left > 0 else "ended"
            moment = self._end.isoformat(timespec="seconds")
            log.warning("the TLS certificate in '%s' %s at %s", self._tls.certificate_chain, state, moment)


def names_of(certificate: bytes) -> tuple[str, ...]:
    """Return the names in a client's certificate (DER): its subject's common names, then its alternative names."""
    parsed = x509.load_der_x509_certificate(certificate)
    names = [str(name.value) for name in parsed.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    try:
        alternative = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return tuple(names)
    for kind in (x509.DNSName, x509.RFC822Name, x509.UniformResourceIdentifier):
        names += alternative.get_values_for_type(kind)
    return tuple(names)


def _read(option: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise CertificateError(f"{option}: cannot read '{path}': {error.strerror}") from error


def _parse(option: str, path: Path, parse: Callable[[], T]) -> T:
    try:
        return parse()
    except (ValueError, TypeError, ssl.SSLError) as error:
        what = "private key, without a password" if option == "--tls-key" else "certificate"
        raise CertificateError(f"{option}: '{path}' is not a PEM {what}: {error}".split("\n", maxsplit=1)[0]) from error


def _certificates(data: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(data)


def _public(key: Any) -> bytes:
    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


@contextmanager
def _as_file(data: bytes) -> Any:
    """Give bytes a path, since OpenSSL's interface reads files: what was checked is what is loaded."""
    descriptor = os.memfd_create("certificate")
    try:
        os.write(descriptor, data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
