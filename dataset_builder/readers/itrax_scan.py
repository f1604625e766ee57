"""Itrax scans: what the files beside a raw spectrum say of it, above all its energy calibration.

The scanner puts a section's spectra (`L000000.spe`, ...) into a folder `XRF data`, and beside that folder, or beside
the spectra where somebody moved them, lie three kinds of files that are used here:

- Results (`*result*.txt`): a row for each spectrum, tied to it by file name and position, with the energy calibration
  that was fitted for that point;
- settings (`*.dfl`): one calibration for the whole scan, used where Results has no row;
- the document (`*document*.txt`): names of core and section, used where its tube and coordinates are the spectrum's.

Both calibrations count the channels from 0, although the spectra number them from 1: in a genuine scan that puts the
Ca and Fe K alpha peaks within 2 eV of their energies; counting from 1 puts them 9 to 11 eV, one channel, too high.
"""

import re
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from ..spectrum import SpectrumFileError
from .energy_scale import MAX_CHANNEL_WIDTH_KEV, MAX_ENERGY_KEV, MIN_CHANNEL_WIDTH_KEV
from .text import parse_number, read_text, split_lines

MAX_SIDE_FILE_BYTES = 32 * 2**20
SPECTRA_FOLDER = "xrf data"
SCANNER_FILE_NAME = re.compile(r"l\d+\.spe")
POSITION_TOLERANCE_MM = 0.05


class ScanPoint(NamedTuple):
    """What the files beside a spectrum say of it; `calibration` names the file or says why there is no calibration."""

    gain_kev: float | None
    offset_kev: float | None
    calibration: str
    core: str | None
    section: str | None
    validity: str | None
    mse: str | None


class Calibration(NamedTuple):
    """Channel width and energy of channel 0 in keV, and where they are from."""

    gain_kev: float
    offset_kev: float
    origin: str


class ResultsRow(NamedTuple):
    """A point of a Results file."""

    position_mm: float | None
    calibration: Calibration | None
    validity: str | None
    mse: str | None
    section: str | None


class Results(NamedTuple):
    """The rows of a Results file by file name in lower case; and by position, where one row only has it."""

    by_name: dict[str, ResultsRow]
    by_position: dict[str, ResultsRow]


class ScanDocument(NamedTuple):
    """What is used of a scan's document."""

    core: str | None
    section: str | None
    anode: str | None
    tube_kv: float | None
    tube_ma: float | None
    start_mm: float | None
    stop_mm: float | None


def find_scan_point(
    path: Path,
    num_channels: int,
    position_mm: float | None,
    anode: str | None,
    tube_kv: float | None,
    tube_ma: float | None,
) -> ScanPoint:
    """Look a spectrum up in the files beside it; files that are damaged or of another scan are passed over."""
    files = _side_files(path)
    rows = [row for row in (_row_of(path, file, position_mm) for file in files["results"]) if row]
    found = [row.calibration for row in rows if row.calibration]
    found = found or [
        settings for settings in (_parsed(_parse_settings, file) for file in files["settings"]) if settings
    ]
    document = _document_of(files["document"], position_mm, anode, tube_kv, tube_ma)
    return ScanPoint(
        *_agreed(found, num_channels),
        core=document.core if document else next((row.section for row in rows if row.section), None),
        section=document.section if document else None,
        validity=rows[0].validity if rows else None,
        mse=rows[0].mse if rows else None,
    )


def _side_files(path):
    """Files beside the spectrum by kind, and beside its folder where that is the scanner's own."""
    folder = path.absolute().parent
    folders = [folder, folder.parent] if folder.name.lower() == SPECTRA_FOLDER else [folder]
    found = {"results": [], "settings": [], "document": []}
    for folder in folders:
        for kind, file in _parsed(_list_folder, folder) or []:
            found[kind].append(file)
    return found


def _parsed(parse, path):
    """What `parse` makes of a file or folder, made anew only after a change; `None` where it cannot be read."""
    try:
        status = path.stat()
        return parse(path, status.st_mtime_ns, status.st_size)
    except (OSError, SpectrumFileError):
        return None


@lru_cache(maxsize=16)
def _list_folder(folder, mtime_ns, size):
    """(kind, file) of the files that may help; a scan's folder holds tens of thousands of others."""
    listing = []
    for file in sorted(folder.iterdir()):
        name = file.name.lower()
        if name.endswith(".dfl"):
            listing.append(("settings", file))
        elif name.endswith(".txt") and "result" in name:
            listing.append(("results", file))
        elif name.endswith(".txt") and "document" in name:
            listing.append(("document", file))
    return listing


