"""What the command shows on a terminal, and what it does when that says stop."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from polywand_contract.v1 import annotation_pb2 as pb
from tests.client.scripted import Script, scripted_server, status
from tests.running import Service

POLYWAND = Path(sys.executable).parent / "polywand"
STUCK_S = 30.0
CLEAR, SHOW_CURSOR, RED, GREEN = "\x1b[K", "\x1b[?25h", "\x1b[31m", "\x1b[32m"


class Terminal:
    """A pseudo-terminal of 80 columns, on which a command runs.

    shown: all that was written to it, once the command has ended.
    """

    def __init__(self, target: str, *arguments: object, stdout: int | None = None, **environment: str) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        clean = {
            name: value
            for name, value in os.environ.items()
            if name not in ("NO_COLOR", "COLUMNS") and not name.startswith("POLYWAND_")
        }
        self.process = subprocess.Popen(
            [str(POLYWAND), *map(str, arguments)],
            env=clean | {"TERM": "xterm", "POLYWAND_TARGET": target} | environment,
            stdin=subprocess.DEVNULL,
            stdout=theirs if stdout is None else stdout,
            stderr=theirs,
        )
        os.close(theirs)
        self.shown = ""
        self._screen = ours
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait(self) -> int:
        """Wait for the command's end; return its exit code."""
        code = self.process.wait(STUCK_S)
        self._reader.join(STUCK_S)
        assert "Traceback" not in self.shown
        return code

    def lines(self) -> list[str]:
        """Return the lines that stay on the screen."""
        kept = re.sub(r"\x1b\[(\?\d+[hl]|\d*m)", "", self.shown.replace("\r\n", "\n"))
        return [line.rpartition("\r")[2].replace(CLEAR, "").rstrip() for line in kept.rstrip("\n").split("\n")]

    def _read(self) -> None:
        with suppress(OSError):  # the command's end of it is closed
            while data := os.read(self._screen, 1 << 16):
                self.shown += data.decode()
        os.close(self._screen)


