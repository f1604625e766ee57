"""Numbers in instrument files: what counts as one, and how an error names it."""

import time
from pathlib import Path

import numpy as np
import pytest

from dataset_builder import SpectrumFileError
from dataset_builder.readers.checks import numbers, optional_number
from dataset_builder.readers.text import parse_number

PATH = Path("a.spe")


@pytest.mark.parametrize(
    ("text", "value"),
    [("12", 12.0), (" 1,5 ", 1.5), ('"7."', 7.0), (".5", 0.5), ("-1.5e-3", -0.0015), ("+2E2", 200.0)],
)
def test_parse_number(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize("text", ["", "x", "nan", "inf", "1_000", "1.2.3", "1 2", "0x10", "1e999", "9" * 400, "."])
def test_parse_number_gives_none_for_anything_else(text):
    assert parse_number(text) is None


def test_parse_number_takes_no_longer_than_the_text_is_long():
    start = time.process_time()
    assert parse_number("1" * 200_000 + "x") is None  # minutes, if every split of the digits were tried
    assert time.process_time() - start < 2


def test_numbers_are_those_of_parse_number():
    texts = ["0.000", "12", "1e3", "-4."]
    np.testing.assert_array_equal(numbers(PATH, None, texts, "channel"), [parse_number(text) for text in texts])
    np.testing.assert_array_equal(numbers(PATH, None, ["1,5", *texts], "channel"), [1.5, 0, 12, 1000, -4])
    assert numbers(PATH, None, [], "channel").shape == (0,)


@pytest.mark.parametrize("wrong", ["x", "", "1-2", "1_0", "nan"])
def test_numbers_names_the_one_that_is_none(wrong):
    with pytest.raises(SpectrumFileError, match=f"^a.spe, counts: channel 2 must be a number; found '{wrong}'"):
        numbers(PATH, "counts", ["1", "2", wrong, "4"], "channel")


def test_optional_number_and_its_limits():
    assert optional_number(PATH, None, "10,5", "kV", 0.0, 200.0) == 10.5
    assert optional_number(PATH, None, " ", "kV", 0.0, 200.0) is None
    assert optional_number(PATH, None, "nan", "kV") is None
    with pytest.raises(SpectrumFileError, match="header: kV must lie from 0 to 200; found '201'"):
        optional_number(PATH, "header", "201", "kV", 0.0, 200.0)
