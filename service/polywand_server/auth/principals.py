"""The principals file: those who may call, with hashes of their tokens, certificates, roles and quotas."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polywand_server.principal import Principal, Quotas, Role

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
NAME = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")
_COUNTS = ("streams", "calls")
_RATES = ("prompts_per_second", "frames_per_second")
_IMAGES = "image_mebibytes"


class PrincipalsError(ValueError):
    """The principals file is wrong; the text is one sentence that names file, entry and field."""


@dataclass(frozen=True, slots=True)
class Principals:
    """All principals of a file.

    tokens: by their SHA-256. certificates: by a name in them. by_name: all. quotas: of those that name none.
    """

    tokens: Mapping[bytes, Principal]
    certificates: Mapping[str, Principal]
    quotas: Quotas
    by_name: Mapping[str, Principal]


def read_principals(path: Path) -> Principals:
    """Read a principals file. Raises PrincipalsError."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise PrincipalsError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise PrincipalsError(f"{path}: is not TOML: {error}") from error
    _only(document, {"quotas", "principal"}, str(path))
    quotas = _quotas(document.get("quotas", {}), f"{path}: quotas")
    entries = document.get("principal", [])
    if not isinstance(entries, list):
        raise PrincipalsError(f"{path}: principal: must be tables, as [[principal]]")
    tokens: dict[bytes, Principal] = {}
    certificates: dict[str, Principal] = {}
    by_name: dict[str, Principal] = {}
    for number, entry in enumerate(entries, 1):
        where = f"{path}: principal {number}"
        _only(entry, {"name", "tokens_sha256", "certificate", "roles", "quotas"}, where)
        principal = _principal(entry, quotas, where)
        where = f"{where} ({principal.name})"
        if principal.name in by_name:
            raise PrincipalsError(f"{where}: name: another principal has it")
        by_name[principal.name] = principal
        hashes, certificate = _hashes(entry, where), _certificate(entry, where)
        if not hashes and certificate is None:
            raise PrincipalsError(f"{where}: needs tokens_sha256 or certificate")
        for digest in hashes:
            if digest in tokens:
                raise PrincipalsError(f"{where}: tokens_sha256: a hash is there twice")
            tokens[digest] = principal
        if certificate is not None:
            if certificate in certificates:
                raise PrincipalsError(f"{where}: certificate: another principal has it")
            certificates[certificate] = principal
    return Principals(tokens, certificates, quotas, by_name)


def _principal(entry: Mapping[str, Any], quotas: Quotas, where: str) -> Principal:
    name = entry.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise PrincipalsError(f"{where}: name: must be 1 to 128 letters, digits or any of . _ : @ / + = -")
    where = f"{where} ({name})"
    roles = entry.get("roles", [Role.ANNOTATE.value])
    known = {role.value: role for role in Role}
    if not isinstance(roles, list) or not roles or not all(isinstance(role, str) and role in known for role in roles):
        raise PrincipalsError(f"{where}: roles: must be a list of {' and '.join(known)}")
    own = _quotas(entry["quotas"], f"{where}: quotas") if "quotas" in entry else quotas
    return Principal(name, frozenset(known[role] for role in roles), own)


def _hashes(entry: Mapping[str, Any], where: str) -> list[bytes]:
    hashes = entry.get("tokens_sha256", [])
    if not isinstance(hashes, list) or not all(isinstance(text, str) and _SHA256.fullmatch(text) for text in hashes):
        raise PrincipalsError(f"{where}: tokens_sha256: must be a list of SHA-256 hashes of 64 hexadecimal digits")
    return [bytes.fromhex(text) for text in hashes]


def _certificate(entry: Mapping[str, Any], where: str) -> str | None:
    certificate = entry.get("certificate")
    if certificate is not None and (not isinstance(certificate, str) or not certificate):
        raise PrincipalsError(f"{where}: certificate: must be a name in a client's certificate")
    return certificate


def _quotas(table: Any, where: str) -> Quotas:
    """Read a table of quotas."""
    _only(table, {*_COUNTS, *_RATES, _IMAGES}, where)
    for field, value in table.items():
        kinds = (int,) if field in _COUNTS or field == _IMAGES else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < float("inf"):
            kind = "whole number" if kinds == (int,) else "number"
            raise PrincipalsError(f"{where}.{field}: must be a {kind} above 0")
    given = {field: value for field, value in table.items() if field != _IMAGES}
    return Quotas(**given, image_bytes=table[_IMAGES] << 20 if _IMAGES in table else None)


def _only(table: Any, known: set[str], where: str) -> None:
    if not isinstance(table, dict):
        raise PrincipalsError(f"{where}: must be a table")
    for field in table:
        if field not in known:
            raise PrincipalsError(f"{where}: {field}: is no field of it; there are {', '.join(sorted(known))}")
