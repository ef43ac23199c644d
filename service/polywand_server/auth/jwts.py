"""JSON Web Tokens (RFC 7519), checked with the keys of a JWKS (RFC 7517): of a file, or of an https URL."""

import asyncio
import hashlib
import logging
import time
import urllib.error
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPSHandler,
    OpenerDirector,
    Request,
    UnknownHandler,
)

import jwt

from polywand_server.auth.principals import NAME, PrincipalsError
from polywand_server.config import Access
from polywand_server.errors import Reason, UnauthenticatedError, UnavailableError

# No shared secrets: whoever could check a token could make one.
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
ROLES_CLAIM = "polywand_roles"
LEEWAY_SECONDS = 30.0
# Between two looks at the keys: when their file changed or their URL is due, and when a token names a key that is new.
FILE_SECONDS, URL_SECONDS, UNKNOWN_KEY_SECONDS = 1.0, 300.0, 10.0
FETCH_SECONDS = 5.0
MAX_KEYS_BYTES = 1 << 20
# Verified tokens that are remembered: a signature takes some 100 µs.
MAX_REMEMBERED = 10_000

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says. name: its subject. roles: as it names them. ends_at: seconds since 1970."""

    name: str
    roles: tuple[str, ...]
    ends_at: float


class Jwts:
    """Verifies tokens; the keys are read again when they change.

    Raises:
        PrincipalsError: the keys are a file, and cannot be used.
    """

    def __init__(self, access: Access) -> None:
        assert access.jwks is not None
        self._access = access
        self._source = access.jwks
        self._is_url = "://" in access.jwks
        self._text = ""
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._looked_at = -URL_SECONDS
        self._looking = asyncio.Lock()
        self._remembered: OrderedDict[bytes, Claims] = OrderedDict()
        if self._is_url and not access.jwks.startswith("https://"):
            raise PrincipalsError(f"--jwks: '{access.jwks}' is neither a file nor an https URL")
        if not self._is_url:
            self._use(_read_file(Path(self._source)))
            self._looked_at = time.monotonic()

    async def verify(self, token: str) -> Claims:
        """Return what a token says.

        Raises:
            UnauthenticatedError: it is not valid here.
            UnavailableError: no keys are there yet.
        """
        await self._look(URL_SECONDS if self._is_url else FILE_SECONDS)
        digest = hashlib.sha256(token.encode()).digest()
        claims = self._remembered.get(digest)
        if claims is None:
            claims = self._verified(token, await self._key(token))
            self._remembered[digest] = claims
            if len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        if claims.ends_at + LEEWAY_SECONDS < time.time():
            del self._remembered[digest]
            raise UnauthenticatedError("the token of the call has expired")
        return claims

    async def _key(self, token: str) -> jwt.PyJWK:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError as error:
            raise UnauthenticatedError("the token of the call is no JSON Web Token") from error
        name = header.get("kid")
        if name not in self._keys:
            await self._look(UNKNOWN_KEY_SECONDS)
        if not self._keys:
            raise UnavailableError("the keys of tokens could not be fetched yet", 1.0, reason=Reason.SERVER_UNAVAILABLE)
        key = self._keys.get(name)
        if name is None and len(self._keys) == 1:
            key = next(iter(self._keys.values()))
        if key is None:
            raise UnauthenticatedError("the token of the call is signed with a key that is not known here")
        return key

    def _verified(self, token: str, key: jwt.PyJWK) -> Claims:
        access = self._access
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=access.jwt_audience,
                issuer=access.jwt_issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "sub"], "verify_aud": access.jwt_audience is not None},
            )
        except jwt.ExpiredSignatureError as error:
            raise UnauthenticatedError("the token of the call has expired") from error
        except jwt.PyJWTError as error:
            raise UnauthenticatedError(f"the token of the call is not valid here: {_why(error)}") from error
        name, roles = claims["sub"], claims.get(ROLES_CLAIM, ["annotate"])
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UnauthenticatedError("the subject of the token is no name of a principal")
        if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            raise UnauthenticatedError(f"the claim {ROLES_CLAIM} of the token must be a list of names")
        return Claims(name, tuple(roles), float(claims["exp"]))

    async def _look(self, pause_seconds: float) -> None:
        """Read the keys again, if the last look is so long ago. Those that are known stay if that fails."""
        if time.monotonic() - self._looked_at < pause_seconds:
            return
        async with self._looking:
            if time.monotonic() - self._looked_at < pause_seconds:  # another call has looked meanwhile
                return
            try:
                text = await asyncio.to_thread(self._read)
                if text != self._text:
                    self._use(text)
            except PrincipalsError as error:
                log.warning("the keys of tokens stay as they were: %s", error)
            finally:
                self._looked_at = time.monotonic()

    def _read(self) -> str:
        return _fetch(self._source) if self._is_url else _read_file(Path(self._source))

    def _use(self, text: str) -> None:
        """Use these keys from now on. Raises PrincipalsError."""
        try:
            found = jwt.PyJWKSet.from_json(text).keys
        except (jwt.PyJWTError, ValueError, AttributeError, TypeError) as error:
            raise PrincipalsError(f"--jwks: '{self._source}' is no JSON Web Key Set: {error}") from error
        self._keys = {key.key_id: key for key in found if key.algorithm_name in ALGORITHMS}
        if not self._keys:
            raise PrincipalsError(f"--jwks: '{self._source}' has no public key of a known algorithm")
        self._text = text
        self._remembered.clear()  # a key may have been taken back
        log.info("%d keys of tokens from %s", len(self._keys), self._source)


def _why(error: jwt.PyJWTError) -> str:
    """Say what is wrong in constant words: the library's text may have parts of the token."""
    kinds: Mapping[type[jwt.PyJWTError], str] = {
        jwt.InvalidSignatureError: "its signature is wrong",
        jwt.InvalidAudienceError: "it is for another audience",
        jwt.InvalidIssuerError: "it is of another issuer",
        jwt.ImmatureSignatureError: "it does not count yet",
        jwt.MissingRequiredClaimError: "it lacks exp or sub",
        jwt.InvalidAlgorithmError: "its algorithm is not accepted",
    }
    return next((text for kind, text in kinds.items() if isinstance(error, kind)), "it cannot be read")


def _read_file(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise PrincipalsError(f"--jwks: cannot read '{path}': {error}") from error


def _fetch(url: str) -> str:
    """Fetch the keys, by https alone: a redirect is an error. Raises PrincipalsError."""
    opener = OpenerDirector()
    for handler in (HTTPSHandler(), HTTPErrorProcessor(), HTTPDefaultErrorHandler(), UnknownHandler()):
        opener.add_handler(handler)
    try:
        response: Any = opener.open(Request(url, headers={"accept": "application/json"}), timeout=FETCH_SECONDS)
        with response:
            data = response.read(MAX_KEYS_BYTES + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise PrincipalsError(f"--jwks: cannot fetch '{url}': {error}") from error
    if len(data) > MAX_KEYS_BYTES:
        raise PrincipalsError(f"--jwks: '{url}' has more than {MAX_KEYS_BYTES} bytes")
    return str(data, "utf-8", "replace")