@lru_cache(maxsize=16)
def _parse_results(file, mtime_ns, size) -> Results | None:
    lines = split_lines(read_text(file, MAX_SIDE_FILE_BYTES))
    start = next((i for i, line in enumerate(lines[:10]) if "filename" in line and "E-gain" in line), None)
    if start is None:
        return None
    columns = [cell.strip() for cell in lines[start].split("\t")]
    by_name, by_position = {}, {}
    for line in lines[start + 1 :]:
        row = dict(zip(columns, (cell.strip() for cell in line.split("\t"))))
        spectrum_file = PureWindowsPath(row.get("filename", ""))
        position_mm = parse_number(row.get("position (mm)", ""))
        is_in_scan = spectrum_file.parent.name.lower() == SPECTRA_FOLDER
        by_name[spectrum_file.name.lower()] = results_row = ResultsRow(
            position_mm,
            _calibration(row.get("E-gain", ""), row.get("E-offset", ""), f"row of the spectrum in {file.name}"),
            row.get("validity"),
            row.get("MSE"),
            spectrum_file.parent.parent.name if is_in_scan else None,
        )
        if position_mm is not None:
            by_position.setdefault(_position_key(position_mm), []).append(results_row)
    return Results(by_name, {key: rows[0] for key, rows in by_position.items() if len(rows) == 1})


def _position_key(position_mm):
    return f"{position_mm:.2f}"  # as precise as Results is


def _row_of(path, results_file, position_mm):
    """The spectrum's row: the one of its name, unless that is at another position and so of another scan. A spectrum
    that somebody renamed is found by its position."""
    results = _parsed(_parse_results, results_file)
    if results is None:
        return None
    name = path.name.lower()
    row = results.by_name.get(name)
    if row is None and position_mm is not None and not SCANNER_FILE_NAME.fullmatch(name):
        return results.by_position.get(_position_key(position_mm))
    if row is None or None in (row.position_mm, position_mm):
        return row
    return row if abs(row.position_mm - position_mm) <= POSITION_TOLERANCE_MM else None


@lru_cache(maxsize=16)
def _parse_settings(file, mtime_ns, size) -> Calibration | None:
    """The keys of a settings file end with the number of the tube; `tube selector` says which one was on."""
    values = {}
    for line in split_lines(read_text(file, MAX_SIDE_FILE_BYTES)):
        key, _, value = line.partition("=")
        values[key.strip()] = value
    tubes = [key.removeprefix("keV/channel") for key in values if key.startswith("keV/channel")]
    tube = tubes[0] if len(tubes) == 1 else f" {values.get('tube selector', '').strip()}"
    return _calibration(values.get(f"keV/channel{tube}", ""), values.get(f"energy offset{tube}", ""), file.name)


def _calibration(gain_text, offset_text, origin):
    """The calibration, or `None` where one of the texts is no number or no X-ray detector has that scale."""
    gain_kev, offset_kev = parse_number(gain_text), parse_number(offset_text)
    if gain_kev is None or offset_kev is None or abs(offset_kev) > MAX_ENERGY_KEV:
        return None
    if not MIN_CHANNEL_WIDTH_KEV <= gain_kev <= MAX_CHANNEL_WIDTH_KEV:
        return None
    return Calibration(gain_kev, offset_kev, origin)


def _agreed(calibrations, num_channels):
    """Gain, offset and origin of the first calibration, provided that the others give the same energies."""
    if not calibrations:
        return None, None, "none: no Results and no .dfl file beside the spectrum has one for it"
    first = calibrations[0]
    for other in calibrations[1:]:
        at_first_channel = other.offset_kev - first.offset_kev
        at_last_channel = at_first_channel + (other.gain_kev - first.gain_kev) * (num_channels - 1)
        if max(abs(at_first_channel), abs(at_last_channel)) > first.gain_kev:
            return None, None, f"none: {first.origin} and {other.origin} are more than a channel apart"
    return first


@lru_cache(maxsize=16)
def _parse_document(file, mtime_ns, size) -> ScanDocument | None:
    """The document of an XRF scan; `None` for another text, and for the document of a radiograph, whose XRF is off."""
    rows = [[*map(str.strip, line.split("\t"))] for line in split_lines(read_text(file, MAX_SIDE_FILE_BYTES))]
    cells = {row[0]: [*row[1:], "", "", ""] for row in reversed(rows)}  # of two lines with one name the first counts
    missing = ["", "", ""]
    if rows[0][0] != "Base path:" or len(rows) < 2 or len(rows[1]) < 3 or cells.get("XRF", missing)[0] != "ON":
        return None
    tube, coordinates = cells.get("XRF voltage and current", missing), cells.get("Start coordinate", missing)
    return ScanDocument(
        core=rows[1][1] or None,
        section=rows[1][2] or None,
        anode=cells.get("Tube", missing)[0] or None,
        tube_kv=parse_number(tube[0]),
        tube_ma=parse_number(tube[2]),
        start_mm=parse_number(coordinates[0]),
        stop_mm=parse_number(coordinates[2]),
    )


def _document_of(files, position_mm, anode, tube_kv, tube_ma):
    """The document whose tube and coordinates are the spectrum's; `None` where there is none, or several differ."""
    found = set()
    for file in files:
        document = _parsed(_parse_document, file)
        if document is None:
            continue
        pairs = [(document.anode, anode), (document.tube_kv, tube_kv), (document.tube_ma, tube_ma)]
        is_same_tube = all(theirs == ours for theirs, ours in pairs if None not in (theirs, ours))
        limits = (document.start_mm, document.stop_mm)
        is_inside = None in (*limits, position_mm) or limits[0] - 1 <= position_mm <= limits[1] + 1
        if is_same_tube and is_inside:
            found.add(document)
    return found.pop() if len(found) == 1 else None
