"""Panalytical `.mp2` files that a test writes: eight channels of 8.02 eV from -8.2 eV."""

HEADER = {
    "SampleIdent": "clay 7",
    "TimeMeasured": "16/08/2017 12:11:47",
    "Instrument": "Epsilon1",
    "TubeAnode": "Ag 50",
    "Detector": "SDD5",
    "kV": "12.000",
    "uA": "416",
    "Filter": "Al 50",
    "Medium": "Air",
    "LiveTime": "14.713782500000",
    "TrueTime": "18.000489000000",
    "OutputCounts": "43",
    "NrOfChannels": "8",
}
COUNTS = (0, 0, 7, 3, 21, 8, 4, 0)
ENERGIES = tuple(-0.0082 + 0.00802 * channel for channel in range(8))


def content(counts=COUNTS, energies=ENERGIES, end="\r\n", decimal=".", columns=None, **changes) -> bytes:
    """One file; `changes` are header values by key, `None` leaves the line out."""
    header = HEADER | changes
    lines = [f"{key:<26}: {value}" for key, value in header.items() if value is not None]
    # A key that comes twice, as in genuine files.
    lines += ["ROI-Fit (chan)            : 2", "ROI-Fit (chan)            : 6"]
    rows = [(f"{energy:.7G}", str(count), "0.5", "1.25") for energy, count in zip(energies, counts)]
    table = ["\t".join(row) for row in [columns or ("Energy (keV)", "Counts", "Background", "Fit"), *rows]]
    return (end.join(lines + table).replace(".", decimal) + end).encode("cp1252")


def examples() -> dict[str, bytes]:
    return {
        "epsilon.mp2": content(),
        "decimal_comma.mp2": content(decimal=",", end="\r", SampleIdent="Löß 3"),
        "helium.mp2": content(end="\n", Medium="Helium", Filter="None"),
    }
