"""Amptek `.mca` files that a test writes."""

COUNTS = (0, 0, 4, 19, 7, 1, 0, 2)
HEADER = (
    "TAG - live_data",
    "DESCRIPTION - ",
    "GAIN - 3",
    "LIVE_TIME - 100.000000",
    "REAL_TIME - 100.714000",
    "START_TIME - 12/26/2025 08:32:45",
    "SERIAL_NUMBER - 31907",
)
CALIBRATION = ("LABEL - keV", "1 0.020", "3 0.062", "7 0.140")
CONFIGURATION = ("RESC=?;    Reset Configuration", "MCAC=8;    MCA/MCS channels", "HVSE=-135;    HV set")
STATUS = ("Device Type: DP5", "Slow Count: 34", "Dead Time: 2.49%", "Board Temp: 30°C")


def content(
    counts=COUNTS, header=HEADER, calibration=(), configuration=CONFIGURATION, status=STATUS, end="\r\n"
) -> bytes:
    lines = ["<<PMCA SPECTRUM>>", *header] if header else []
    lines += ["<<CALIBRATION>>", *calibration] if calibration else []
    lines += ["<<DATA>>", *map(str, counts), "<<END>>"]
    lines += ["<<DP5 CONFIGURATION>>", *configuration, "<<DP5 CONFIGURATION END>>"] if configuration else []
    lines += ["<<DPP STATUS>>", *status, "<<DPP STATUS END>>"] if status else []
    return (end.join(lines) + end).encode("cp1252")


def examples() -> dict[str, bytes]:
    return {
        "dp5.mca": content(),
        "calibrated.mca": content(calibration=CALIBRATION, end="\n"),
        "decimal_comma.mca": content(calibration=("LABEL - keV", "1 0,02", "7 0,14"), end="\r"),
        "no_header.mca": content(header=(), configuration=(), status=()),
    }
