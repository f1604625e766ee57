"""The reader of Olympus spectrum exports."""

import numpy as np
import pytest
from instrument_files.olympus_csv import COUNTS, DELTA, VANTA, delta, examples, vanta

from dataset_builder import SpectrumFileError, iter_spectra, read_spectra


def read(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content)
    return read_spectra(tmp_path / "a.csv")


def changed(rows, name, *values):
    return [(name, *values) if row[0] == name else row for row in rows]


@pytest.mark.parametrize("name", ["tabs.csv", "commas.csv", "semicolons.csv"])
def test_delta_has_a_spectrum_a_column(tmp_path, name):
    spectra = read(tmp_path, examples()[name])
    np.testing.assert_array_equal([s.counts for s in spectra], np.transpose(COUNTS))
    assert [s.sample for s in spectra] == ["rock 7", "rock 7", "rock 8"]
    assert [s.gain_kev for s in spectra] == [0.020052, 0.020052, 0.020049]
    assert [s.offset_kev for s in spectra] == [-0.015974, -0.015974, -0.015563]
    assert [s.live_time_s for s in spectra] == [19.4757, 19.3713, 12.8636]
    assert [s.tube_kv for s in spectra] == [39.957, 15.054, 39.914]  # the measured voltage, not the one set
    first = spectra[0]
    assert (first.real_time_s, first.tube_ua, first.filter, first.instrument) == (19.9831, 79.6, "3", "Olympus")
    assert first.metadata["ExposureNum"] == "1" and first.metadata["TubeVoltageSet"].startswith("40")
    assert first.metadata["TimeStamp"] == "2021-05-01 11:32:56" and "Slope" not in first.metadata


def test_vanta(tmp_path):
    spectra = read(tmp_path, examples()["vanta.csv"])
    np.testing.assert_array_equal([s.counts for s in spectra], np.transpose(COUNTS))
    assert [s.sample for s in spectra] == ["#4", "#4", "#5"]
    second = spectra[1]
    assert (second.gain_kev, second.offset_kev, second.live_time_s, second.tube_kv) == (0.02, 0.0, 9.4, 10.0)
    assert (second.real_time_s, second.tube_ua) == (None, None)
    assert second.metadata == {"Date": "2019-09-28", "Exposure Number": "2"}


def test_exposures_of_different_length_and_a_last_separator(tmp_path):
    rows = changed(DELTA, "NumData", "4", "3", "4")
    counts = [*COUNTS[:3], (5, "", 2)]
    content = delta(rows, counts, separator=",", encoding="utf-8").replace(b"\r\n", b",\r\n")
    assert [s.counts.size for s in read(tmp_path, content)] == [4, 3, 4]


def test_without_calibration_there_is_no_energy_scale(tmp_path):
    rows = [row for row in DELTA if row[0] not in ("Offset", "Slope")]
    assert {(s.gain_kev, s.offset_kev) for s in read(tmp_path, delta(rows))} == {(None, None)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (delta(changed(DELTA, "NumData", "4", "5", "4")), "column 2: the header declares 5 channels but 4 were found"),
        (delta(counts=COUNTS[:3]), "column 1: the header declares 4 channels but 3 were found"),
        (delta(counts=[*COUNTS[:3], (1, 2)]), "channel 3: a row of counts must have 3 of them"),
        (delta(counts=[*COUNTS[:3], (1, 2, 3, 4)]), "channel 3: a row of counts must have 3 of them"),
        (delta(counts=[(1, -2, 3), *COUNTS[1:]]), "column 2: counts must be whole numbers"),
        (delta(counts=[(1, 2.5, 3), *COUNTS[1:]]), "column 2: counts must be whole numbers"),
        (delta(counts=[(1, "x", 3), *COUNTS[1:]]), "column 2: the count of channel 0 must be a number; found 'x'"),
        (delta(counts=[(0, 1, 0)] * 4), "column 1: .*all its channels are zero"),
        (delta(changed(DELTA, "Slope", "20.052", "0.02", "0.02")), "column 1: Slope must lie from 0 to 1"),
        (delta(changed(DELTA, "Livetime", "ten", "1", "1")), "column 1: Livetime must be a number; found 'ten'"),
        (delta(counts=[]), "header rows must stand before the counts"),
        (delta([DELTA[0]] * 201), "1 to 200 header rows"),
        (delta([("TestID", *"abcde" * 2001)]), "1 to 10000 exposures must be there"),
        (delta() + delta(encoding="utf-16-le"), "a row of counts must have 3 of them"),
        (vanta(changed(VANTA, "Energy Offset", "-20", "0", "0")), "column 1: Energy Offset must lie from -10 to 10"),
    ],
)
def test_damage_is_refused(tmp_path, content, message):
    with pytest.raises(SpectrumFileError, match=message) as caught:
        read(tmp_path, content)
    assert str(tmp_path / "a.csv") in str(caught.value)


def test_a_bad_exposure_is_reported_and_the_others_are_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(delta(changed(DELTA, "Offset", "0", "much", "0")))
    rejected = []
    assert len(list(iter_spectra(tmp_path, on_reject=rejected.append))) == 2
    assert [error.place for error in rejected] == ["column 2"]
