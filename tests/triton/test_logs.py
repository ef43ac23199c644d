"""Triton's log lines as records of ours."""

import asyncio
import logging

import pytest

from polywand_server.triton.embedded.logs import MAX_LINE_BYTES, LogPump, parse


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        (
            "I1123 09:05:58.335644 4800 model_lifecycle.cc:839] \"successfully loaded 'trick'\"",
            logging.INFO,
            "successfully loaded 'trick' (model_lifecycle.cc:839)",
        ),
        ('W1123 09:05:58.335644 4800 a.cc:1] "mind"', logging.WARNING, "mind (a.cc:1)"),
        (
            'E1123 09:05:58.335644 4800 a.cc:1] "line one\\nline \\"two\\""',
            logging.ERROR,
            'line one\nline "two" (a.cc:1)',
        ),
        (
            'E1123 09:02:09.432952 4338 server.cc:241] "CudaDriverHelper has not been initialized."',
            logging.DEBUG,
            "CudaDriverHelper has not been initialized. (server.cc:241)",
        ),
        ("I1123 09:02:09.672462 4338 server.cc:604]", logging.INFO, ""),
        ("| Model | Version | Status |", logging.DEBUG, "| Model | Version | Status |"),
        ("printed by a model", logging.INFO, "printed by a model"),
    ],
)
def test_a_line_becomes_a_level_and_a_text(line: str, level: int, text: str) -> None:
    assert parse(line) == (level, text)


async def test_a_line_without_an_end_neither_blocks_nor_grows(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "polywand.triton")
    stream = asyncio.StreamReader()
    stream.feed_data(b"x" * (5 * MAX_LINE_BYTES) + b"\nlast \xff")
    stream.feed_eof()
    pump = LogPump()
    await pump.run(stream)
    assert max(len(record.getMessage()) for record in caplog.records) == MAX_LINE_BYTES
    assert pump.tail.endswith("last �")
