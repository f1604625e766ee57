"""Small Itrax scans: raw spectra and the files beside them."""

COUNTS = [0, 3, 12, 250, 31, 8, 2, 0, 1, 5, 90, 7]
HEADER = {
    "Date:": ("22-Sep-20", ""),
    "Time:": ("8:08 PM", ""),
    "Sample name:": ("222", ""),
    "Section name:": ("section", ""),
    "Position": ("43.540018", "mm"),
    "E0": ("0.000000", "keV"),
    "E1": ("1.000000", "keV/channel"),
    "Tube anode:": ("Mo", ""),
    "Tube voltage:": ("30", "kV"),
    "Tube current:": ("28", "mA"),
    "comments": ("in position", ""),
    "number_mca_channels": ("12.000000", "no:"),
    "livetime": ("13.480499", "seconds"),
    "runtime": ("15.000049", "seconds"),
    "events_in_run": ("410", "seconds"),
    "channel": ("content", ""),
}
RESULTS_COLUMNS = ["filename", "position (mm)", "sample surface", "validity", "E-gain", "E-offset", "cps", "MSE", "Ca"]
DOCUMENT = {
    "Year": ("Month", "Day", "Time"),
    "Voltage": ("55", "kV", ""),
    "XRF": ("ON", "", ""),
    "XRF exp. time": ("15", "seconds", ""),
    "Start coordinate": ("31.5", "Stop coordinate", "131.5"),
    "XRF voltage and current": ("30", "  ", "28"),
    "Tube": ("Mo", "", ""),
}


def itrax_spe(counts=COUNTS, decimals=3, first_channel=1, **changes) -> bytes:
    """A spectrum: records end with CR, the header's line with LF (CRLF after the first channel) and the rest so too.

    `changes` replace values of the header, with `_` for a space in the key; `None` leaves the record out.
    """
    records = ""
    for key, (value, unit) in HEADER.items():
        value = changes.get(key.removesuffix(":").replace(" ", "_"), value)
        if value is not None:
            records += f"{key}\t{value}\t{unit}\t\r"
    rows = [f"{i:.{decimals}f}\t{count:.{decimals}f}\r\n" for i, count in enumerate(counts, first_channel)]
    return (records + "".join(rows)).encode("latin-1")


def results(rows, section="GC-07_S1", folder="XRF data") -> bytes:
    """A Results file with rows of (file name, position, validity, gain, offset)."""
    lines = [f"C:\\Data\\{section}\\{section}\\{folder}     06-Oct-20  re-evaluated data", "peakarea"]
    lines.append("\t".join([*RESULTS_COLUMNS, ""]))
    for name, position, validity, gain, offset in rows:
        path = f"C:\\Data\\{section}\\{section}\\{folder}\\{name}"
        cells = [
            path,
            f"{position:.2f}",
            "6.38",
            str(validity),
            f"{gain:.6f}",
            f"{offset:.6f}",
            "27",
            "1.26",
            "41",
            "",
        ]
        lines.append("\t".join(cells))
    return ("\n".join(lines) + "\n").encode("latin-1")


def settings(gain=0.0102, offset=-0.0098, tube=2) -> bytes:
    """A `.dfl` file."""
    lines = ["[detector parameters]", f"keV/channel {tube} = {gain:.8f}", f"energy offset {tube} = {offset:.8f}", ""]
    lines += ["[Fit cluster]", f"tube selector = {tube}", "kV = 30", "mA = 28"]
    return "\n".join(lines).encode("latin-1")


def document(core="GC-07", section="GC-07_S1", **changes) -> bytes:
    """The document of a scan; `changes` replace the cells after the first of a line, with `_` for a space."""
    lines = ["Base path:\tSample name:\tSection name\tUser ID", f"C:\\Data\\{section}\t{core}\t{section}\tMC"]
    for key, cells in DOCUMENT.items():
        lines.append("\t".join([key, *changes.get(key.replace(" ", "_"), cells)]))
    lines.insert(3, "2020\t09\t22\t22")
    return ("\n".join(lines) + "\nStart temperature\t26\t\u00b0C\t\n").encode("latin-1")


def examples() -> dict[str, bytes]:
    """A spectrum with all the files beside it; another of an older scanner, whose counts have no decimals."""
    rows = [(f"L{i:06d}.spe", 31.54 + i, 1, 0.010267 + 1e-6 * i, -0.009931) for i in range(14)]
    return {
        "L000012.spe": itrax_spe(),
        "GC-07_S1_Results.txt": results(rows),
        "settings.dfl": settings(),
        "GC-07_S1_document.txt": document(),
        "L000013.spe": itrax_spe(decimals=0, Position="44.54", livetime=None, number_mca_channels="12,000"),
    }
