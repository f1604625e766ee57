"""The reader of Bruker `.pdz` files, versions 25 and 24."""

import struct
import time

import numpy as np
import pytest
from instrument_files.bruker_pdz import (
    COUNTS,
    FILE_HEADER,
    INSTRUMENT,
    examples,
    record,
    spectrum,
    summary,
    text,
    version_24,
    version_25,
)

from dataset_builder import SpectrumFileError, iter_spectra, read_spectra


def read(tmp_path, content):
    (tmp_path / "a.pdz").write_bytes(content)
    return read_spectra(tmp_path / "a.pdz")


def test_fields_of_version_25(tmp_path):
    (found,) = read(tmp_path, examples()["one_phase.pdz"])
    np.testing.assert_array_equal(found.counts, COUNTS)
    assert (found.gain_kev, found.offset_kev) == (0.02, -0.0005)
    assert (found.live_time_s, found.real_time_s) == (2.0, 2.5)
    assert (found.tube_kv, found.tube_ua) == (40.0, pytest.approx(11.3))
    assert (found.anode, found.filter, found.detector) == ("Rh", "Ti 25 um + Al 300 um", "SDD")
    assert (found.instrument, found.sample, found.source) == ("Bruker 800N0001", "rock 7", "a.pdz")
    expected = {
        "date": "2024-02-29 08:05:09",
        "raw_counts": "1100",
        "valid_counts": "1000",
        "dead_time_s": "0.3",
        "build_number": "SG6-0001",
        "version 1": "2.7",
        "user Operator": "Kim",
        "result SiO2": "75.25 +- 0.39, unit 1",
        "illumination": "Exploration_40",
        "records_not_read": "137",
    }
    assert expected.items() <= found.metadata.items()


def test_every_phase_is_a_spectrum(tmp_path):
    first, second = read(tmp_path, examples()["two_phases.pdz"])
    assert [s.tube_kv for s in (first, second)] == [40.0, 15.0]
    assert (second.filter, second.metadata["phase"], second.sample) == ("none", "1", "rock 7")
    np.testing.assert_array_equal(second.counts, [0, 5, 1, 900, 40, 6])


def test_fields_of_version_24(tmp_path):
    (found,) = read(tmp_path, version_24())
    np.testing.assert_array_equal(found.counts, COUNTS)
    assert (found.gain_kev, found.offset_kev) == (pytest.approx(0.020085), 0.0)
    assert (found.live_time_s, found.real_time_s, found.tube_kv, found.tube_ua) == (58.5, 61.0, 15.0, 25.0)
    assert (found.filter, found.sample) == ("Al 300 um + Ti 25 um", "a")
    assert found.metadata["date"] == "2012-11-05 16:20:30"
    assert "does not state it" in found.metadata["offset_kev"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (version_25(), r"must hold a spectrum record \(type 3\)"),
        (FILE_HEADER + summary(3) + spectrum() + spectrum(), "declares 3 phases but 2 were found"),
        (version_25(spectrum(channels=7)), "declares 7 channels but 6 were found"),
        (version_25(spectrum(channels=2**16 - 1)), "declares 65535 channels but 6 were found"),
        (version_25(spectrum(valid=5000)), "declares 5000 valid counts but the channels hold 1000"),
        (version_25(spectrum((9, 9, 9, 90_000, 9, 9))), "declares 1000 valid counts but the channels hold 90045"),
        (version_25(spectrum((0,) * 6, valid=0)), "all its channels are zero"),
        (version_25(spectrum(kv=float("nan"))), "tube_kv must lie from 0 to 1000; found nan"),
        (version_25(spectrum(live=-1.0)), "live_time_s must lie from 0"),
        (version_25(spectrum(ev=0.0)), "gain_kev must be positive"),
        (version_25(spectrum(start=float("inf"))), "offset_kev must be finite"),
        (version_25(spectrum(filters=(999, 1, 0, 0, 0, 0))), "atomic number must lie from 1 to 107; found 999"),
        (FILE_HEADER + record(1, struct.pack("<I", 2**31)), "record must have 4294967300 bytes for its fields"),
        (FILE_HEADER + struct.pack("<HI", 3, 2**31), "declares 2147483648 bytes but 0 are left"),
        (FILE_HEADER + INSTRUMENT[:10], "record 1 at byte 20: the record declares .* cut off"),
        (FILE_HEADER + b"\x03\x00", "a record must begin with 6 bytes; 2 are left"),
        (FILE_HEADER + record(7) * 10_000, "at most 10000 records"),
        (version_24(channels=7), "declares 7 channels but 6 were found"),
        (version_24()[:-1], "declares 6 channels but 5.75 were found"),
        (version_24()[:300], "must have 358 bytes; the file has 300"),
        (version_24(ev=float("nan")), "ev_per_channel must lie from 0 to 1000; found nan"),
    ],
)
def test_damage_is_refused(tmp_path, content, message):
    with pytest.raises(SpectrumFileError, match=message) as caught:
        read(tmp_path, content)
    assert str(tmp_path / "a.pdz") in str(caught.value)


