"""Bruker `.pdz`: binary files of the handheld Tracer and S1 Titan, versions 25 and 24, little-endian.

Version 25 is a chain of records: a uint16 type, a uint32 length and that many bytes; a text is a uint32 number of
characters and UTF-16. An assay has one to three phases (tube settings), and each phase is one spectrum. Checked on
genuine files with one and with three phases: the layout; live, dead and reset time add up to the packet time (0.3 %);
and `channel_start_ev` is the energy of the first channel's centre: Fe K alpha lies within 5 eV of 6.400 keV, where the
lower edge, as it is described elsewhere, would put it 6 to 15 eV higher. Concentrations that the instrument computed
are kept as metadata. Images, grades and raw packets are not read; `records_not_read` lists the types of such records.

Version 24 is a header of 358 bytes and the counts. It is not checked on a genuine file: the layout is what two
independent public readers have in common, NIST's (DTSA-II, NeXLSpectrum) and pdz-tool. It states no zero; the first
channel is put at 0 keV as in the text export of the same instruments (see `s1pxrf`), and `metadata["offset_kev"]` says
so.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..spectrum import Spectrum, SpectrumFileError
from .checks import Reject, check_declared, checked_spectrum, element_symbol, reject
from .s1pxrf import OFFSET_NOTE
from .text import read_bytes

MAGIC_25 = b"\x19\x00\x0e\x00\x00\x00" + "pdz25".encode("utf-16-le")
MAGIC_24 = b"\x01\x01\x17\x00\x00\x00"
MAX_BYTES = 16 * 2**20
MAX_RECORDS = 10_000
ZERO_PULSES_PER_S = 1000.0
"""The electronics add a pulse for every millisecond of live time (981 to 996 a second in genuine spectra): the sharp
peak near 0.39 keV. `valid_counts` leaves them out and includes pulses above the last channel."""

INSTRUMENT, SUMMARY, SPECTRUM, RESULTS, RESULT, USER_FIELDS, GPS, SAMPLE, FILE_HEADER = 1, 2, 3, 5, 6, 9, 138, 139, 25
FIELDS = {
    INSTRUMENT: "serial_number:text build_number:text anode:B anode_takeoff_angle:B incidence_angle:B takeoff_angle:B "
    "tube_window_be_um:h detector:text tube_type:text spot_mm_set_by_hardware:B spot_mm_set_by_software:B "
    "collimator:text",
    SUMMARY: "num_phases:I all_raw_counts:I all_valid_counts:I all_valid_counts_in_range:I all_reset_counts:I "
    "all_time_since_trigger_s:f all_packet_time_s:f all_dead_time_s:f all_reset_time_s:f all_live_time_s:f "
    "elapsed_time_s:f application:text application_part_number:text user:text",
    SPECTRUM: "phase:I raw_counts:I valid_counts:I valid_counts_in_range:I reset_counts:I time_since_trigger_s:f "
    "packet_time_s:f dead_time_s:f reset_time_s:f live_time_s:f tube_kv:f tube_ua:f filter:6h filter_wheel:h "
    "detector_temperature_celsius:f ambient_temperature_fahrenheit:f vacuum:i ev_per_channel:f gain_drift_algorithm:h "
    "channel_start_ev:f date:8H pressure_mbar:f channels:H nose_temperature_celsius:h environment:h illumination:text "
    "first_packet:h",
    RESULTS: "analysis_mode:I analysis_type:I automatic_calibration:h result_type:h error_multiplier:H "
    "calibration_file:text calibration_package:text calibration_part_number:text type_standardization:text",
    RESULT: "name:text atomic_number:I unit:B value:f standardized_value:f error:f",
    GPS: "gps_valid:i latitude:d longitude:d altitude_m:f",
    SAMPLE: "standard_multiplier:i calibration:text sample_id:text",
}
"""Names and `struct` codes of the fields, in their order."""
FIELDS_24 = {
    "channels": (6, "H"),
    "ev_per_channel": (50, "d"),
    "filter": (114, "8h"),
    "date": (146, "8H"),
    "tube_kv": (162, "f"),
    "tube_ua": (166, "f"),
    "packet_time_s": (342, "f"),
    "dead_time_s": (346, "f"),
    "live_time_s": (354, "f"),
}
"""Offset and `struct` code of each field in the header of version 24."""
HEADER_BYTES_24 = 358
HIGHEST = {"live_time_s": 1e6, "packet_time_s": 1e6, "tube_kv": 1e3, "tube_ua": 1e6, "ev_per_channel": 1e3}
SAMPLE_NAMES = ("sample name", "name", "sample id", "sample")
FIELDS_OF_SPECTRUM = (*HIGHEST, "channel_start_ev", "filter", "anode", "serial_number", "detector")


def is_bruker_pdz(path: Path, head: bytes) -> bool:
    """Whether the file begins as one of the two versions does."""
    return head.startswith((MAGIC_25, MAGIC_24))


def read_bruker_pdz(path: Path, on_reject: Reject | None = None) -> Iterator[Spectrum]:
    """Read a `.pdz` file, one spectrum a phase. The real time is the packet time: live, dead and reset time together.

    Raises:
        SpectrumFileError: the file is cut off or its lengths lie, a field has no possible value, or phases, channels
            or the sum of the counts are not what the headers declare.
    """
    content = read_bytes(path, MAX_BYTES)
    if content.startswith(MAGIC_24):
        yield from _read_version_24(path, on_reject, content)
        return
    spectra, common, user_fields, not_read = [], {}, {}, set()
    for place, kind, payload in _records(path, content):
        record = _Record(path, place, payload)
        if kind == SPECTRUM:
            spectra.append(record)
        elif kind == RESULT:
            result = record.fields(RESULT)
            value = f"{result['value']:.6g} +- {result['error']:.3g}, unit {result['unit']}"
            common[f"result {result['name']}"] = value
        elif kind == USER_FIELDS:
            user_fields |= {record.text(): record.text() for _ in range(record.read("h"))}
        elif kind in FIELDS:
            common |= record.fields(kind)
            if kind == INSTRUMENT:
                common |= {f"version {record.read('H')}": record.text() for _ in range(record.read("I"))}
        elif kind != FILE_HEADER:
            not_read.add(kind)
    if not spectra:
        raise SpectrumFileError(path, "the file must hold a spectrum record (type 3): is it of another instrument?")
    check_declared(path, None, "phases", common.get("num_phases"), len(spectra))
    if not_read:
        common["records_not_read"] = " ".join(map(str, sorted(not_read)))
    for record in spectra:
        try:
            header = record.fields(SPECTRUM)
            counts = record.counts(header)
            spectrum = _spectrum(path, record.place, on_reject, header, counts, common, user_fields)
        except SpectrumFileError as error:
            reject(error, on_reject)
            continue
        if spectrum is not None:
            yield spectrum


def _read_version_24(path, on_reject, content):
    if len(content) < HEADER_BYTES_24:
        message = f"the header must have {HEADER_BYTES_24} bytes; the file has {len(content)}: it is cut off."
        raise SpectrumFileError(path, message)
    header = {name: struct.unpack_from(f"<{code}", content, at) for name, (at, code) in FIELDS_24.items()}
    header = {name: values if len(values) > 1 else values[0] for name, values in header.items()}
    counts_bytes = content[HEADER_BYTES_24:]
    check_declared(path, "byte 6", "channels", header["channels"], len(counts_bytes) / 4)
    counts = np.frombuffer(counts_bytes, "<u4").astype(np.int64)
    header["channel_start_ev"] = 0.0
    spectrum = _spectrum(path, None, on_reject, header, counts, {"offset_kev": OFFSET_NOTE}, {})
    if spectrum is not None:
        yield spectrum


def _records(path, content):
    """Place, type and bytes of every record of version 25."""
    start = 0
    for index in range(MAX_RECORDS):
        place = f"record {index} at byte {start}"
        header = content[start : start + 6]
        if len(header) < 6:
            message = f"a record must begin with 6 bytes; {len(header)} are left: the file is cut off."
            raise SpectrumFileError(path, message, place)
        kind, length = struct.unpack("<HI", header)
        start += 6
        if length > len(content) - start:
            message = f"the record declares {length} bytes but {len(content) - start} are left: the file is cut off."
            raise SpectrumFileError(path, message, place)
        yield place, kind, content[start : start + length]
        start += length
        if start == len(content):
            return
    raise SpectrumFileError(path, f"a file must have at most {MAX_RECORDS} records: it is damaged.", place)


class _Record:
    """The bytes of one record, read field by field."""

    def __init__(self, path, place, payload):
        self.path, self.place, self.payload, self.position = path, place, payload, 0

    def _take(self, num_bytes):
        end = self.position + num_bytes
        if end > len(self.payload):
            message = (
                f"the record must have {end} bytes for its fields but has {len(self.payload)}: the file is damaged."
            )
            raise SpectrumFileError(self.path, message, self.place)
        taken, self.position = self.payload[self.position : end], end
        return taken

    def read(self, code):
        values = struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))
        return values if len(values) > 1 else values[0]

    def text(self):
        return self._take(2 * self.read("I")).decode("utf-16-le", errors="replace").strip("\0")

    def fields(self, kind) -> dict:
        named = (field.split(":") for field in FIELDS[kind].split())
        return {name: self.text() if code == "text" else self.read(code) for name, code in named}

    def counts(self, header):
        """The rest of a spectrum's record."""
        rest = self.payload[self.position :]
        check_declared(self.path, self.place, "channels", header["channels"], len(rest) / 4)
        return np.frombuffer(rest, "<u4").astype(np.int64)


