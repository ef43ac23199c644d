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
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from polywand_server.config import ServerTls
from polywand_server.ops import metrics

POLL_SECONDS = 1.0
# Before a certificate's end, warn once in WARN_EVERY_SECONDS.
WARN_DAYS = 7
# The files of one change are not read at the same moment.
POLLS_BEFORE_WARNING = 2
WARN_EVERY_SECONDS = 86_400.0
MAX_FILE_BYTES = 1 << 20
# With others, OpenSSL would shake hands and gRPC's clients would not.
USABLE_KEYS = "RSA, or an elliptic curve P-256 or P-384"

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
        self._error: str | None = None
        self._error_polls = 0
        self._use(Files.read(tls))

    @property
    def context(self) -> ssl.SSLContext:
        """For new connections to the HTTP ports."""
        return self._context

    def credentials(self) -> grpc.ServerCredentials:
        """For the gRPC port; its new connections use the newest certificate."""
        self._given = self._of_grpc
        newer: Any = self._newer  # its None is documented, and not in the type
        return grpc.dynamic_ssl_server_credentials(self._given, newer, self._tls.client_roots is not None)

    def _newer(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what gRPC has not been given yet. It asks before each handshake, in its threads, one at a time."""
        newest = self._of_grpc
        if newest is self._given:
            return None  # else gRPC would parse all files again
        self._given = newest
        return newest

    async def run(self) -> None:
        """Follow the files until cancelled. A change that cannot be used is logged, and what was read before stays."""
        while True:
            self._warn_of_end()
            await asyncio.sleep(POLL_SECONDS)
            try:
                changed = await asyncio.to_thread(self._follow)
            except CertificateError as error:
                self._warn(str(error))
                continue
            self._error = None
            if changed:
                log.info("new TLS certificate, valid until %s", self._end.isoformat(timespec="seconds"))

    def _follow(self) -> bool:
        """Use the files if they have changed; returns whether they had. Raises CertificateError."""
        files = Files.read(self._tls)
        if files == self._files:
            return False
        self._use(files)
        return True

    def _use(self, files: Files) -> None:
        """Use these files from now on. Raises CertificateError."""
        tls = self._tls
        chain = _parse("--tls-cert", tls.certificate_chain, lambda: _certificates(files.certificate_chain))
        key = _parse("--tls-key", tls.private_key, lambda: load_pem_private_key(files.private_key, None))
        public = _parse("--tls-cert", tls.certificate_chain, chain[0].public_key)
        if not _is_usable(public):
            raise CertificateError(f"--tls-cert: the key of '{tls.certificate_chain}' must be {USABLE_KEYS}")
        if _public(public) != _public(key.public_key()):
            raise CertificateError(f"--tls-key: the key in '{tls.private_key}' is not that of the certificate")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        chain_pem, roots_pem = _pem(chain), None
        with _as_file(chain_pem) as chain_file, _as_file(files.private_key) as key_file:
            _parse("--tls-cert", tls.certificate_chain, lambda: context.load_cert_chain(chain_file, key_file))
        if files.client_roots is not None and tls.client_roots is not None:
            content = files.client_roots
            roots_pem = _pem(_parse("--tls-client-ca", tls.client_roots, lambda: _certificates(content)))
            ascii_roots = roots_pem.decode()
            _parse("--tls-client-ca", tls.client_roots, lambda: context.load_verify_locations(cadata=ascii_roots))
            context.verify_mode = ssl.CERT_REQUIRED
        # One object, so that chain, key and roots change together.
        self._of_grpc = grpc.ssl_server_certificate_configuration([(files.private_key, chain_pem)], roots_pem)
        self._context, self._files, self._end = context, files, chain[0].not_valid_after_utc
        self._warned_at = -WARN_EVERY_SECONDS
        metrics.CERTIFICATE_END.set(self._end.timestamp())

    def _warn(self, error: str) -> None:
        """Warn of files that cannot be used, once, and not at the first poll: that may have read half of a change."""
        self._error_polls = self._error_polls + 1 if error == self._error else 1
        self._error = error
        if self._error_polls == POLLS_BEFORE_WARNING:
            log.warning("the certificate that is in use stays: %s", error)

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
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CertificateError(f"{option}: cannot read '{path}': {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise CertificateError(f"{option}: '{path}' has more than {MAX_FILE_BYTES} bytes")
    return data


def _parse(option: str, path: Path, parse: Callable[[], T]) -> T:
    try:
        return parse()
    except (ValueError, TypeError, UnsupportedAlgorithm, ssl.SSLError) as error:
        what = "private key, without a password" if option == "--tls-key" else "certificate"
        raise CertificateError(f"{option}: '{path}' is not a PEM {what}: {error}".split("\n", maxsplit=1)[0]) from error


def _certificates(data: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(data)


def _pem(certificates: list[x509.Certificate]) -> bytes:
    """Return certificates without what files have between them, such as names that are not ASCII."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def _is_usable(key: object) -> bool:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    return isinstance(key, rsa.RSAPublicKey)


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
