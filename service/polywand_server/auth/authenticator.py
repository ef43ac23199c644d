"""The authenticator: from the token or the certificate of a call to its principal."""

import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from polywand_server.auth.jwts import Jwts
from polywand_server.auth.principals import Principals, PrincipalsError, read_principals
from polywand_server.config import Access
from polywand_server.errors import ForbiddenError, UnauthenticatedError
from polywand_server.principal import ANYBODY, Principal, Quotas, Role

CHECK_SECONDS = 1.0  # between two looks at the file's time
MAX_TOKEN_CHARS = 8192
JWT_DOTS = 2  # between header, claims and signature; static tokens have none

log = logging.getLogger(__name__)


class Authenticator:
    """Knows principals by their tokens and certificates; the files are read again when they change.

    certificates_suffice: without principals and keys of tokens, a verified certificate is needed, and lets in under its
    name.

    Raises:
        PrincipalsError: a file is wrong at first; a wrong new version keeps the old one.
    """

    def __init__(self, access: Access, *, certificates_suffice: bool = False) -> None:
        self._certificates_suffice = certificates_suffice
        self._path = access.principals
        self._checked_at = time.monotonic()
        self._version = _version(self._path)
        self._principals = read_principals(self._path) if self._path else None
        self._jwts = Jwts(access) if access.jwks is not None else None

    async def authenticate(
        self, authorization: Sequence[str | bytes], certificate_names: Sequence[str] = ()
    ) -> Principal:
        """Return the principal of a call.

        authorization: the values of its headers of this name. certificate_names: of its verified certificate.

        Raises:
            UnauthenticatedError, UnavailableError
        """
        principals = self._current()
        if principals is None and self._jwts is None:
            return self._by_any_certificate(certificate_names)
        if authorization:
            return await self._by_token(_token(authorization), principals)
        for name in certificate_names:
            if principals is not None and name in principals.certificates:
                return principals.certificates[name]
        raise UnauthenticatedError("the call needs a token: authorization: Bearer TOKEN")

    def quotas_of(self, principal: Principal) -> Quotas:
        """Return the quotas of a principal as they are now; of one that has gone from the file, as they were."""
        principals = self._current()
        if principals is None:
            return principal.quotas
        known = principals.by_name.get(principal.name)
        if known is not None:
            return known.quotas
        return principal.quotas if self._jwts is None else principals.quotas

    async def _by_token(self, token: str, principals: Principals | None) -> Principal:
        if self._jwts is not None and token.count(".") == JWT_DOTS:
            claims = await self._jwts.verify(token)
            known = principals.by_name.get(claims.name) if principals is not None else None
            general = principals.quotas if principals is not None else Quotas()
            roles = frozenset(role for role in Role if role.value in claims.roles)
            return Principal(claims.name, roles, known.quotas if known is not None else general)
        # Tokens are random, of 128 bits and more: nothing can be guessed that a slow hash would protect, and how
        # long the search for a hash takes tells nothing of the token.
        digest = hashlib.sha256(token.encode()).digest()
        principal = principals.tokens.get(digest) if principals is not None else None
        if principal is None:
            raise UnauthenticatedError("the token of the call is not known here: is it an old one?")
        return principal

    def _by_any_certificate(self, certificate_names: Sequence[str]) -> Principal:
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
