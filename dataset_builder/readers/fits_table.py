"""FITS files with spectra in binary tables, as X-ray astronomy writes them (OGIP memo OGIP/92-007, "PHA" files).

A table with a column COUNTS (or RATE, counts per second) holds spectra: type I has one row a channel and is one
spectrum, type II has one row a spectrum and a vector in each. A table EBOUNDS in the same file gives the energy
scale; a GAIN keyword whose comment says eV per channel gives the channel width only, and then the offset stays
unknown. Vector columns beside the counts (errors, quality, grouping) are not kept.

astropy is asked for one table at a time, after the sizes that the header claims were compared with those of the file.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..spectrum import Spectrum, SpectrumFileError
from .checks import MAX_CHANNELS, Reject, check_declared, checked_spectrum, optional_number
from .text import read_bytes

MAX_HEADER_BYTES = 2**20
MAX_EXTENSIONS = 1000
MAX_COLUMNS = 999  # the standard's own limit of TFIELDS
COUNT_COLUMNS = ("COUNTS", "RATE")
FIELD_OF_KEYWORD = {"INSTRUME": "instrument", "FILTER": "filter", "OBJECT": "sample"}
KEYWORDS_OF_SPECTRUM = {*FIELD_OF_KEYWORD, "EXPOSURE", "ONTIME"}
KEYWORDS_OF_LAYOUT = re.compile(r"(XTENSION|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|TFIELDS|TFORM\d+|TTYPE\d+|END|)")


def is_fits(path: Path, head: bytes) -> bool:
    """Whether the first card says so, as it must in every FITS file."""
    return re.match(rb"SIMPLE  = +T", head) is not None


def read_fits(path: Path, on_reject: Reject | None = None) -> Iterator[Spectrum]:
    """Read the spectra of all tables of a FITS file.

    Raises:
        SpectrumFileError: astropy is missing, the file is cut off or lies about its sizes, no table holds counts, or
            a spectrum is not valid.
    """
    try:
        from astropy.io import fits  # noqa: F401
    except ImportError:
        message = "reading FITS needs astropy: pip install 'xrf-transformers[instruments]'."
        raise SpectrumFileError(path, message) from None

    tables = _tables(path)
    found = [(table, column) for table in tables for column in COUNT_COLUMNS if column in table.columns]
    if not found:
        names = ", ".join(f"{table.name} ({', '.join(table.columns)})" for table in tables) or "no table"
        raise SpectrumFileError(path, f"a table with a column COUNTS or RATE must be there; found {names[:200]}.")
    bounds = next((table for table in tables if table.name == "EBOUNDS"), None)
    for table, column in found:
        yield from table.spectra(column, bounds, on_reject)


@contextlib.contextmanager
def _astropy_errors(path, place):
    """astropy raises exceptions of many types on damaged files, and warns of cards it repairs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except SpectrumFileError:
        raise
    except Exception as error:
        reason = f"the file is damaged or no valid FITS ({type(error).__name__}: {str(error)[:100]})."
        raise SpectrumFileError(path, reason, place) from None


def _tables(path) -> list["_Table"]:
    """The binary tables of a file."""
    from astropy.io import fits

    content = read_bytes(path)
    tables, start, number = [], 0, 0
    while number == 0 or re.compile(rb"[^\0 ]").search(content, start):
        place = f"extension {number}" if number else "the primary header"
        if number > MAX_EXTENSIONS:
            raise SpectrumFileError(path, f"a file must have at most {MAX_EXTENSIONS} extensions; this one has more.")
        if number and content[start : start + 8] != b"XTENSION":
            raise SpectrumFileError(path, "an extension must begin with XTENSION; this one does not.", place)
        with _astropy_errors(path, place):
            stream = io.BytesIO(content[start : start + MAX_HEADER_BYTES])
            header = fits.Header.fromfile(stream)
            data_start = start + stream.tell()
            num_columns = header.get("TFIELDS", 0)
            if not 0 <= num_columns <= MAX_COLUMNS:
                raise SpectrumFileError(path, f"TFIELDS must be 0 to {MAX_COLUMNS}; found {num_columns}.", place)
            size = header.data_size
            if not 0 <= size <= len(content) - data_start:
                raise SpectrumFileError(
                    path,
                    f"the header declares {size} bytes of data but {len(content) - data_start} follow: the file is "
                    "cut off or damaged.",
                    place,
                )
            end = data_start + header.data_size_padded
            if header.get("XTENSION") == "BINTABLE":
                tables.append(_Table(path, place, fits.BinTableHDU.fromstring(content[start:end])))
        start, number = end, number + 1
    return tables


