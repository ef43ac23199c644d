"""How commands end: whatever happens, with complete lines, a sentence and the right exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import grpc
import pytest
from click.testing import CliRunner, Result

from polywand.cli import main
from polywand_contract.v1 import annotation_pb2 as pb
from tests.client.scripted import Script, outline, ready, scripted_server, status

POLYWAND = Path(sys.executable).parent / "polywand"
NOWHERE = "localhost:1"
STUCK_S = 30.0


@pytest.fixture
def script() -> Script:
    return Script(interact=lambda request: ready() if request.HasField("image") else outline())


@pytest.fixture
def target(script: Script) -> Iterator[str]:
    with scripted_server(script) as target:
        yield target


def polywand(target: str, *arguments: object, env: dict[str, str] | None = None, stdin: bytes = b"") -> Result:
    """Run in this process."""
    words = ["--target", target, "--timeout", "10", *map(str, arguments)]
    return CliRunner().invoke(main, words, env=env, input=stdin)


def process(command: str, target: str = NOWHERE, **environment: str) -> "subprocess.Popen[str]":
    """Run a line of bash, in which $polywand is the command."""
    environment |= {"polywand": str(POLYWAND), "POLYWAND_TARGET": target}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        ["bash", "-c", f"exec {command}"], env=os.environ | environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + STUCK_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lines(result: Result) -> list[Any]:
    return [json.loads(line) for line in result.stdout.splitlines()]


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_as_the_signal_does(number: signal.Signals, photos: list[str]) -> None:
    with scripted_server(script := Script()) as target:  # which takes the image and says nothing
        running = process("$polywand interact a.png --model m --positive 1,1", target)
        wait_for(lambda: script.arrivals)
        running.send_signal(number)
        stdout, stderr = running.communicate(timeout=STUCK_S)
    assert running.returncode == -number
    assert stdout == ""
    assert stderr == ("Interrupted.\n" if number is signal.SIGINT else "Terminated.\n")


def test_a_line_that_is_being_written_is_finished_first() -> None:
    size = 1 << 20  # more than a pipe holds
    program = (
        f"from polywand_common import console; console.run(lambda: [console.echo('x' * {size}) for _ in 'abc'], True)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        begin = running.stdout.read(1)  # so it writes
        running.send_signal(signal.SIGINT)
        rest = running.stdout.read()
        assert running.wait(STUCK_S) == -signal.SIGINT
    assert begin + rest == b"x" * size + b"\n"


# Outputs that take nothing


def test_a_reader_that_goes_ends_a_command_in_silence(target: str, photos: list[str]) -> None:
    running = process("$polywand models", target)
    assert running.stdout is not None
    running.stdout.close()
    assert running.wait(STUCK_S) == 128 + signal.SIGPIPE
    assert running.stderr is not None
    assert running.stderr.read() == ""


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("$polywand models > /dev/full", "Standard output cannot be written: No space left on device."),
        ("$polywand --help > /dev/full", "Standard output cannot be written: No space left on device."),
        ("$polywand models >&-", "Standard output cannot be written: it is closed."),
    ],
)
def test_an_output_that_takes_nothing_is_told(command: str, complaint: str, target: str) -> None:
    running = process(command, target)
    _, stderr = running.communicate(timeout=STUCK_S)
    assert (running.returncode, stderr) == (1, f"Error: {complaint}\n")


@pytest.mark.parametrize("where", ["2> /dev/full", "2>&-"])
def test_a_failure_that_cannot_be_told_is_still_one(where: str, photos: list[str]) -> None:
    running = process(f"$polywand models {where}")
    assert running.communicate(timeout=STUCK_S) == ("", "")
    assert running.returncode == 1


# Names and encodings


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii"])
def test_a_name_that_is_not_utf_8_is_printed(encoding: str, target: str, photos: list[str]) -> None:
    Path(os.fsdecode(b"bad\xff.png")).write_bytes(Path("a.png").read_bytes())
    running = process("$polywand detect bad*.png missing$'\\xff'.png", target, PYTHONIOENCODING=encoding)
    stdout, stderr = running.communicate(timeout=STUCK_S)
    replaced = "?" if encoding == "ascii" else "\ufffd"
    assert running.returncode == 1
    assert stdout.startswith(f"bad{replaced}.png: 0 objects")
    assert stderr == f"Error: missing{replaced}.png cannot be read: No such file or directory\n"


def test_json_of_a_name_that_is_not_utf_8_is_unicode(target: str, photos: list[str]) -> None:
    name = os.fsdecode(b"bad\xff.png")
    Path(name).write_bytes(Path("a.png").read_bytes())
    answers = lines(polywand(target, "detect", name, os.fsdecode(b"no\xff.png"), "--json"))
    assert [answer["image"] for answer in answers] == ["bad\ufffd.png", "no\ufffd.png"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["detect", "a.png", "--max-detections", "-1"], "'--max-detections': -1 is not in the range 1 to 1000"),
        (["detect", "a.png", "--max-detections", "9" * 30], "'--max-detections'"),
        (["detect", "a.png", "--threshold", "nan"], "'--threshold': nan"),
        (["detect", "a.png", "--threshold", "1.5"], "'--threshold'"),
        (["detect", "a.png", "--version", "-1"], "'--version'"),
        (["detect", "a.png", "--version", "9" * 30], "'--version'"),
        (["detect", "a.png", "--polygons", "--tolerance", "inf"], "'--tolerance'"),
        (
            ["detect", "a.png", "--label", "person=\udcff"],
            "'--label': 'person=\ufffd' contains bytes that are not UTF-8",
        ),
        (["detect", "a.png", "--model", "\udcff"], "'--model'"),
        (["detect", "a.png", "--label", "cup@1.5"], "'--label': 1.5 is not in the range 0 to 1"),
        (["detect", "a.png", "--label", "cup@0.5.5"], "'--label'"),
        (["detect", "a.png", "--label", "=x@0.5"], "'--label': '=x@0.5' does not name a label"),
        (["detect", "a.png", "--roi", "1,2,3"], "'--roi'"),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
        (
            ["interact", "a.png", "--model", "m", "--max-points", "-5"],
            "'--max-points': -5 is not in the range 3 to 100000",
        ),
        (["interact", "a.png", "--model", "m", "--threshold", "1"], "'--threshold'"),
        (["interact", "a.png", "--model", "m", "--positive", "1,nan"], "'--positive': '1,nan'"),
        (["interact", "a.png", "--model", "m", "--box", "1,2,3,1e39"], "'--box'"),
        (["--timeout", "0", "models"], "'--timeout'"),
        (["--timeout", "nan", "models"], "'--timeout'"),
        (["--target", "http://localhost:50051", "models"], "'--target': 'http://localhost:50051' is not a target"),
        (["--target", "", "models"], "'--target'"),
    ],
)
def test_a_wrong_value_names_its_option_and_exits_with_2(arguments: list[str], complaint: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr


# Standard input


def test_an_image_may_come_from_standard_input_and_be_drawn_on(target: str, photos: list[str]) -> None:
    for command in ("detect - --overlay", "interact /dev/stdin --model m --positive 1,1 --overlay"):
        running = process(f"$polywand {command} outs/ < <(cat a.png)", target)
        _, stderr = running.communicate(timeout=STUCK_S)
        assert (running.returncode, stderr) == (0, "")
        assert cv2.imread("outs/stdin.png").shape == (3, 4, 3)
        Path("outs/stdin.png").unlink()


def test_a_pipe_is_an_image_like_any_other(target: str, photos: list[str]) -> None:
    running = process("$polywand detect <(cat a.png) b.png --overlay outs", target)
    _, stderr = running.communicate(timeout=STUCK_S)
    assert (running.returncode, stderr) == (0, "")
    assert len(list(Path("outs").iterdir())) == 2


def test_standard_input_is_one_image_at_most(photos: list[str]) -> None:
    for arguments in (["detect", "-", "/dev/stdin"], ["interact", "-", "--model", "m", "--seed", "-"]):
        result = polywand(NOWHERE, *arguments)
        assert result.exit_code == 2
        assert "Standard input is read once" in result.stderr


def test_an_empty_standard_input_is_told(target: str) -> None:
    result = polywand(target, "detect", "-", "--json")
    assert result.exit_code == 1
    assert lines(result) == [{"image": "-", "error": "Standard input is empty.", "code": "INVALID_ARGUMENT"}]
    assert result.stderr == "Error: Standard input is empty.\n"


# The environment


def test_labels_with_blanks_come_from_the_environment(target: str, script: Script, photos: list[str]) -> None:
    environment = {"POLYWAND_DETECT_LABEL": "dining table=table; cup\nperson=human being;", "POLYWAND_DETECT_JSON": "1"}
    result = polywand(target, "detect", "a.png", env=environment)
    assert lines(result)[0]["image"] == "a.png"
    ((_, message),) = script.arrivals
    labels = {pair.model_label: pair.label for pair in message.request.labels}
    assert labels == {"dining table": "table", "cup": "", "person": "human being"}


def test_what_detect_sends_is_what_was_typed(target: str, script: Script, photos: list[str]) -> None:
    labels = ("--label", "cup", "--label", "person=human@0.6", "--label", "a@b=c@0.25", "--label", "x@y")
    outlines = ("--polygons", "--interactor", "wand_box", "--tolerance", "0")
    polywand(target, "detect", "a.png", "--roi", "1,0,4,3", *labels, *outlines)
    ((_, message),) = script.arrivals
    request = message.request
    assert (request.model, request.roi) == ("", pb.Box(x0=1, y0=0, x1=4, y1=3))
    thresholds = [pair.threshold if pair.HasField("threshold") else None for pair in request.labels]
    assert thresholds == [None, pytest.approx(0.6), 0.25, None]
    assert [(pair.model_label, pair.label) for pair in request.labels] == [
        *(("cup", ""), ("person", "human"), ("a@b", "c"), ("x@y", "")),
    ]
    assert (request.polygons.model, request.polygons.output.tolerance) == ("wand_box", 0)


@pytest.mark.parametrize("points", ["1,1 2,2", "1,1;2,2", "1,1; 2,2\n"])
def test_points_come_from_the_environment(target: str, script: Script, photos: list[str], points: str) -> None:
    polywand(target, "interact", "a.png", "--model", "m", env={"POLYWAND_INTERACT_POSITIVE": points})
    _, message = script.arrivals[-1]
    assert [(point.x, point.y) for point in message.prompt.points] == [(1, 1), (2, 2)]


@pytest.mark.parametrize(("value", "is_json"), [("1", True), ("true", True), ("0", False), ("no", False), ("", False)])
def test_a_flag_of_the_environment_may_be_off(target: str, photos: list[str], value: str, is_json: bool) -> None:
    result = polywand(target, "detect", "a.png", env={"POLYWAND_DETECT_JSON": value})
    assert result.exit_code == 0
    assert result.stdout.startswith("{") is is_json


# Batches


class Breaking(Script):
    """A server whose streams break at their second frame, while calls of one frame go well."""

    def DetectStream(  # noqa: N802 - gRPC's name
        self, requests: Iterator[pb.DetectStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.DetectStreamResponse]:
        for number, request in enumerate(requests):
            if number:
                context.abort(grpc.StatusCode.INTERNAL, "a proxy had enough")
            yield pb.DetectStreamResponse(frame_id=request.frame_id, response=pb.DetectResponse())


def test_a_stream_that_breaks_does_not_end_a_batch(photos: list[str]) -> None:
    with scripted_server(Breaking()) as target:
        result = polywand(target, "detect", *photos, *photos, "--json")
    assert [answer["image"] for answer in lines(result)] == [*photos, *photos]
    assert result.exit_code == 0


def test_without_a_server_every_file_is_told(photos: list[str]) -> None:
    result = polywand(NOWHERE, "detect", *photos, "--json")
    assert result.exit_code == 1
    assert [(answer["image"], answer["code"]) for answer in lines(result)] == [(name, "UNAVAILABLE") for name in photos]
    assert [line.split(":")[1].strip() for line in result.stderr.splitlines()] == photos


def test_a_file_that_fails_is_told_in_its_place(target: str, photos: list[str]) -> None:
    Path("folder.png").mkdir()
    names = ["a.png", "folder.png", "b.png", "missing.png", "c.png"]
    result = polywand(target, "detect", *names, "--json")
    assert result.exit_code == 1
    assert [(answer["image"], "error" in answer) for answer in lines(result)] == [
        *(("a.png", False), ("folder.png", True), ("b.png", False), ("missing.png", True), ("c.png", False)),
    ]


def test_an_overlay_that_cannot_be_written_costs_only_itself(target: str, photos: list[str]) -> None:
    Path("outs/b.png").mkdir(parents=True)
    result = polywand(target, "detect", *photos, "--json", "--overlay", "outs")
    assert result.exit_code == 1
    assert sorted(path.name for path in Path("outs").iterdir() if path.is_file()) == ["a.png", "c.png"]
    first, second, third = lines(result)
    assert "error" not in first | third
    assert second["detections"] == []
    assert "outs/b.png cannot be written" in second["error"]


def test_a_failed_prompt_is_json_too(photos: list[str]) -> None:
    refused = pb.InteractResponse(error=status(grpc.StatusCode.NOT_FOUND, "no model of this name"))
    script = Script(interact=lambda request: ready() if request.HasField("image") else refused)
    with scripted_server(script) as target:
        result = polywand(target, "interact", "a.png", "--model", "m", "--json")
    assert result.exit_code == 1
    assert lines(result) == [{"image": "a.png", "error": "no model of this name", "code": "NOT_FOUND"}]
    assert result.stderr == "Error: no model of this name\n"


def test_what_a_prompt_lacks_is_json_too(photos: list[str]) -> None:
    lacking = pb.InteractResponse(incomplete=pb.Incomplete(message="a box and a click", missing_positive_points=1))
    script = Script(interact=lambda request: ready() if request.HasField("image") else lacking)
    with scripted_server(script) as target:
        (answer,) = lines(polywand(target, "interact", "a.png", "--model", "m", "--json"))
    assert answer["code"] == "FAILED_PRECONDITION"
    assert answer["missing_positive_points"] == 1
    assert "missing_box" not in answer


def test_other_answers_are_counted_and_are_in_json(photos: list[str]) -> None:
    others = [pb.Candidate(score=0.5, shape=pb.Shape(area=9)), pb.Candidate(score=0.25, shape=pb.Shape(area=4))]
    best = pb.Segmentation(model="m", score=0.75, score_kind=pb.SCORE_KIND_PREDICTED_IOU, alternatives=others)
    answer = pb.InteractResponse(segmentation=best)
    with scripted_server(Script(interact=lambda sent: ready() if sent.HasField("image") else answer)) as target:
        text = polywand(target, "interact", "a.png", "--positive", "1,1").stdout
        (line,) = lines(polywand(target, "interact", "a.png", "--positive", "1,1", "--json"))
    assert "score 0.75 (predicted IoU)" in text
    assert "2 other answers with --json, scores 0.50, 0.25" in text
    assert [(other["area"], other["score"]) for other in line["alternatives"]] == [(9, 0.5), (4, 0.25)]


def test_models_that_cannot_be_listed_are_json_too() -> None:
    result = polywand(NOWHERE, "models", "--json")
    assert result.exit_code == 1
    assert lines(result)[0]["code"] == "UNAVAILABLE"


def test_the_sizes_of_images_are_told(target: str, photos: list[str]) -> None:
    answer = lines(polywand(target, "interact", "a.png", "--model", "m", "--json"))[0]
    assert (answer["width"], answer["height"]) == (4, 3)
