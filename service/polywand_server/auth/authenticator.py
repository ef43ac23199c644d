"""The authenticator: from the token or the certificate of a call to its principal."""

import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from polywand_server.auth.principals import Principals, PrincipalsError, read_principals
from polywand_server.errors import ForbiddenError, UnauthenticatedError
from polywand_server.principal import ANYBODY, Principal, Quotas, Role

CHECK_SECONDS = 1.0  # between two looks at the file's time
MAX_TOKEN_CHARS = 8192

log = logging.getLogger(__name__)


class Authenticator:
    """Knows principals by their tokens and certificates; the file is read again when it changes.

    Raises PrincipalsError if the file is wrong at first; a wrong new version keeps the old one.
    certificates_suffice: without a file, a verified certificate is needed, and lets in under its name.
    """

    def __init__(self, path: Path | None, *, certificates_suffice: bool = False) -> None:
        self._certificates_suffice = certificates_suffice
        self._path = path
        self._checked_at = time.monotonic()
        self._version = _version(path)
        self._principals = read_principals(path) if path else None

    def authenticate(self, authorization: Sequence[str | bytes], certificate_names: Sequence[str] = ()) -> Principal:
        """Return the principal of a call. Raises UnauthenticatedError.

        authorization: the values of its headers of this name. certificate_names: of its verified certificate.
        """
        principals = self._current()
        if principals is None:
            return self._without_file(certificate_names)
        if authorization:
            # Tokens are random, of 128 bits and more: nothing can be guessed that a slow hash would protect, and how
            # long the search for a hash takes tells nothing of the token.
            principal = principals.tokens.get(hashlib.sha256(_token(authorization).encode()).digest())
            if principal is None:
                raise UnauthenticatedError("the token of the call is not known here: is it an old one?")
            return principal
        for name in certificate_names:
            if name in principals.certificates:
                return principals.certificates[name]
        raise UnauthenticatedError("the call needs a token: authorization: Bearer TOKEN")

    def quotas_of(self, principal: Principal) -> Quotas:
        """Return the quotas of a principal as they are now; of one that has gone from the file, as they were."""
        principals = self._current()
        return (principals.named.get(principal.name, principal) if principals else principal).quotas

    def _without_file(self, certificate_names: Sequence[str]) -> Principal:
        if not self._certificates_suffice:
            return ANYBODY
        if not certificate_names:
            raise UnauthenticatedError("the call needs a certificate with a name")
        return Principal(certificate_names[0], frozenset(Role))

    def _current(self) -> Principals | None:
        now = time.monotonic()
        if self._path is None or now - self._checked_at < CHECK_SECONDS:
            return self._principals
        self._checked_at = now
        version = _version(self._path)
        if version != self._version:
            self._version = version
            try:
                self._principals = read_principals(self._path)
                log.info("principals read again from %s", self._path)
            except PrincipalsError as error:
                log.warning("the principals stay as they were: %s", error)
        return self._principals


def require(principal: Principal, role: Role) -> None:
    """Check that a principal has a role. Raises ForbiddenError."""
    if role not in principal.roles:
        raise ForbiddenError(f"principal {principal.name!r} does not have the role {role.value!r}")


def _token(authorization: Sequence[str | bytes]) -> str:
    if len(authorization) > 1:
        raise UnauthenticatedError("the call has several authorization headers: send one")
    value = authorization[0]
    if not isinstance(value, str) or not value.isascii():
        raise UnauthenticatedError("the authorization header has characters that are not ASCII")
    scheme, _, token = value.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise UnauthenticatedError("the authorization header must be: Bearer TOKEN")
    if len(token) > MAX_TOKEN_CHARS:
        raise UnauthenticatedError(f"the token of the call has more than {MAX_TOKEN_CHARS} characters")
    return token


def _version(path: Path | None) -> tuple[int, int, int] | None:
    try:
        stat = path.stat() if path else None
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_ino, stat.st_size) if stat else None