class _Table:
    """One binary table: its header as text and its columns as arrays."""

    def __init__(self, path, place, hdu):
        header = hdu.header
        if hdu.columns.dtype.itemsize != header["NAXIS1"]:
            raise SpectrumFileError(
                path,
                f"the columns must fill a row of NAXIS1 = {header['NAXIS1']} bytes; TFORM declares "
                f"{hdu.columns.dtype.itemsize}: the header is damaged.",
                place,
            )
        self.path, self.place, self.name = path, place, hdu.name.upper()
        self.cards = {card.keyword: (str(card.value).strip(), card.comment) for card in header.cards}
        self.columns = {name.upper(): np.asarray(hdu.data[name]) for name in hdu.columns.names}

    def spectra(self, column, bounds, on_reject) -> Iterator[Spectrum]:
        """The spectra of the table."""
        counts = self.columns[column]
        if counts.dtype.kind not in "iuf" or counts.ndim not in (1, 2) or counts.size == 0:
            raise SpectrumFileError(
                self.path, f"{column} must hold a number or a vector a row; found shape {counts.shape}.", self.place
            )
        per_row = counts.ndim == 2
        counts = counts if per_row else counts[None]  # (spectra, channels)
        if counts.shape[1] > MAX_CHANNELS:
            raise SpectrumFileError(
                self.path,
                f"a spectrum must have at most {MAX_CHANNELS} channels; found {counts.shape[1]}.",
                self.place,
            )
        self._check_channels(counts, per_row)
        calibration = self._calibration(bounds, counts.shape[1])
        for row in range(len(counts)):
            place = f"{self.place}, row {row}" if per_row else self.place
            metadata = {name: text for name, (text, _) in self.cards.items() if not KEYWORDS_OF_LAYOUT.fullmatch(name)}
            if per_row:
                metadata |= {name: str(values[row]) for name, values in self.columns.items() if values.ndim == 1}
            if column == "RATE":
                metadata["counts_unit"] = "counts per second"
            fields = {field: metadata.get(keyword) or None for keyword, field in FIELD_OF_KEYWORD.items()}
            spectrum = checked_spectrum(
                self.path,
                place,
                on_reject,
                counts[row].astype(counts.dtype.newbyteorder("=")),
                live_time_s=optional_number(self.path, place, metadata.get("EXPOSURE"), "EXPOSURE"),
                real_time_s=optional_number(self.path, place, metadata.get("ONTIME"), "ONTIME"),
                metadata={name: text for name, text in metadata.items() if name not in KEYWORDS_OF_SPECTRUM},
                **fields,
                **calibration,
            )
            if spectrum is not None:
                yield spectrum

    def _check_channels(self, counts, per_row):
        """Channels must be those that the header declares, one after the other."""
        declared = optional_number(self.path, self.place, self.cards.get("DETCHANS", ("",))[0], "DETCHANS")
        check_declared(self.path, self.place, "channels", declared, counts.shape[1])
        channels = self.columns.get("CHANNEL")
        if channels is None or channels.dtype.kind not in "iuf" or channels.ndim != counts.ndim - (not per_row):
            return
        steps = np.diff(channels.astype(np.float64), axis=-1)
        if not (steps == 1).all():
            channel = int(np.argwhere(steps != 1)[0][-1]) + 1
            raise SpectrumFileError(
                self.path, f"channels must rise by one; row {channel} of CHANNEL does not: repair it.", self.place
            )

    def _calibration(self, bounds, num_channels) -> dict[str, float]:
        """Gain and offset in keV, as far as the file states them."""
        if bounds is not None and {"E_MIN", "E_MAX"} <= set(bounds.columns):
            lower, upper = bounds.columns["E_MIN"], bounds.columns["E_MAX"]
            check_declared(self.path, "EBOUNDS", "channels", len(lower), num_channels)
            if lower.dtype.kind + upper.dtype.kind != "ff" or lower.ndim + upper.ndim != 2:
                raise SpectrumFileError(self.path, "E_MIN and E_MAX must be one number a row.", "EBOUNDS")
            gain_kev = float(upper[-1] - lower[0]) / num_channels
            even_kev = lower[0] + gain_kev * np.arange(num_channels)
            if not np.abs(lower - even_kev).max() < gain_kev:
                message = "E_MIN must rise evenly from channel to channel, within one channel; it does not."
                raise SpectrumFileError(self.path, message, "EBOUNDS")
            return {"gain_kev": gain_kev, "offset_kev": float(lower[0]) + gain_kev / 2}
        text, comment = self.cards.get("GAIN", ("", ""))
        match = re.match(r"(k?)ev */ *ch", comment.strip().lower())
        gain = optional_number(self.path, self.place, text, "GAIN") if match else None
        return {} if gain is None else {"gain_kev": gain * (1.0 if match[1] else 1e-3)}
