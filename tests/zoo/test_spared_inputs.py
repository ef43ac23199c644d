"""No command of the zoo writes over what it reads."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from polywand_zoo.cli import main


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("images", "masks", "model_repository", "training"):
        Path(folder).mkdir()
    for file in ("annotations.json", "evaluation.json", "training/average.pt"):
        Path(file).write_text("what was here")
    Path("link.json").symlink_to("annotations.json")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "evaluate-detections wand_box --coco annotations.json --out annotations.json",
        "evaluate-detections wand_box --coco annotations.json --out ./link.json",
        "evaluate wand_box --coco evaluation.json --out .",
        "evaluate wand_box --images images --masks masks --out masks",
        "evaluate wand_box --images images --masks masks --out images/../images",
        "train training --data images --start training/average.pt",
    ],
)
def test_an_output_is_no_input(command: str, data: Path) -> None:
    result = CliRunner().invoke(main, command.split())
    assert result.exit_code == 2, result.output
    assert "name another" in result.stderr
    for file in ("annotations.json", "evaluation.json", "training/average.pt"):
        assert Path(file).read_text() == "what was here"
    assert not any(Path("images").iterdir())