def _spectrum(path, place, on_reject, header, counts, common, user_fields):
    for name, highest in HIGHEST.items():
        if not 0 <= header[name] <= highest:
            message = f"{name} must lie from 0 to {highest:g}; found {header[name]:g}: the file is damaged."
            raise SpectrumFileError(path, message, place)
    # Genuine spectra hold 97 to 100 % of the upper expression; at 50 kV the rest lies above the last channel.
    valid, found = header.get("valid_counts", 0), counts.sum()
    if valid and not 0.5 * valid <= found <= 1.1 * (valid + ZERO_PULSES_PER_S * header["live_time_s"]):
        message = f"the header declares {valid} valid counts but the channels hold {found}: the file is damaged."
        raise SpectrumFileError(path, message, place)
    layers = zip(header["filter"][::2], header["filter"][1::2])
    layers = [f"{element_symbol(path, place, z)} {thickness} um" for z, thickness in layers if z]
    anode = common.get("anode", 0)
    year, month, _, day, hour, minute, second, _ = header["date"]
    date = f"{year:04d}-{month:02d}-{day:02d} {hour:02d}:{minute:02d}:{second:02d}"
    metadata = {name: value for name, value in (common | header).items() if name not in FIELDS_OF_SPECTRUM}
    metadata |= {"date": date, **{f"user {name}": value for name, value in user_fields.items()}}
    names = {name.lower(): value for name, value in user_fields.items() if value}
    return checked_spectrum(
        path,
        place,
        on_reject,
        counts,
        gain_kev=header["ev_per_channel"] / 1000,
        offset_kev=header["channel_start_ev"] / 1000,
        live_time_s=header["live_time_s"],
        real_time_s=header["packet_time_s"],
        tube_kv=header["tube_kv"],
        tube_ua=header["tube_ua"],
        anode=element_symbol(path, place, anode) if anode else None,
        filter=" + ".join(layers) or "none",
        instrument=f"Bruker {common.get('serial_number', 'handheld')}",
        detector=common.get("detector") or None,
        sample=next((names[name] for name in SAMPLE_NAMES if name in names), common.get("sample_id") or path.stem),
        metadata={
            name: f"{value:.7g}" if isinstance(value, float) else str(value) for name, value in metadata.items()
        },
    )
