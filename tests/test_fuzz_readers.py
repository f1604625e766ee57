"""Damaged input to every reader: 10,000 files a format, cut off anywhere or mutated, and only `SpectrumFileError` may
escape, soon and without filling the memory.

Seeds are the `examples()` of `tests/instrument_files`; a module's files lie in one folder, so that side files are
damaged too. Hypothesis draws seeds of blocks of mutations, because drawing each mutation would take minutes. A failure
names the call that makes the file again.
"""

import os
import pkgutil
import random
import re
import tempfile
import time
import tracemalloc
import warnings
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import instrument_files
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from instrument_files.max_tree import write_max_tree

from dataset_builder import SpectrumFileError
from dataset_builder.readers import FORMATS, has_channel_columns, recognise_format
from dataset_builder.readers.checks import MAX_CHANNELS
from dataset_builder.readers.max_tree import read_max_tree

NUM_TRUNCATED, NUM_BLOCKS, BLOCK = 1000, 90, 100  # 10,000 files a format
MAX_SECONDS = 5.0  # of processor time, a hundred times the usual; the first FITS file also imports astropy
MAX_BYTES, MEASURED_EVERY = 2**26, 50
NUMBERS = (b"0", b"-1", b"1e308", b"1e-320", b"nan", b"inf", b"99999999999", b"2147483648", b"0.5", b"1,5", b"1_000")
LENGTHS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", b"\x01\0\0\0", b"\0\0\x01\0")
ENTITIES = b'<!DOCTYPE x [<!ENTITY a "9999999999">' + b"".join(
    b'<!ENTITY %c "%s">' % (name, b"&%c;" % (name - 1) * 10) for name in b"bcdefghij"
) + b"]>"  # fmt: skip


def cut(content, rng):
    return content[: rng.randrange(len(content) + 1)]


def flip(content, rng):
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_byte(content, rng):
    at = rng.randrange(len(content))
    return content[:at] + bytes([rng.choice((0, 9, 10, 13, 32, 34, 44, 45, 58, 60, 127, 255))]) + content[at + 1 :]


def insert(content, rng):
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice((1, 2, 7, 100))) + content[at:]


def delete(content, rng):
    at = rng.randrange(len(content))
    return content[:at] + content[at + rng.choice((1, 2, 4, 50)) :]


def set_length(content, rng):
    """Four bytes that may be a length become a lie, such as 2 GB."""
    at = rng.randrange(len(content))
    return content[:at] + rng.choice(LENGTHS) + content[at + 4 :]


def replace_number(content, rng):
    numbers = list(re.finditer(rb"\d[\d.,]*", content))
    if not numbers:
        return content
    number = rng.choice(numbers)
    return content[: number.start()] + rng.choice(NUMBERS) + content[number.end() :]


def _lines(content):
    return re.split(rb"(?<=[\r\n])(?![\r\n])", content)


def duplicate_line(content, rng):
    lines = _lines(content)
    at = rng.randrange(len(lines))
    return b"".join(lines[:at] + lines[at : at + 1] * rng.choice((2, 2, 50)) + lines[at + 1 :])


def swap_lines(content, rng):
    lines = _lines(content)
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[first], lines[second] = lines[second], lines[first]
    return b"".join(lines)


def delete_line(content, rng):
    lines = _lines(content)
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


def carriage_returns(content, rng):
    return content.replace(b"\r\n", b"\n").replace(b"\n", b"\r")


def utf16(content, rng):
    return content.decode("latin-1").encode(rng.choice(("utf-16", "utf-16-le")))


def decimal_commas(content, rng):
    return re.sub(rb"(?<=\d)\.(?=\d)", b",", content)


def entities(content, rng):
    start = content.find(b"?>") + 2 if b"?>" in content[:200] else 0
    return content[:start] + ENTITIES + re.sub(rb"(?<=>)\d+", b"&j;", content[start:], count=1)


def quote(content, rng):
    at = rng.randrange(len(content) + 1)
    return content[:at] + b'"' + content[at:]


MUTATIONS = [
    *(cut, flip, flip, set_byte, set_byte, insert, delete, set_length, replace_number, replace_number, replace_number),
    *(duplicate_line, swap_lines, delete_line, carriage_returns, utf16, decimal_commas, entities, quote),
]


