"""Rollback and restoration of a model's versions, by the names of their folders.

Triton overlooks a version whose name begins with a zero: `hrnet18/2` is in service, `hrnet18/02` is set aside. So a
version never leaves its model's folder, a listing shows where it is, and a rename, which is atomic, moves it.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

CONFIG_FILE = "config.pbtxt"
# Parameters of a config that name models which the model calls, each of its versions the same version of them.
PART_KEYS = ("encoder", "head")
PARAMETER_KEY = "polywand"  # and the one that makes a model a tool


class VersionError(Exception):
    """A version cannot be taken out or brought back; the repository is as it was."""


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions of a model: in service as far as its version policy allows, and set aside."""

    served: tuple[int, ...]
    aside: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """What has been done: the version that was moved, and the one that version 0 means from now on.

    along: other tools of which the same version has moved, since they call it.
    """

    version: int
    highest: int
    along: tuple[str, ...] = ()


def versions(model: Path) -> Versions:
    """List the versions in a model's folder, in order."""
    names = [path.name for path in model.iterdir() if path.is_dir() and path.name.isascii() and path.name.isdecimal()]
    return Versions(
        tuple(sorted(int(name) for name in names if not name.startswith("0"))),
        tuple(sorted(int(name) for name in names if name.startswith("0") and int(name))),
    )


def models(repository: Path) -> list[Path]:
    """List the folders of a repository's models, by name."""
    return sorted(path.parent for path in repository.glob(f"[!.]*/{CONFIG_FILE}"))


def roll_back(repository: Path, name: str) -> Change:
    """Take the highest version of a model out of service, with that of its parts and of tools that it is a part of.

    Raises:
        VersionError
    """
    model, config = _find(repository, name)
    served = versions(model).served
    if len(served) < 2:
        has = f"only version {served[0]}" if served else "no version"
        raise VersionError(f"{model} has {has} in service: there is none to go back to")
    version, highest = served[-1], served[-2]
    specific = config.version_policy.specific.versions
    if specific and highest not in specific:
        listed = ", ".join(map(str, specific))
        raise VersionError(f"{model / CONFIG_FILE} allows only version {listed}: version {highest} would not be served")
    # A model moves before the parts that it calls: no version may call a missing part.
    callers = _callers(repository, name)
    moved = _rename([*_with_parts(repository, [*callers, model])], str(version), _aside(version))
    return Change(version, highest, tuple(caller.name for caller in callers if caller in moved))


def restore(repository: Path, name: str, version: int | None) -> Change:
    """Bring a version of a model back that was taken out, with that of its parts and of tools that it is a part of.

    version: None for the only one there is.

    Raises:
        VersionError
    """
    model, config = _find(repository, name)
    found = versions(model)
    if not found.aside:
        raise VersionError(f"{model} has no version that was taken out of service")
    if version is None and len(found.aside) > 1:
        listed = ", ".join(map(str, found.aside))
        raise VersionError(f"{model} has versions {listed} out of service: say which with --version")
    version = version or found.aside[0]
    if version not in found.aside:
        raise VersionError(f"{model} has no version {version} that was taken out of service")
    for part in _parts(repository, config):
        if _is_tool(part) and version not in versions(part).served:
            raise VersionError(
                f"{model} calls version {version} of '{part.name}', which is out of service: restore that"
            )
    callers = _callers(repository, name)
    moved = _rename([*_with_parts(repository, [*callers, model])][::-1], _aside(version), str(version))
    along = tuple(caller.name for caller in callers if caller in moved)
    return Change(version, max((version, *found.served)), along)


def _aside(version: int) -> str:
    return f"0{version}"


def _find(repository: Path, name: str) -> tuple[Path, Any]:
    model = repository / name
    try:
        text = (model / CONFIG_FILE).read_text()
    except (FileNotFoundError, NotADirectoryError):
        known = ", ".join(path.name for path in models(repository)) or "none"
        raise VersionError(f"{repository} has no model '{name}'; it has: {known}") from None
    try:
        return model, text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise VersionError(f"{model / CONFIG_FILE} cannot be read: {error}") from error


def _parts(repository: Path, config: Any) -> list[Path]:
    named = (config.parameters[key].string_value for key in PART_KEYS if key in config.parameters)
    return [repository / name for name in named]


def _with_parts(repository: Path, tools: Iterable[Path]) -> Iterator[Path]:
    """List models, each before its parts, but for parts that are tools themselves: their versions are their own."""
    for tool in tools:
        yield tool
        _, config = _find(repository, tool.name)
        yield from (part for part in _parts(repository, config) if not _is_tool(part))


def _callers(repository: Path, name: str) -> list[Path]:
    """List the models that a model is a part of."""
    configs = {model: _read(model) for model in models(repository)}
    return [model for model, config in configs.items() if config and repository / name in _parts(repository, config)]


def _is_tool(model: Path) -> bool:
    config = _read(model)
    return config is not None and PARAMETER_KEY in config.parameters


def _read(model: Path) -> Any:
    """Read a model's configuration; None where that cannot be read."""
    try:
        return _find(model.parent, model.name)[1]
    except VersionError:
        return None  # nothing that is served, so nothing that is called


def _rename(folders: Sequence[Path], old: str, new: str) -> list[Path]:
    """Rename a version in all folders that have it, or in none; returns these."""
    present = [folder for folder in folders if (folder / old).is_dir()]
    taken = [folder / new for folder in present if (folder / new).exists()]
    if taken:
        raise VersionError(f"{taken[0]} is there already, so {old} cannot get its name")
    done: list[Path] = []
    try:
        for folder in present:
            (folder / old).rename(folder / new)
            done.append(folder)
    except OSError as error:
        _rename_back(done, new, old)
        raise VersionError(f"{folder / old} cannot be renamed: {error.strerror}; all is as it was") from error
    return done


def _rename_back(folders: Iterable[Path], old: str, new: str) -> None:
    for folder in folders:
        with suppress(OSError):
            (folder / old).rename(folder / new)
