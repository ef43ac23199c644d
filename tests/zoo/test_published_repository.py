"""Adding a model together with those that it calls: all of them or none."""

from pathlib import Path

import pytest

from polywand_zoo.published.repository import Addition, RepositoryError, add_version

TOOL = Addition("tool", {"model.py": b"calls"}, "tool")
PARTS = (Addition("tool_encoder", {"model.onnx": b"encodes"}, "encoder"), Addition("tool_head", {}, "head"))


def listed(folder: Path) -> list[str]:
    """List everything below a folder, and what is hidden beside it."""
    return sorted(str(path.relative_to(folder.parent)) for path in folder.parent.rglob("*"))


def test_a_model_and_its_parts_get_the_same_version(tmp_path: Path) -> None:
    for version in (1, 2):
        assert add_version(tmp_path / "models", version, *PARTS, TOOL) == tmp_path / "models" / "tool" / str(version)
    assert [name for name in listed(tmp_path / "models") if "tool_encoder" in name] == [
        "models/tool_encoder",
        "models/tool_encoder/1",
        "models/tool_encoder/1/model.onnx",
        "models/tool_encoder/2",
        "models/tool_encoder/2/model.onnx",
        "models/tool_encoder/config.pbtxt",
    ]
    assert (tmp_path / "models" / "tool" / "2" / "model.py").read_bytes() == b"calls"


@pytest.mark.parametrize("hindered", ["tool", "tool_head"])
@pytest.mark.parametrize("is_new", [True, False])
def test_when_one_of_them_cannot_be_added_none_is(tmp_path: Path, hindered: str, is_new: bool) -> None:
    repository = tmp_path / "models"
    if not is_new:
        add_version(repository, 1, *PARTS, TOOL)
    obstacle = repository / hindered / "2" / "something"
    obstacle.parent.mkdir(parents=True)
    obstacle.touch()
    before = listed(repository)
    with pytest.raises(RepositoryError, match="tool/2 could not be written: Directory not empty; nothing was left"):
        add_version(repository, 2, *PARTS, TOOL)
    assert listed(repository) == before
