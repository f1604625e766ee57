"""What a file of spectra is, in words and as a figure: the answer of `xrf-data inspect`."""

import textwrap
from collections import Counter
from pathlib import Path

from .calibration import guess_calibration
from .readers import ColumnMapping, find_sources, read_source, recognise_format
from .spectrum import Spectrum

MAX_PANELS = 6
MAX_REJECTED = 10
CONVINCING = 0.5  # confidence from which a guessed calibration is worth a look


def inspect_file(path, plot=None, max_spectra: int = 20, column_mapping: ColumnMapping | None = None) -> str:
    """Describe the spectra of a file or folder: formats, a line a spectrum, what is missing and what was rejected.

    Args:
        path (path): a file, or a folder, in which every file of a known format is read.
        plot (path, *optional*): a PNG file to draw the first spectra into, with the element lines at their peaks.
        max_spectra (`int`, defaults to 20): how many spectra get a line; the others are counted.
        column_mapping (`ColumnMapping`, *optional*): for wide tables.

    Raises:
        SpectrumFileError: there is nothing of a known format.
        ValueError: there is nothing to plot.
    """
    formats, rejected, shown, uncalibrated, rates, number = Counter(), [], [], [], 0, 0
    for source in find_sources(path, column_mapping):
        formats[_format_name(source)] += 1
        for spectrum in read_source(source, column_mapping, rejected.append):
            number += 1
            if len(shown) < max_spectra:
                shown.append(spectrum)
            if spectrum.gain_kev is None or spectrum.offset_kev is None:
                uncalibrated.append(spectrum if not uncalibrated else None)  # only the first is looked at
            rates += "counts_unit" in spectrum.metadata
    lines = [f"{path}: {_formats(formats)}, {number} {'spectrum' if number == 1 else 'spectra'}"]
    lines += [f"  {spectrum}{_conditions(spectrum)}" for spectrum in shown]
    if number > len(shown):
        lines.append(f"  and {number - len(shown)} more")
    if shown and shown[0].metadata:
        lines.append(
            textwrap.shorten(f"further header fields: {', '.join(shown[0].metadata)}", 400, placeholder=" ...")
        )
    if uncalibrated:
        lines.append(_calibration_warning(uncalibrated[0], len(uncalibrated), number))
    if rates:
        lines.append(f"warning: {rates} of {number} hold counts per second, whose counting noise is not known.")
    lines += [f"rejected: {error}" for error in rejected[:MAX_REJECTED]]
    if len(rejected) > MAX_REJECTED:
        lines.append(f"rejected: {len(rejected) - MAX_REJECTED} more")
    if plot is not None:
        lines.append(_plot(plot, shown))
    return "\n".join(lines)


def _format_name(source: Path) -> str:
    return "MAX tree" if source.is_dir() else recognise_format(source).name


def _formats(formats) -> str:
    if sum(formats.values()) == 1:
        return next(iter(formats))
    return ", ".join(f"{name} ({number} {'file' if number == 1 else 'files'})" for name, number in formats.items())


def _conditions(spectrum: Spectrum) -> str:
    """What `repr` leaves out: instrument, tube and detector."""
    parts = [
        spectrum.instrument,
        spectrum.anode and f"{spectrum.anode} tube",
        spectrum.tube_ua and f"{spectrum.tube_ua:g} uA",
        spectrum.filter and f"filter {spectrum.filter}",
        spectrum.detector and f"detector {spectrum.detector}",
    ]
    known = ", ".join(part for part in parts if part)
    return f" {known}" if known else ""


def _calibration_warning(spectrum: Spectrum, number: int, total: int) -> str:
    missing = f"warning: {number} of {total} have no energy calibration"
    try:
        guess = guess_calibration(spectrum)
    except ValueError as error:
        return f"{missing}. {error}"
    if guess.confidence < CONVINCING:
        return f"{missing} and the lines of the first suggest none convincingly; the best is {guess}."
    return (
        f"{missing}; the lines of the first suggest {guess}. Nothing was changed: look at the plot, then give "
        "gain_kev and offset_kev."
    )


def _plot(path, spectra) -> str:
    from figures_xrf import plot_spectra

    drawn = [s for s in spectra if s.gain_kev is not None and s.offset_kev is not None][:MAX_PANELS]
    scale = ""
    if not drawn:  # lines on the guessed scale show whether it is right
        drawn = [spectrum for spectrum in map(_guessed, spectra[:MAX_PANELS]) if spectrum is not None]
        scale = " on a guessed energy scale" if drawn else " over their channels"
    drawn = drawn or spectra[:MAX_PANELS]
    plot_spectra(path, drawn)
    return f"plot: {path}, {len(drawn)} of the spectra{scale}"


def _guessed(spectrum: Spectrum) -> Spectrum | None:
    try:
        guess = guess_calibration(spectrum)
    except ValueError:
        return None
    return guess.apply(spectrum) if guess.confidence >= CONVINCING else None
