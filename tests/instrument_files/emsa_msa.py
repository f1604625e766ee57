"""EMSA/MAS `.msa` files that a test writes, in the dialects of Bruker, PIXL and the Horiba XGT-7200."""

BRUKER_COUNTS = (0, 5, 9, 120, 33, 8, 2, 1, 0, 0)
PIXL_COUNTS_A = (0, 2, 31, 80, 12, 5)
PIXL_COUNTS_B = (1, 0, 44, 61, 17, 6)
HORIBA_COUNTS = (0, 3, 18, 52, 9)

BRUKER = {
    "#FORMAT      ": "EMSA/MAS SPECTRAL DATA FILE",
    "#VERSION     ": "1.0",
    "#TITLE       ": "steel 4",
    "#NPOINTS     ": "10.0",
    "#NCOLUMNS    ": "4.0",
    "#XUNITS      ": "keV",
    "#YUNITS      ": "Counts",
    "#DATATYPE    ": "Y",
    "#XPERCHAN    ": "0.0100",
    "#OFFSET      ": "-0.0255",
    "#SIGNALTYPE  ": "EDS",
    "#CHOFFSET    ": "3",
    "#LIVETIME  -s": "119.973",
    "#REALTIME  -s": "131.887",
    "#TACTLYR  -cm": "0.045",
    "##MNFWHM -keV": "0.1437976",
}
PIXL = {
    "#FORMAT      ": "EMSA/MAS spectral data file",
    "#VERSION     ": "TC202v2.0 PIXL",
    "#TITLE       ": "N/A",
    "#OWNER       ": "PIXL Flight Model       (which instrument took the data.)",
    "#NPOINTS     ": "6     Number of data points (zero for configuration only files)",
    "#NCOLUMNS    ": "2     Number of data columns",
    "#XUNITS      ": "eV",
    "#YUNITS      ": "COUNTS",
    "#DATATYPE    ": "YY",
    "#XPERCHAN    ": "7.9226, 7.9273   eV per channel (separate by commas if more than one detector)",
    "#OFFSET      ": "-11.8, -13.2         eV of first channel",
    "#SIGNALTYPE  ": "XRF",
    "#XPOSITION   ": "-0.120623",
    "#YPOSITION   ": "0.131043",
    "#ZPOSITION   ": "0.251170",
    "##PMC        ": "93",
    "##EVENTS     ": "130, 129",
    "#LIVETIME    ": "14.0815, 14.0743   seconds",
    "#REALTIME    ": "15, 15   seconds",
}
HORIBA = {
    "#FORMAT      ": "EMSA/MAS Spectral Data File",
    "#TITLE       ": "Spectrum 5",
    "#OWNER       ": "XGT7200",
    "#NPOINTS     ": "5.",
    "#NCOLUMNS    ": "1.",
    "#XUNITS      ": "keV",
    "#YUNITS      ": "counts",
    "#DATATYPE    ": "XY",
    "#XPERCHAN    ": "0.0100000",
    "#OFFSET      ": "-0.020000",
    "#CHOFFSET    ": "2.00000",
    "#LIVETIME    ": "30.000000",
    "#BEAMKV      ": "30.0000",
    "#PROBECUR    ": "1.00000E+006",
    "#ELEVANGLE   ": "45.0",
    "#XPOSITION mm": "1.5000",
    "#YPOSITION mm": "-2.0000",
    "##OXINSTLABEL": "6, 0.277, C",
}


def content(header, rows, end="\n", spectrum="#SPECTRUM    : ", last="#ENDOFDATA   : ", **changes) -> bytes:
    """One file; `changes` are header values by bare keyword, new keywords are added, `None` leaves the line out."""
    lines = []
    for key, value in header.items():
        value = changes.pop(key.lstrip("#").split(" ")[0], value)
        lines += [] if value is None else [f"{key}: {value}"]
    lines += [f"#{keyword}: {value}" for keyword, value in changes.items()]
    return (end.join([*lines, spectrum, *rows, last]) + end).encode("cp1252")


def bruker(counts=BRUKER_COUNTS, **changes) -> bytes:
    """Four values to a line, each followed by a comma."""
    rows = ["".join(f"{count:12.1f}," for count in counts[i : i + 4]) for i in range(0, len(counts), 4)]
    return content(BRUKER, rows, **changes)


def pixl(counts_a=PIXL_COUNTS_A, counts_b=PIXL_COUNTS_B, **changes) -> bytes:
    """Two detectors, with prose behind the values."""
    rows = [f"{a}, {b}" for a, b in zip(counts_a, counts_b)]
    spectrum, last = "#SPECTRUM    : start of spectrum data", "#ENDOFDATA     end of spectrum data"
    return content(PIXL, rows, end="\r\n", spectrum=spectrum, last=last, **changes)


def pixl_one_detector(**changes) -> bytes:
    """One detector of a file without energy scale."""
    changes = {"NPOINTS": "6 ", "NCOLUMNS": "1 ", "DATATYPE": "Y ", "XPERCHAN": None, "OFFSET": None} | changes
    changes |= {"TITLE": "Normal_A 2019-152T14:55:32  ", "EVENTS": "130    ", "LIVETIME": "9.87 ", "REALTIME": "10.0 "}
    return content(PIXL, [f"{a}       " for a in PIXL_COUNTS_A], spectrum="#SPECTRUM", DETECTOR_ID="A ", **changes)


def horiba(counts=HORIBA_COUNTS, energies=None, decimal=".", **changes) -> bytes:
    """Energies and counts, said to be one column."""
    energies = energies or [-0.02 + 0.01 * channel for channel in range(len(counts))]
    rows = [f"{energy:.5f}, {count}." for energy, count in zip(energies, counts)]
    return content(HORIBA, rows, **changes).replace(b".", decimal.encode())


def examples() -> dict[str, bytes]:
    return {
        "bruker.msa": bruker(),
        "pixl.msa": pixl(),
        "pixl_one_detector.msa": pixl_one_detector(),
        "horiba.txt": horiba(),
        "decimal_comma.msa": horiba(decimal=","),
        "carriage_returns.msa": bruker(end="\r"),
    }