@dataclass(frozen=True)
class Seed:
    """An example file to damage, and the one to read: itself, or the spectrum that it lies beside."""

    module: str
    damaged: str
    read: str

    @property
    def content(self) -> bytes:
        return contents(self.module)[self.damaged]


@cache
def contents(module: str) -> dict[str, bytes]:
    """Content by name of the example files of a module."""
    return getattr(import_module(f"instrument_files.{module}"), "examples", dict)()


def mutated(content: bytes, seed: int, number: int) -> bytes:
    """The file of this number in the block of this seed."""
    rng = random.Random(1000 * seed + number)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(MUTATIONS)(content, rng) or b"\0"
    return content


@pytest.fixture(scope="module")
def root():
    """A folder in memory where there is one: files that are rewritten thousands of times wait for a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def seeds(root):
    """Seeds by format; every module's examples lie in a folder of its name."""
    by_format = {file_format.name: [] for file_format in FORMATS}
    for module in sorted(module.name for module in pkgutil.iter_modules(instrument_files.__path__)):
        (root / module).mkdir()
        for name, content in contents(module).items():
            (root / module / name).write_bytes(content)
        first = None
        for name in contents(module):
            file_format = recognise_format(root / module / name)
            if file_format is not None and (not file_format.is_table or has_channel_columns(root / module / name)):
                first = first or (file_format.name, name)
                by_format[file_format.name].append(Seed(module, name, name))
            else:
                by_format[first[0]].append(Seed(module, name, first[1]))
    return by_format


def check(path, content, read, how, measure_memory=False):
    """Read what lies at the path damaged; whatever else than a `SpectrumFileError` happens is a failure."""
    path.write_bytes(content)
    shown = f"{how}\n{content[:3000]!r}"
    start = time.process_time()
    if measure_memory:
        tracemalloc.start()
    try:
        for spectrum in read():
            assert 0 < spectrum.counts.size <= MAX_CHANNELS
            assert np.isfinite(spectrum.counts).all() and spectrum.counts.min() >= 0
    except SpectrumFileError as error:
        assert "\n" not in str(error), f"not one sentence: {error}\n{shown}"
    except Exception as error:
        pytest.fail(f"{type(error).__name__}: {error}\n{shown}")
    seconds = time.process_time() - start
    if measure_memory:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MAX_BYTES, f"{peak / 2**20:.0f} MiB for {shown}"
    assert seconds < MAX_SECONDS, f"{seconds:.1f} s for {shown}"


def damage(files):
    """Check 10,000 damaged versions of the files, a list of names, paths, contents and functions that read them."""
    for name, path, content, read in files:
        step = max(1, len(files) * len(content) // NUM_TRUNCATED)
        for length in range(0, len(content), step):
            check(path, content[:length], read, f"{name}: content[:{length}]", measure_memory=length == 0)
        path.write_bytes(content)

    @settings(
        max_examples=NUM_BLOCKS,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(block=st.integers(0, 2**32 - 1))
    def blocks(block):
        for number in range(BLOCK):
            name, path, content, read = files[number % len(files)]
            how = f"{name}: mutated(content, {block}, {number})"
            check(path, mutated(content, block, number), read, how, number % MEASURED_EVERY == 0)
            path.write_bytes(content)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning on the terminal is no way to say what is wrong with a file
        blocks()


@pytest.mark.parametrize("file_format", FORMATS, ids=lambda file_format: file_format.name)
def test_damaged_files_are_refused(file_format, seeds, root):
    assert seeds[file_format.name], f"write tests/instrument_files/ examples of {file_format.name}"

    def reading(seed):
        def read():
            recognise_format(root / seed.module / seed.damaged)
            return file_format.read(root / seed.module / seed.read, lambda error: None)

        return read

    damage(
        [
            (f"{seed.module}, {seed.damaged}", root / seed.module / seed.damaged, seed.content, reading(seed))
            for seed in seeds[file_format.name]
        ]
    )


def test_damaged_max_trees_are_refused(root):
    tree = root / "CaCO3%"
    write_max_tree(tree, targets=[1.5, 2.5, 3.5])
    (tree / "val.csv").unlink()
    info = tree / "info.csv"
    info.write_bytes(b"".join(info.read_bytes().splitlines(keepends=True)[:2]))

    def read():
        return read_max_tree(tree, lambda error: None)

    files = [info, tree / "spe" / "0.csv", tree / "target" / "0.csv"]
    damage([(path.name, path, path.read_bytes(), read) for path in files])
