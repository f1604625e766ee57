"""Bruker `.pdz` files that a test writes, with few channels."""

import struct

import numpy as np

COUNTS = (0, 3, 40, 900, 57, 0)


def text(value: str) -> bytes:
    return struct.pack("<I", len(value)) + value.encode("utf-16-le")


def record(kind: int, *parts: bytes) -> bytes:
    payload = b"".join(parts)
    return struct.pack("<HI", kind, len(payload)) + payload


def spectrum(
    counts=COUNTS, phase=0, channels=None, valid=1000, kv=40.0, ua=11.3, live=2.0, ev=20.0, start=-0.5,
    filters=(22, 25, 13, 300, 0, 0),
) -> bytes:  # fmt: skip
    """The record of one phase."""
    return record(
        3,
        struct.pack("<5I", phase, 1100, valid, 0, 7),
        struct.pack("<7f", 3.0, 2.5, 0.3, 0.2, live, kv, ua),
        struct.pack("<6hh", *filters, 1),
        struct.pack("<ffif", -27.0, 80.5, -1, ev),
        struct.pack("<hf8Hf", 2, start, 2024, 2, 4, 29, 8, 5, 9, 123, 1013.0),
        struct.pack("<Hhh", len(counts) if channels is None else channels, 31, 0),
        text("Exploration_40"),
        struct.pack("<h", 1),
        np.asarray(counts, "<u4").tobytes(),
    )


FILE_HEADER = record(25, "pdz25".encode("utf-16-le"), struct.pack("<I", 1))
INSTRUMENT = record(
    1,
    text("800N0001"),
    text("SG6-0001"),
    struct.pack("<4Bh", 45, 45, 45, 65, 125),
    text("SDD"),
    text("NSI"),
    b"\x05\x05",
    text("Fixed"),
    struct.pack("<I", 1) + struct.pack("<H", 1) + text("2.7"),
)


def summary(num_phases: int) -> bytes:
    """The record of the whole assay."""
    counters = struct.pack("<5I6f", num_phases, 1100, 1000, 0, 7, 3.0, 2.5, 0.3, 0.2, 2.0, 3.0)
    return record(2, counters, text("GeoExploration"), text(""), text("Kim"))


RESULT = record(6, text("SiO2"), struct.pack("<IB5f2h", 14, 1, 75.25, 75.25, 0.39, 0, 0, 0, 0))
USER_FIELDS = record(9, struct.pack("<h", 2), text("Operator"), text("Kim"), text("Sample ID"), text("rock 7"))


def version_25(*spectra: bytes) -> bytes:
    """A whole file; a record of images stands for the types that are not read."""
    return b"".join(
        [
            FILE_HEADER,
            INSTRUMENT,
            summary(len(spectra)),
            *spectra,
            RESULT,
            USER_FIELDS,
            record(137, struct.pack("<i", 0)),
        ]
    )


def version_24(counts=COUNTS, channels=None, ev=20.085) -> bytes:
    content = bytearray(358)
    struct.pack_into("<HIH", content, 0, 257, 23, len(counts) if channels is None else channels)
    struct.pack_into("<d", content, 50, ev)
    struct.pack_into("<8h", content, 114, 13, 300, 22, 25, 0, 0, 0, 0)
    struct.pack_into("<8H", content, 146, 2012, 11, 1, 5, 16, 20, 30, 0)
    struct.pack_into("<2f", content, 162, 15.0, 25.0)
    struct.pack_into("<4f", content, 342, 61.0, 2.0, 0.5, 58.5)
    return bytes(content) + np.asarray(counts, "<u4").tobytes()


def examples() -> dict[str, bytes]:
    second_phase = spectrum((0, 5, 1, 900, 40, 6), phase=1, kv=15.0, filters=(0,) * 6)
    return {
        "one_phase.pdz": version_25(spectrum()),
        "two_phases.pdz": version_25(spectrum(), second_phase),
        "version_24.pdz": version_24(),
    }
