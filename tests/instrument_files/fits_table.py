"""FITS files with spectra in binary tables that a test writes; blocks of 2880 bytes make the least of them 8640."""

import numpy as np

BLOCK = 2880
FORMAT_OF_DTYPE = {">i2": "I", ">i4": "J", ">f4": "E", ">f8": "D"}  # FITS is big-endian


def card(keyword: str, value, comment: str = "") -> bytes:
    """One header card of 80 characters."""
    if isinstance(value, bool):
        text = f"{'T' if value else 'F':>20}"
    elif isinstance(value, str):
        text = f"'{value:<8}'"
    else:
        text = f"{value:>20}"
    return f"{keyword:<8}= {text}{' / ' + comment if comment else ''}".ljust(80).encode("ascii")


def blocks(content: bytes, fill: bytes) -> bytes:
    return content + fill * (-len(content) % BLOCK)


def primary() -> bytes:
    cards = [card("SIMPLE", True), card("BITPIX", 8), card("NAXIS", 0), card("EXTEND", True), b"END".ljust(80)]
    return blocks(b"".join(cards), b" ")


def table(name: str, columns: dict[str, np.ndarray], *cards: bytes) -> bytes:
    """A binary table; the arrays' first axis is the row, and a second one makes vectors."""
    arrays = {column: np.asarray(values, values.dtype.newbyteorder(">")) for column, values in columns.items()}
    first = next(iter(arrays.values()))
    rows = np.empty(len(first), [(column, values.dtype, values.shape[1:]) for column, values in arrays.items()])
    for column, values in arrays.items():
        rows[column] = values
    header = [card("XTENSION", "BINTABLE"), card("BITPIX", 8), card("NAXIS", 2), card("NAXIS1", rows.itemsize)]
    header += [card("NAXIS2", rows.size), card("PCOUNT", 0), card("GCOUNT", 1), card("TFIELDS", len(arrays))]
    for number, (column, values) in enumerate(arrays.items(), start=1):
        code = f"{values[0].size}{FORMAT_OF_DTYPE[values.dtype.str]}"
        header += [card(f"TTYPE{number}", column), card(f"TFORM{number}", code)]
    header += [card("EXTNAME", name), *cards, b"END".ljust(80)]
    return blocks(b"".join(header), b" ") + blocks(rows.tobytes(), b"\0")


COUNTS = np.array([3, 0, 4, 28, 52, 7])
CHANNEL = np.arange(6).astype(">i2")
CARDS = (
    card("TELESCOP", "ORBITER"),
    card("INSTRUME", "SDD-1"),
    card("FILTER", "none"),
    card("EXPOSURE", 1780),
    card("DETCHANS", 6),
    card("GAIN", 27.0, "eV/channel"),
)


def type_one(*further: bytes, cards=CARDS, counts=COUNTS, channel=CHANNEL) -> bytes:
    """One spectrum: a row a channel."""
    return (
        primary() + table("SPECTRUM", {"CHANNEL": channel, "COUNTS": counts.astype(">f8")}, *cards) + b"".join(further)
    )


def energy_bounds(lower_kev) -> bytes:
    lower_kev = np.asarray(lower_kev, ">f4")
    upper_kev = np.append(lower_kev[1:], 2 * lower_kev[-1] - lower_kev[-2]).astype(">f4")
    return table("EBOUNDS", {"CHANNEL": CHANNEL, "E_MIN": lower_kev, "E_MAX": upper_kev})


def examples() -> dict[str, bytes]:
    rates = table(
        "SPECTRUM",
        {"SPEC_NUM": np.array([1, 2], ">i4"), "EXPOSURE": np.array([10, 20], ">f4"), "RATE": np.ones((2, 6), ">f4")},
    )
    return {
        "type_one.fits": type_one(),
        "type_two_rates.fits": primary() + rates,
        "energy_bounds.pha": type_one(energy_bounds(0.1 + 0.027 * np.arange(6))),
    }