def test_lying_numbers_of_entries_end_at_once(tmp_path):
    started = time.process_time()
    for entries in (record(9, struct.pack("<h", 2**15 - 1), text("a"), text("b")), INSTRUMENT[:-12] + b"\xff" * 12):
        with pytest.raises(SpectrumFileError):
            read(tmp_path, FILE_HEADER + entries + spectrum())
    assert time.process_time() - started < 1


@pytest.mark.parametrize("name", examples())
def test_a_file_cut_off_before_the_end_of_its_counts_is_refused(tmp_path, name):
    content = examples()[name]
    end_of_counts = content.rindex(struct.pack("<2I", 40 if "two" in name else 57, 6 if "two" in name else 0)) + 8
    for length in range(end_of_counts):
        with pytest.raises(SpectrumFileError):
            read(tmp_path, content[:length])
    assert read(tmp_path, content[:end_of_counts])


def test_a_bad_phase_is_reported_and_the_others_are_read(tmp_path):
    (tmp_path / "a.pdz").write_bytes(version_25(spectrum(valid=5000), spectrum(kv=15.0)))
    rejected = []
    (found,) = iter_spectra(tmp_path, on_reject=rejected.append)
    assert found.tube_kv == 15.0
    assert ["record 3 at byte" in error.place for error in rejected] == [True]


def test_genuine_files_against_pdz_tool(real_data):
    pdz_tool = pytest.importorskip("pdz_tool")
    for path in sorted((real_data / "formats" / "bruker_pdz").glob("*.pdz")):
        spectra = read_spectra(path)
        parsed = pdz_tool.PDZTool(str(path)).parse()
        phases = parsed["XRF Spectrum"]
        phases = phases if isinstance(phases, list) else [phases]
        assert len(spectra) == len(phases)
        for found, phase in zip(spectra, phases, strict=True):
            np.testing.assert_array_equal(found.counts, phase["spectrum_data"])
            assert found.gain_kev == phase["ev_per_channel"] / 1000
            assert found.offset_kev == phase["channel_start"] / 1000
            assert (found.live_time_s, found.real_time_s) == (phase["total_live"], phase["total_packet_time"])
            assert (found.tube_kv, found.tube_ua) == (phase["tube_voltage"], phase["tube_current"])
            assert found.metadata["date"] == phase["acquisition_date_time"]
            assert found.instrument == f"Bruker {parsed['XRF Instrument']['serial_number']}"


def test_version_24_against_pdz_tool(tmp_path):
    """pdz-tool reads our small file too, because it takes the channel number from it."""
    pdz_tool = pytest.importorskip("pdz_tool")
    (found,) = read(tmp_path, version_24())
    parsed = pdz_tool.PDZTool(str(tmp_path / "a.pdz")).parse()["XRF Spectrum"]
    np.testing.assert_array_equal(found.counts, parsed["spectrum_data"])
    assert (found.live_time_s, found.tube_kv) == (parsed["live_time"], parsed["xray_voltage_kv"])
    assert (found.tube_ua, found.gain_kev) == (parsed["xray_filament_current"], parsed["ev_per_channel"] / 1000)


def test_genuine_file_of_three_phases(real_data):
    spectra = read_spectra(real_data / "formats" / "bruker_pdz" / "00091-GeoExploration.pdz")
    assert [s.total_counts for s in spectra] == [580_876, 355_405, 422_552]
    assert [s.tube_kv for s in spectra] == [15.0, 50.0, 30.0]
    assert [s.filter for s in spectra] == ["none", "Cu 75 um + Ti 25 um + Al 200 um", "Ti 25 um + Al 300 um"]
    assert {(s.anode, s.sample, s.instrument) for s in spectra} == {("Rh", "90", "Bruker 800C5780")}
    for s in spectra:
        near = np.abs(s.energy_kev - 6.40) < 0.08
        excess = s.counts[near] - s.counts[near].min()
        assert np.average(s.energy_kev[near], weights=excess) == pytest.approx(6.399, abs=0.006)  # Fe K alpha
        # The header's valid counts and a pulse a millisecond, less what lies above the last channel.
        declared = int(s.metadata["valid_counts"]) + 1000 * s.live_time_s
        assert 0.97 < s.total_counts / declared < 1.001


def test_genuine_file_is_what_the_unlabelled_archive_holds(real_data):
    (found,) = read_spectra(real_data / "formats" / "bruker_pdz" / "00002-Spectrometer Mode.pdz")
    first = next(iter_spectra(real_data / "unlabelled" / "handheld_heavy_minerals.npz"))
    np.testing.assert_array_equal(found.counts, first.counts)
    assert (found.gain_kev, found.offset_kev) == (first.gain_kev, first.offset_kev)
    assert (found.live_time_s, found.tube_kv) == (first.live_time_s, first.tube_kv)