class Gated(Script):
    """A server that answers the first frame of a stream, and the others when the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def DetectStream(  # noqa: N802 - gRPC's name
        self, requests: Iterator[pb.DetectStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.DetectStreamResponse]:
        for number, request in enumerate(requests):
            if number:
                self.gate.wait(STUCK_S)
            yield pb.DetectStreamResponse(frame_id=request.frame_id, response=pb.DetectResponse())


# The progress bar


def test_a_bar_counts_the_files_while_the_answers_go_elsewhere(photos: list[str]) -> None:
    with scripted_server(Script()) as target, Path("found.jsonl").open("wb") as found:
        terminal = Terminal(target, "detect", *photos, "--json", stdout=found.fileno())
        assert terminal.wait() == 0
    assert [json.loads(line)["image"] for line in Path("found.jsonl").read_text().splitlines()] == photos
    assert list(dict.fromkeys(re.findall(r"\d/\d", terminal.shown))) == ["0/3", "1/3", "2/3", "3/3"]
    assert terminal.shown.endswith(f"{SHOW_CURSOR}\r\n")
    (bar,) = terminal.lines()
    assert re.search(r"\[#+\]  3/3", bar)


def test_the_bar_stays_below_answers_and_errors(photos: list[str]) -> None:
    error = status(grpc.StatusCode.INVALID_ARGUMENT, "not an image")
    with scripted_server(Script(detect=lambda count: error if count == 1 else None)) as target:
        terminal = Terminal(target, "detect", *photos)
        assert terminal.wait() == 1
    first, second, third, bar = terminal.lines()
    assert first.startswith("a.png: 0 objects")
    assert second == "Error: b.png: not an image"
    assert third.startswith("c.png: 0 objects")
    assert "3/3" in bar


@pytest.mark.parametrize("arguments", [["a.png"], ["a.png", "b.png", "--quiet"], ["a.png", "b.png", "-q"]])
def test_one_file_and_quiet_have_no_bar(photos: list[str], arguments: list[str]) -> None:
    with scripted_server(Script()) as target:
        terminal = Terminal(target, "detect", *arguments)
        assert terminal.wait() == 0
    assert "\x1b" not in terminal.shown
    assert len(terminal.lines()) == len([name for name in arguments if name.endswith(".png")])


# Interrupted


def test_ctrl_c_keeps_what_was_answered(photos: list[str]) -> None:
    with scripted_server(server := Gated()) as target:
        reader, writer = os.pipe()
        terminal = Terminal(target, "detect", *photos, "--json", stdout=writer)
        os.close(writer)
        with os.fdopen(reader) as found:
            first = found.readline()
            terminal.process.send_signal(signal.SIGINT)
            assert terminal.wait() == -signal.SIGINT  # which a shell reports as 130
            assert found.read() == ""
        server.gate.set()
    assert json.loads(first)["image"] == "a.png"
    assert SHOW_CURSOR in terminal.shown
    assert terminal.lines()[-1] == "Interrupted."


def test_a_reader_that_closes_the_pipe_ends_a_batch_in_silence(photos: list[str]) -> None:
    with scripted_server(server := Gated()) as target:
        reader, writer = os.pipe()
        terminal = Terminal(target, "detect", *photos, "--json", "--quiet", stdout=writer)
        os.close(writer)
        with os.fdopen(reader) as found:
            assert json.loads(found.readline())["image"] == "a.png"
        server.gate.set()
        assert terminal.wait() == 128 + signal.SIGPIPE
    assert terminal.shown == ""


# Colours


class Models(Script):
    """A server with a model that works and one that does not."""

    def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: grpc.ServicerContext
    ) -> pb.ListModelsResponse:
        works = pb.Model(name="works", kind=pb.MODEL_KIND_DETECTOR, state=pb.MODEL_STATE_READY)
        broken = pb.Model(name="broken", state=pb.MODEL_STATE_FAILED, state_message="its file is damaged")
        return pb.ListModelsResponse(models=[works, broken])


def test_states_and_errors_have_colours(photos: list[str]) -> None:
    with scripted_server(Models()) as target:
        terminal = Terminal(target, "models")
        assert terminal.wait() == 0
    assert f"{GREEN}ready" in terminal.shown
    assert f"{RED}failed" in terminal.shown
    terminal = Terminal("localhost:1", "models", "--timeout", "x")
    assert terminal.wait() == 2
    assert f"{RED}Error:" in terminal.shown


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_color_is_honoured(variables: dict[str, str]) -> None:
    with scripted_server(Models()) as target:
        listed = Terminal(target, "models", **variables)
        assert listed.wait() == 0
    assert listed.lines()[2].split()[-5:] == ["failed:", "its", "file", "is", "damaged"]
    wrong = Terminal("localhost:1", "--timeout", "x", "models", **variables)
    assert wrong.wait() == 2
    assert "\x1b" not in listed.shown + wrong.shown


def test_a_pipe_gets_no_colours() -> None:
    with scripted_server(Models()) as target:
        listed = subprocess.run(
            [POLYWAND, "--target", target, "models"], capture_output=True, text=True, timeout=STUCK_S, check=True
        )
    assert "\x1b" not in listed.stdout
    assert listed.stdout.splitlines()[1].endswith("  ready")


# What the shell completes


def completed(typed: str, target: str = "localhost:1") -> list[str]:
    """Return what bash completes, with the script loaded; the last word is being typed."""
    program = """
        eval "$(polywand completion bash)"
        read -r -a COMP_WORDS <<< "$1"; [[ $1 == *" " ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        compopt() { :; }
        _polywand_completion polywand
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    path = f"{POLYWAND.parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-c", program, "bash", typed],
        env=os.environ | {"PATH": path, "POLYWAND_TARGET": target},
        capture_output=True,
        text=True,
        timeout=STUCK_S,
        check=True,
    )
    assert ran.stderr == ""
    return ran.stdout.split()


def test_bash_completes_commands_and_options() -> None:
    assert completed("polywand de") == ["detect"]
    assert set(completed("polywand ")) >= {"models", "interact", "detect", "completion"}
    assert completed("polywand detect --max-d") == ["--max-detections"]
    assert completed("polywand completion ") == ["bash", "zsh", "fish"]


def test_bash_completes_the_models_of_the_server(puppets: Service) -> None:
    assert completed("polywand interact a.png --model lean", puppets.target) == ["leaning", "leaning_flipped"]
    assert completed("polywand detect a.png --model find", puppets.target) == ["finder"]
    assert completed("polywand detect a.png --model lean", puppets.target) == []
    assert completed("polywand detect a.png --model find") == []  # no server


@pytest.mark.parametrize(
    "typed", ["detect ph", "detect a.png ph", "segment a.png --boxes ph", "interact a.png --seed ph"]
)
def test_files_are_left_to_the_shell(typed: str) -> None:
    words = ["polywand", *typed.split()]
    variables = {
        "_POLYWAND_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": f"{len(words) - 1}",
    }
    answer = subprocess.run([POLYWAND], env=os.environ | variables, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "file,ph"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shells_script_asks_for_what_is_typed(shell: str) -> None:
    script = subprocess.run([POLYWAND, "completion", shell], capture_output=True, text=True, check=True).stdout
    assert f"_POLYWAND_COMPLETE={shell}_complete" in script
    typed = "det" if shell == "fish" else "1"  # fish tells the word, others its number
    variables = {"_POLYWAND_COMPLETE": f"{shell}_complete", "COMP_WORDS": "polywand det", "COMP_CWORD": typed}
    answer = subprocess.run([POLYWAND], env=os.environ | variables, capture_output=True, text=True, check=True)
    assert "detect" in answer.stdout
