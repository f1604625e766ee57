"""Olympus spectrum exports that a test writes: the Delta's table and the Vanta's."""

COUNTS = ((0, 0, 1), (1, 4, 0), (20, 9, 33), (5, 0, 2))
"""One row a channel, one column an exposure."""
DELTA = (
    ("TestID", "rock 7", "rock 7", "rock 8"),
    ("ExposureNum", "1", "2", "1"),
    ("Offset", "-0.015974", "-0.015974", "-0.015563"),
    ("Slope", "0.020052", "0.020052", "0.020049"),
    ("Livetime", "19.475700", "19.371300", "12.863600"),
    ("NumData", "4", "4", "4"),
    ("Realtime", "19.983100", "19.967200", "15.064300"),
    ("TubeCurrentSet", "79.5", "83.1", "70.9"),
    ("TubeCurrentMon", "79.6", "83.2", "71.2"),
    ("TubeVoltageSet", "40.0", "15.0", "40.0"),
    ("TubeVoltageMon", "39.957", "15.054", "39.914"),
    ("FilterPosition", "3", "5", "1"),
    ("TimeStamp", "2021-05-01 11:32:56", "2021-05-01 11:33:17", "2021-05-01 11:06:43"),
)
VANTA = (
    ("Date", "2019-09-28", "2019-09-28", "2019-09-28"),
    ("Reading", "#4", "#4", "#5"),
    ("Exposure Number", "1", "2", "1"),
    ("Energy Slope", "0.02", "0.02", "0.02"),
    ("Energy Offset", "0", "0", "0"),
    ("Live Time", "9.5", "9.4", "9.3"),
    ("Tube Voltage (kV)", "40", "10", "40"),
)


def delta(rows=DELTA, counts=COUNTS, separator="\t", end="\r\n", encoding="utf-16") -> bytes:
    table = [*rows, *(("", *map(str, row)) for row in counts)]
    return (end.join(separator.join(row) for row in table) + end).encode(encoding)


def vanta(rows=VANTA, counts=COUNTS) -> bytes:
    table = [("sep=", ""), *rows, *((f"{0.02 * i:g}", *map(str, row)) for i, row in enumerate(counts))]
    return ("\n".join(",".join(row) for row in table) + "\n").encode("utf-8-sig")


def examples() -> dict[str, bytes]:
    decimal_comma = [tuple(cell.replace(".", ",") for cell in row) for row in DELTA]
    return {
        "tabs.csv": delta(),
        "commas.csv": delta(separator=",", end="\n", encoding="utf-8"),
        "semicolons.csv": delta(decimal_comma, separator=";", end="\r", encoding="cp1252"),
        "vanta.csv": vanta(),
    }
