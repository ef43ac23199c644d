"""`polywand-zoo rollback`, `restore` and `versions`: what they do to the folders, and what they refuse."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from polywand_zoo.cli import main
from polywand_zoo.published.repository import RepositoryError, next_version

PARTS = 'parameters { key: "encoder" value { string_value: "fbrs_encoder" } }\n' + (
    'parameters { key: "head" value { string_value: "fbrs_head" } }\n'
)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """`hrnet18` with versions 1 to 3, `dextr` with one, and `fbrs` with two parts and two versions."""
    for name, versions in (("hrnet18", 3), ("dextr", 1), ("fbrs", 2), ("fbrs_encoder", 2), ("fbrs_head", 2)):
        for version in range(1, versions + 1):
            (tmp_path / name / str(version)).mkdir(parents=True)
            (tmp_path / name / str(version) / "model.onnx").write_text(f"{name} {version}")
        (tmp_path / name / "config.pbtxt").write_text(PARTS if name == "fbrs" else "")
    return tmp_path


def succeeds(models: Path, *arguments: str) -> str:
    result = CliRunner().invoke(main, [*arguments, "--repository", str(models)])
    assert result.exit_code == 0, result.output
    return result.output


def fails(models: Path, *arguments: str) -> str:
    before = folders(models)
    result = CliRunner().invoke(main, [*arguments, "--repository", str(models)])
    assert result.exit_code == 1, result.output
    assert folders(models) == before
    return result.output.removeprefix("Error: ").removesuffix("\n")


def folders(models: Path) -> list[str]:
    return sorted(str(path.relative_to(models)) for path in models.glob("*/*/"))


def of(models: Path, name: str) -> list[str]:
    return sorted(path.name for path in (models / name).iterdir() if path.is_dir())


def test_a_rollback_sets_the_highest_version_aside_and_restore_brings_it_back(models: Path) -> None:
    assert succeeds(models, "rollback", "hrnet18") == (
        "hrnet18: version 3 is out of service, prompts go to version 2\n"
        "`polywand-zoo restore hrnet18 --version 3` brings it back\n"
    )
    assert of(models, "hrnet18") == ["03", "1", "2"]
    assert succeeds(models, "restore", "hrnet18") == "hrnet18: version 3 is back, prompts go to version 3\n"
    assert of(models, "hrnet18") == ["1", "2", "3"]
    assert (models / "hrnet18" / "3" / "model.onnx").read_text() == "hrnet18 3"


def test_several_rollbacks_go_back_step_by_step_and_each_can_be_restored(models: Path) -> None:
    succeeds(models, "rollback", "hrnet18")
    succeeds(models, "rollback", "hrnet18")
    assert of(models, "hrnet18") == ["02", "03", "1"]
    assert fails(models, "rollback", "hrnet18") == (
        f"{models}/hrnet18 has only version 1 in service: there is none to go back to"
    )
    assert fails(models, "restore", "hrnet18") == (
        f"{models}/hrnet18 has versions 2, 3 out of service: say which with --version"
    )
    assert succeeds(models, "restore", "hrnet18", "--version", "3").endswith("prompts go to version 3\n")
    assert of(models, "hrnet18") == ["02", "1", "3"]
    assert succeeds(models, "restore", "hrnet18").endswith("version 2 is back, prompts go to version 3\n")


def test_a_model_and_its_parts_go_and_come_together(models: Path) -> None:
    succeeds(models, "rollback", "fbrs")
    assert [of(models, name) for name in ("fbrs", "fbrs_encoder", "fbrs_head")] == [["02", "1"]] * 3
    succeeds(models, "restore", "fbrs")
    assert [of(models, name) for name in ("fbrs", "fbrs_encoder", "fbrs_head")] == [["1", "2"]] * 3


@pytest.fixture
def encoding_tool(models: Path) -> Path:
    """As `models`, but the encoder of `fbrs` is a tool itself."""
    tool = 'parameters { key: "polywand" value { string_value: "{}" } }'
    (models / "fbrs_encoder" / "config.pbtxt").write_text(tool)
    return models


def test_a_tool_that_is_a_part_takes_those_along_that_call_it(encoding_tool: Path) -> None:
    models = encoding_tool
    assert "fbrs, which calls it, goes with it\n" in succeeds(models, "rollback", "fbrs_encoder")
    assert [of(models, name) for name in ("fbrs", "fbrs_encoder", "fbrs_head")] == [["02", "1"]] * 3
    assert fails(models, "restore", "fbrs") == (
        f"{models}/fbrs calls version 2 of 'fbrs_encoder', which is out of service: restore that"
    )
    assert "fbrs, which calls it, comes back with it\n" in succeeds(models, "restore", "fbrs_encoder")
    assert [of(models, name) for name in ("fbrs", "fbrs_encoder", "fbrs_head")] == [["1", "2"]] * 3


def test_a_model_whose_configuration_is_broken_is_in_nobodys_way(models: Path) -> None:
    (models / "dextr" / "config.pbtxt").write_text("nonsense {")
    succeeds(models, "rollback", "hrnet18")
    succeeds(models, "restore", "hrnet18")
    assert of(models, "hrnet18") == ["1", "2", "3"]


def test_a_part_that_is_a_tool_itself_keeps_its_versions(encoding_tool: Path) -> None:
    models = encoding_tool
    succeeds(models, "rollback", "fbrs")
    assert [of(models, name) for name in ("fbrs", "fbrs_encoder", "fbrs_head")] == [
        ["02", "1"],
        ["1", "2"],
        ["02", "1"],
    ]
    succeeds(models, "restore", "fbrs")
    assert [of(models, name) for name in ("fbrs", "fbrs_encoder", "fbrs_head")] == [["1", "2"]] * 3


def test_a_version_that_is_set_aside_keeps_its_number(models: Path) -> None:
    succeeds(models, "rollback", "hrnet18")
    assert next_version(models, "hrnet18", None) == 4
    with pytest.raises(RepositoryError, match="has a version 3 already"):
        next_version(models, "hrnet18", 3)


def test_what_cannot_be_is_refused_in_one_sentence(models: Path) -> None:
    assert fails(models, "rollback", "dextr").endswith(
        "dextr has only version 1 in service: there is none to go back to"
    )
    assert fails(models, "rollback", "unknown") == (
        f"{models} has no model 'unknown'; it has: dextr, fbrs, fbrs_encoder, fbrs_head, hrnet18"
    )
    assert fails(models, "restore", "dextr") == f"{models}/dextr has no version that was taken out of service"
    (models / "hrnet18" / "03").mkdir()
    assert fails(models, "rollback", "hrnet18") == f"{models}/hrnet18/03 is there already, so 3 cannot get its name"
    (models / "hrnet18" / "config.pbtxt").write_text("version_policy { specific { versions: [ 3 ] } }")
    assert fails(models, "rollback", "hrnet18") == (
        f"{models}/hrnet18/config.pbtxt allows only version 3: version 2 would not be served"
    )
    (models / "hrnet18" / "config.pbtxt").write_text("nonsense {")
    assert "config.pbtxt cannot be read: " in fails(models, "rollback", "hrnet18")


def test_a_part_that_cannot_be_moved_leaves_all_as_it_was(models: Path) -> None:
    (models / "fbrs_head" / "02").mkdir()
    assert fails(models, "rollback", "fbrs") == f"{models}/fbrs_head/02 is there already, so 2 cannot get its name"


def test_a_rename_that_fails_half_way_leaves_all_as_it_was(models: Path) -> None:
    (models / "fbrs_head" / "02").symlink_to("nowhere")  # a folder cannot replace a link
    assert fails(models, "rollback", "fbrs") == (
        f"{models}/fbrs_head/2 cannot be renamed: Not a directory; all is as it was"
    )


def test_the_versions_of_a_repository_are_listed(models: Path) -> None:
    succeeds(models, "rollback", "hrnet18")
    listed = [line.split("  ") for line in succeeds(models, "versions").splitlines()]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in listed]
    assert rows[0] == ["NAME", "VERSIONS", "OUT OF SERVICE"]
    assert ["hrnet18", "1, 2", "3"] in rows
    assert ["dextr", "1", "-"] in rows
