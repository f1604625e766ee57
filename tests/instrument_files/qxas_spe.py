"""Small QXAS (IAEA) `.spe` files."""

COUNTS = [0, 3, 12, 250, 31, 8, 2, 0, 1, 5, 90, 7]


def qxas_spe(counts=COUNTS, sections=None, end="\n", first=0, last=None) -> bytes:
    """A file with `$SPEC_ID:`, `$DATA:` and then the sections given; `DATA` among them changes the order."""
    sections = sections if sections and "DATA" in sections else {"SPEC_ID": "", "DATA": None} | (sections or {})
    text = ""
    for name, value in sections.items():
        if name == "DATA":
            value = f"{first:8d} {len(counts) - 1 + first if last is None else last:11d}"
            for i in range(0, len(counts), 8):
                value += "\n" + "".join(f"{count:9d}." for count in counts[i : i + 8])
        text += f"${name}:\n{value}\n"
    return text.replace("\n", end).encode("latin-1")


CALIBRATED = {
    "SPEC_ID": "steel, 40 kV",
    "SPEC_REM": "first remark\nsecond remark",
    "MEAS_TIM": "98 100",
    "DATA": None,
    "ENER_FIT": "-0.01 0.02",
    "MCA_CAL": "3\n-10.5 20.5 0.0 eV",
}


def examples() -> dict[str, bytes]:
    """Without and with header and calibration."""
    return {
        "plain.spe": qxas_spe(),
        "calibrated.spe": qxas_spe(sections=CALIBRATED, end="\r\n"),
        "calibrated_cr.spe": qxas_spe(sections=CALIBRATED, end="\r", first=1),
    }
