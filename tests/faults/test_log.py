"""What libraries print and log does not become the log: a few lines, each a record, however much it is."""

import io
import logging
import signal
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from polywand_server.ops import native_output
from polywand_server.ops.repeats import Repeats, quiet_libraries
from tests.running import Service, running_service, wait_for
from tests.streams import InteractStream

LINES = 100_000
FEW_LINES = native_output.MAX_LINES + 2
START = """
import ctypes, logging, os, subprocess, sys, time
from polywand_server.ops.native_output import NativeOutput
logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
log = logging.getLogger("own")
"""


def run(body: str, *, status: int = 0, **streams: object) -> str:
    """Run Python code in a process of its own; return what reached its stderr, unless streams say otherwise."""
    streams = {"stderr": subprocess.PIPE} | streams
    done = subprocess.run([sys.executable, "-c", START + body], text=True, check=False, timeout=120, **streams)
    assert done.returncode == status, done.stderr
    return done.stderr or ""


def test_a_flood_becomes_a_few_records_and_does_not_block_what_prints():
    """ctypes.pythonapi keeps the interpreter's lock: were a write to wait for the reader, this would never end."""
    said = run(f"""
with NativeOutput():
    log.error("before")
    write = ctypes.PyDLL(None).dprintf
    for number in range({LINES}):
        write(2, b"Fax3Decode1D: Bad code word at line %d of strip 0\\n", number)
    log.error("after")
log.error("the end")
""")
    lines = said.splitlines()
    assert [line for line in lines if "own" in line] == ["ERROR own: before", "ERROR own: after", "ERROR own: the end"]
    others = [line for line in lines if "own" not in line]
    assert 2 <= len(others) <= FEW_LINES
    assert others[0] == "WARNING polywand.native: Fax3Decode1D: Bad code word at line 0 of strip 0"
    assert all(line.startswith("WARNING polywand.native: ") for line in others)
    assert "more lines" in others[-1]


def test_a_window_that_is_over_is_summed_up_and_the_next_one_begins():
    said = run("""
with NativeOutput(window_seconds=0.5):
    for _ in range(2):
        os.write(2, b"".join(b"line %d\\n" % number for number in range(20)))
        time.sleep(1.2)
""")
    assert said.count("line 4") == 2
    assert "line 5" not in said
    assert said.count("libraries printed at least 15 more lines") == 2


def test_a_printed_line_cannot_pass_for_one_of_the_log():
    said = run(r"""
with NativeOutput():
    os.write(2, b"\x1b[2J\rERROR own: false \xff\n" + b"a" * 10_000 + b"\n" + b"no end")
""")
    assert said.count("\n") == 3
    assert r"WARNING polywand.native: \x1b[2J\rERROR own: false \xff" in said
    assert "a" * native_output.MAX_LINE_BYTES + "\n" in said
    assert said.endswith("WARNING polywand.native: no end\n")


def test_tracebacks_and_those_of_fatal_signals_are_printed_as_they_are():
    assert "\nTraceback (most recent call last):\n" in "\n" + run(
        "with NativeOutput():\n    raise ValueError\n", status=1
    )
    said = run("with NativeOutput():\n    ctypes.string_at(0)\n", status=-signal.SIGSEGV)
    assert "Fatal Python error: Segmentation fault" in said
    assert "polywand.native" not in said


def test_a_process_that_is_started_meanwhile_prints_into_the_log_and_may_outlive_it():
    said = run("""
with NativeOutput():
    subprocess.run([sys.executable, "-c", "import sys; sys.stderr.write('from a child\\\\n')"], check=True)
    child = subprocess.Popen(["sleep", "30"])
log.error("it has ended")
child.kill()
""")
    assert said == "WARNING polywand.native: from a child\nERROR own: it has ended\n"


@pytest.mark.parametrize("kind", ["file", "null", "closed"])
def test_it_does_no_harm_whatever_stderr_is(kind, tmp_path):
    body = f"""
with NativeOutput():
    os.write(2, b"printed\\n")
    log.error("logged")
    time.sleep(0.2)
Path = __import__("pathlib").Path
Path({str(tmp_path / "done")!r}).touch()
"""
    if kind == "closed":
        run("os.close(2)\n" + body)
    else:
        with (tmp_path / "log").open("w") if kind == "file" else open("/dev/null", "w") as stderr:
            run(body, stderr=stderr)
    assert (tmp_path / "done").exists()
    if kind == "file":
        logged = (tmp_path / "log").read_text()
        assert sorted(logged.splitlines()) == ["ERROR own: logged", "WARNING polywand.native: printed"]


def test_a_process_without_standard_streams_starts_and_stops(tmp_path):
    done = tmp_path / "done"
    code = (
        "import os, pathlib, sys\n"
        "from polywand_server.ops.native_output import NativeOutput\n"
        f"with NativeOutput():\n    os.write(2, b'x\\n')\npathlib.Path({str(done)!r}).touch()\n"
    )
    subprocess.run(["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code], check=True, timeout=60)
    assert done.exists()


def test_the_same_message_passes_once_in_a_while_and_tells_how_often_it_came():
    stream = io.StringIO()
    logger = logging.getLogger("tests.repeats")
    handler, repeats = logging.StreamHandler(stream), Repeats(interval_seconds=0.5)
    logger.addHandler(handler)
    logger.addFilter(repeats)
    try:
        for number in range(100):
            logger.warning("number %d", number)
        logger.warning("another")
        time.sleep(0.6)
        logger.warning("number %d", 100)
    finally:
        logger.removeHandler(handler)
        logger.removeFilter(repeats)
    assert stream.getvalue().splitlines() == [
        "number 0",
        "another",
        "number 100 (99 more of these since the last one)",
    ]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service without Triton: images are decoded before any model is asked."""
    with running_service(tmp_path / "log", "--triton-url=127.0.0.1:9") as running:
        wait_for(lambda: running.get("/readyz")[0] == 503, 30, running)
        yield running


def nonsense_in_group_3(side: int) -> bytes:
    """A fax whose every line is damaged: libtiff prints one line for each."""
    data = b"\x00\x35\xa9" * 6 * side
    tags = {256: side, 257: side, 258: 1, 259: 3, 262: 0, 273: 8, 277: 1, 278: side, 279: len(data)}
    directory = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items())
    at = 8 + len(data)
    return b"II*\0" + struct.pack("<L", at) + data + struct.pack("<H", len(tags)) + directory + bytes(4)


def test_no_upload_writes_more_than_a_few_lines(service):
    before = service.log.read_text()
    with grpc.insecure_channel(service.target) as channel:
        stub = annotation_pb2_grpc.AnnotationServiceStub(channel)
        for _ in range(3):
            with InteractStream(stub) as stream:
                stream.ask(pb.Image(encoded=nonsense_in_group_3(2000)))
    added = service.log.read_text().removeprefix(before)
    assert added.count("\n") <= FEW_LINES
    assert all(line[:4].isdigit() for line in added.splitlines()), added  # each has a time


def test_pillow_warns_of_nothing_that_an_image_says():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_libraries()
        warnings.warn_explicit("Corrupt EXIF data", UserWarning, "TiffImagePlugin.py", 1, module="PIL.TiffImagePlugin")
        warnings.warn_explicit("of ours", UserWarning, "images.py", 1, module="polywand_server.images")
    assert [str(warning.message) for warning in caught] == ["of ours"]
