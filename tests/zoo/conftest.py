"""Fixtures: the golden checkpoints, imported by the command as a user's files, each once for the whole run."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

from polywand_zoo.cli import main
from tests.zoo import golden


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that imports a golden checkpoint by our name and returns the model's folder."""

    @cache
    def import_golden(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        checkpoint = golden.write_checkpoint(folder, name)
        arguments = ["import", name, "--checkpoint", str(checkpoint), "--repository", str(folder / "models")]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        checkpoint.unlink()
        return folder / "models" / name

    return import_golden
