"""What the locks hold is installed from where pip would take it."""

import subprocess
from pathlib import Path
from zipfile import ZipFile

import pytest
from scripts import install


def test_pips_settings_are_read_and_the_nearer_ones_win() -> None:
    listed = (
        "global.index-url='https://a.test/simple'\n"
        "global.find-links='/one\\n/two'\n"
        "install.no-index='yes'\n"
        "download.proxy='http://other.test'\n"
        ":env:.index-url='https://b.test/simple'\n"
    )
    settings = install.parse_settings(listed)
    assert settings == {"index-url": "https://b.test/simple", "find-links": "/one\n/two", "no-index": "yes"}


def test_uv_is_told_pips_sources() -> None:
    settings = {
        "index-url": "https://a.test/simple",
        "extra-index-url": "https://b.test https://c.test",
        "retries": "9",
    }
    assert install.uv_options(settings) == [
        *install.SOURCES,
        "--default-index=https://a.test/simple",
        "--index=https://b.test",
        "--index=https://c.test",
    ]
    assert install.uv_options({"no-index": "false"}) == install.SOURCES
    assert install.uv_options({"no-index": "true"}) == [*install.SOURCES, "--no-index"]


def test_uv_is_told_pips_certificates_unless_the_environment_names_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    assert install.uv_variables({"cert": "/a.pem"})["SSL_CERT_FILE"] == "/a.pem"
    monkeypatch.setenv("SSL_CERT_FILE", "/b.pem")
    assert install.uv_variables({"cert": "/a.pem"})["SSL_CERT_FILE"] == "/b.pem"


@pytest.mark.parametrize("uv_code", [0, 2])
def test_pip_installs_where_uv_cannot_and_with_the_same_checks(uv_code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, uv_code if "uv" in command else 0, stdout="")

    monkeypatch.setattr(install.subprocess, "run", run)
    install.main("locks/serve.txt", ".")
    installs = [command for command in ran if "install" in command]
    assert [command[2] for command in installs] == (["uv", "uv"] if uv_code == 0 else ["uv", "pip", "uv", "pip"])
    for command in installs[: 1 if uv_code == 0 else 2]:
        assert {"--require-hashes", "--no-deps", "--only-binary=:all:", "--requirement=locks/serve.txt"} <= {*command}


@pytest.mark.parametrize("tool", [install.UV, install.PIP], ids=["uv", "pip"])
def test_a_file_with_another_hash_is_refused(tool: list[str], tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with ZipFile(wheels / "polywand_none-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("polywand_none-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: polywand-none\nVersion: 1\n")
        wheel.writestr(
            "polywand_none-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("polywand_none-1.dist-info/RECORD", "")
    lock = tmp_path / "lock.txt"
    lock.write_text(f"polywand-none==1 --hash=sha256:{'0' * 64}\n")
    sources = ["--no-index", f"--find-links={wheels}", f"--target={tmp_path / 'target'}"]
    command = [*tool, "install", *install.LOCKED, f"--requirement={lock}", *sources]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode != 0
    assert "hash" in refused.stderr.lower()
