"""Install exactly the packages of a lock: python scripts/install.py LOCK [PROJECT].

Installs into the environment of the Python that runs it; then PROJECT, a folder, as editable. uv is several times as
fast as pip. It does not read pip's configuration, so this script passes that on. If uv fails, for example because only
pip has the registry's login, pip installs. Both install only wheels, and only with the lock's hashes.
"""

import ast
import os
import subprocess
import sys

PIP = [sys.executable, "-m", "pip"]
UV = [sys.executable, "-m", "uv", "pip"]
LOCKED = ["--require-hashes", "--no-deps", "--only-binary=:all:"]
# As pip, use any source that has the file: the hashes decide, not the order of the sources.
SOURCES = ["--index-strategy=unsafe-best-match"]
# pip's settings, and the same options of uv; some are lists.
OPTIONS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "trusted-host": "--allow-insecure-host",
}
# pip's settings, and the same environment variables for uv.
VARIABLES = {
    "cert": ["SSL_CERT_FILE"],
    "client-cert": ["SSL_CLIENT_CERT"],
    "proxy": ["HTTP_PROXY", "HTTPS_PROXY"],
    "default-timeout": ["UV_HTTP_TIMEOUT"],
    "timeout": ["UV_HTTP_TIMEOUT"],
}


def parse_settings(listed: str) -> dict[str, str]:
    """Parse the output of `pip config list`: the settings for `pip install`, by name without the section."""
    settings: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}  # the later section wins
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.partition(".")
        if section in settings:
            settings[section][name] = str(ast.literal_eval(value))
    return {name: value for section in settings.values() for name, value in section.items()}


def uv_options(settings: dict[str, str]) -> list[str]:
    """Return pip's settings as uv's options."""
    options = [f"{option}={value}" for name, option in OPTIONS.items() for value in settings.get(name, "").split()]
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        options.append("--no-index")
    return [*SOURCES, *options]


def uv_variables(settings: dict[str, str]) -> dict[str, str]:
    """Return the environment with pip's settings as variables; those that are set already stay."""
    variables = {
        variable: settings[name] for name, several in VARIABLES.items() if name in settings for variable in several
    }
    return {**variables, **os.environ}


def main(lock: str, *projects: str) -> None:
    """Install a lock, then projects."""
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=True).stdout
    settings = parse_settings(listed)
    install = [*UV, "install", "--quiet", f"--python={sys.executable}", *uv_options(settings)]
    with_pip = [*PIP, "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    for arguments in (
        [*LOCKED, f"--requirement={lock}"],
        *(["--no-deps", "--no-build-isolation", f"--editable={project}"] for project in projects),
    ):
        if subprocess.run([*install, *arguments], env=uv_variables(settings), check=False).returncode:
            print("uv could not install this; trying pip.", file=sys.stderr)
            subprocess.run([*with_pip, *arguments], check=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
