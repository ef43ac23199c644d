"""Which value is black and which is white: the documented rule, and a way to say it."""

import numpy as np
import pytest

from polywand_pictures import RangeError, ValueRange, read_picture
from tests.pictures.writers import colours, grey, png, saved, tiff

RGB, GREY = colours(), grey()
GREY3 = np.repeat(GREY[..., None], 3, 2)


def mean_difference(data: bytes, right: np.ndarray, said: ValueRange | None = None) -> float:
    pixels = read_picture(data, said)
    assert pixels.shape == right.shape
    return float(np.abs(pixels.astype(int) - right).mean())


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("write", [png, tiff], ids=["PNG", "TIFF"])
def test_the_fewest_bits_that_hold_a_files_values_are_its_range(bits, write):
    most = (1 << bits) - 1
    values = np.rint(GREY / 255 * most).astype(np.uint16)
    assert mean_difference(write(values), GREY3) < 0.6
    darker = np.rint(GREY / 255 * most * 0.9).astype(np.uint16)  # no white in it, and the same range
    assert mean_difference(write(darker), GREY3 * 0.9) < 0.6
    colour = np.rint(RGB / 255 * most).astype(np.uint16)
    assert mean_difference(png(colour), RGB) < 0.6


def test_a_channel_alone_is_not_stretched():
    """The range is that of all colours together."""
    values = np.zeros((8, 8, 3), np.uint16)
    values[..., 0] = 1000
    values[..., 1] = 500
    assert read_picture(png(values))[0, 0].tolist() == [249, 125, 0]
    assert read_picture(tiff(values, 2))[0, 0].tolist() == [249, 125, 0]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan, -9999, -32767, -32768])
def test_values_that_are_none_do_not_count(dtype, odd):
    for factor in (1 / 255, 20):
        values = (GREY.astype(float) * factor).astype(dtype)
        values[0, 0] = odd
        assert mean_difference(tiff(values), GREY3) < 0.6
        assert read_picture(tiff(values))[0, 0, 0] == (255 if odd == np.inf else 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("odd", [3.4e38, -3.4e38, -3.4028234663852886e38, 9.969209968386869e36, 1e20])
def test_the_largest_floats_mean_no_data(dtype, odd):
    values = (GREY.astype(float) * 20).astype(dtype)
    values[5:8] = odd
    right = GREY3.copy()
    right[5:8] = 0
    assert mean_difference(tiff(values), right) < 0.6


@pytest.mark.parametrize(
    ("dtype", "no_data", "text"),
    [
        ("float32", -3.0, b"-3\0"),
        ("float32", 1e10, b"1e+10\0"),
        ("float64", 12345.678, b"12345.678\0"),
        ("int16", -500, b"-500\0"),
        ("uint16", 65535, b"65535\0"),
        ("int32", 2_000_000_000, b"2000000000\0"),
    ],
)
def test_what_a_file_says_is_no_data_is_black(dtype, no_data, text):
    values = (GREY.astype(np.int64) * 4).astype(dtype)
    values[3:6] = no_data
    right = np.rint(GREY3 * (1020 / 1023 if not dtype.startswith("float") else 1))
    right[3:6] = 0
    assert mean_difference(tiff(values, tags={42113: (2, tuple(text))}), right) < 1


@pytest.mark.parametrize("text", [b"nan\0", b"\0", b"none\0", b"1e999\0", b"-1\0", b"\xff\0"])
def test_a_no_data_value_that_no_sample_has_does_not_matter(text):
    assert mean_difference(tiff(GREY.astype(np.uint16) * 257, tags={42113: (2, tuple(text))}), GREY3) < 0.6


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("int16", -1000, 3000), ("int32", -100_000, 100_000), ("uint32", 5_000, 4_000_000_000), ("float32", -5, 5)],
)
def test_of_all_other_values_the_smallest_is_black_and_the_largest_white(dtype, low, high):
    values = (low + GREY / 255 * (high - low)).astype(dtype)
    assert mean_difference(tiff(values), GREY3) < 1


def test_floats_from_0_to_1_are_not_stretched():
    assert (
        mean_difference(tiff((100 + GREY / 255 * 100).astype(np.float32) / 255), np.rint(100 + GREY3 / 255 * 100)) < 0.6
    )


@pytest.mark.parametrize("value", [0, 1, 700])
@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32"])
def test_an_image_of_one_value_is_read(dtype, value):
    assert len(np.unique(read_picture(tiff(np.full((8, 8), value, dtype))))) == 1


def test_an_image_without_any_value_is_black():
    assert not read_picture(tiff(np.full((8, 8), np.nan, np.float32))).any()


@pytest.mark.parametrize("write", [png, tiff], ids=["PNG", "TIFF"])
def test_a_range_that_is_said_counts(write):
    values = GREY.astype(np.uint16) * 2 + 1000
    assert mean_difference(write(values), GREY3, ValueRange(1000, 1510)) < 0.6
    pixels = read_picture(write(values), ValueRange(1100, 1200))
    assert pixels[values <= 1100].max() == 0
    assert pixels[values >= 1200].min() == 255
    if write is tiff:
        assert mean_difference(write(values.astype(np.float32)), GREY3, ValueRange(1000, 1510)) < 0.6


def test_frames_of_a_sequence_look_alike_with_a_range():
    bright, dark = GREY.astype(np.uint16) * 16, GREY.astype(np.uint16) * 2
    said = ValueRange(0, 4095)
    assert abs(read_picture(png(bright), said).mean() / read_picture(png(dark), said).mean() - 8) < 0.3


@pytest.mark.parametrize("said", [(5, 5), (6, 5), (float("nan"), 1), (0, float("inf")), (float("-inf"), 0)])
def test_a_range_without_an_inside_is_refused(said):
    with pytest.raises(RangeError):
        read_picture(png(GREY.astype(np.uint16) * 257), ValueRange(*said))


@pytest.mark.parametrize(
    "data",
    [png(GREY), tiff(GREY), tiff(GREY, planar=True), tiff(GREY // 16, bits=4), saved(RGB, "JPEG"), saved(RGB, "WEBP"),
     saved(RGB, "BMP"), saved(GREY, "GIF"), saved(RGB, "AVIF")],
    ids=["PNG", "TIFF", "planar TIFF", "TIFF of 4 bits", "JPEG", "WebP", "BMP", "GIF", "AVIF"],
)  # fmt: skip
def test_a_range_for_8_bits_is_refused(data):
    with pytest.raises(RangeError, match="range"):
        read_picture(data, ValueRange(0, 100))
