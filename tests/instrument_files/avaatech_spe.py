"""Small Avaatech `.spe` files."""

COUNTS = [0, 3, 12, 250, 31, 8, 2, 0, 1, 5, 90, 7]
NEW_NAME = "GC-07!2!0910!1!03-14-2019!101112!10!10!0.15!910.0!12.5!No-Filter!10.0!12.0.spe"
OLD_NAME = "GC-07_2    910.0mm  10s  10kV 150uA No-Filter.spe"
HEADER = {
    "X_Position": "910.0",
    "Y_Position": "12.5",
    "Slit_DC": "10.0",
    "Slit_CC": "12.0",
    "TotalCPS": "40",
    "SPEC_ID": "routine",
    "USER_ID": None,
    "ACC_VOLT": "10",
    "TUBE_CUR": "150",
    "MEAS_TIM": "10 11",
    "DATE_MEA": "03-14-2019 10:11:12",
}
"""`None` writes the `$NAME:` line alone, as the scanner does for a value that is missing."""


def avaatech_spe(counts=COUNTS, end="\n", per_line=1, channels=None, after="", **changes) -> bytes:
    """A file with the header fields of `HEADER`, some of them changed."""
    lines = []
    for name, value in (HEADER | changes).items():
        lines += [f"${name}:"] if value is None else [f"${name}:", value]
    lines += ["$DATA:", channels or f"0 {len(counts) - 1}"]
    lines += [" ".join(map(str, counts[i : i + per_line])) for i in range(0, len(counts), per_line)]
    return (end.join(lines) + end + after).encode("latin-1")


def examples() -> dict[str, bytes]:
    """The newer name, the older one with CRLF and decimal commas, and one that says nothing, with CR."""
    return {
        NEW_NAME: avaatech_spe(),
        OLD_NAME: avaatech_spe(end="\r\n", X_Position="910,0", Y_Position="12,5", TUBE_CUR="0,15", MEAS_TIM="10 10,5"),
        "renamed.spe": avaatech_spe(end="\r", per_line=5, Core_ID="GC-07", after="$MCA_CAL:\r2\r-0.01 0.02 keV\r"),
    }
