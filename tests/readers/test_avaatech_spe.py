"""Avaatech `.spe`: header, file names of both generations, and what is refused."""

import numpy as np
import pytest
from instrument_files.avaatech_spe import COUNTS, NEW_NAME, OLD_NAME, avaatech_spe, examples

from dataset_builder import SpectrumFileError, read_spectra
from dataset_builder.readers import recognise_format
from dataset_builder.readers.avaatech_spe import file_name_fields


def read(folder, content, name=NEW_NAME):
    (folder / name).write_bytes(content)
    (spectrum,) = read_spectra(folder / name)
    return spectrum


@pytest.mark.parametrize("name", examples())
def test_every_dialect_gives_the_same_measurement(tmp_path, name):
    spectrum = read(tmp_path, examples()[name], name)
    assert recognise_format(tmp_path / name).name == "Avaatech spe"
    np.testing.assert_array_equal(spectrum.counts, COUNTS)
    assert spectrum.counts.dtype.kind == "i"
    assert (spectrum.core, spectrum.depth_mm, spectrum.x_mm, spectrum.y_mm) == ("GC-07", 910.0, 910.0, 12.5)
    assert (spectrum.tube_kv, spectrum.tube_ua, spectrum.live_time_s) == (10.0, 150.0, 10.0)
    assert (spectrum.instrument, spectrum.anode, spectrum.source) == ("Avaatech", None, name)
    assert (spectrum.metadata["slit_dc_mm"], spectrum.metadata["slit_cc_mm"]) == ("10", "12")
    assert spectrum.metadata["DATE_MEA"] == "03-14-2019 10:11:12"


def test_the_fields_of_both_generations_of_file_names(tmp_path):
    new, old = read(tmp_path, avaatech_spe(), NEW_NAME), read(tmp_path, avaatech_spe(), OLD_NAME)
    assert (new.core, new.filter, old.core, old.filter) == ("GC-07", "No-Filter", "GC-07", "No-Filter")
    assert (old.metadata["section"], "section" in new.metadata) == ("2", False)
    assert (new.metadata["file_name_date"], new.metadata["file_name_time"]) == ("03-14-2019", "101112")
    assert [new.metadata[f"file_name_field_{i}"] for i in (1, 2, 3)] == ["2", "0910", "1"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("A_B_3   12,5mm 10s 30kV 2mA.spe", {"core": "A_B", "section": "3", "x_mm": "12,5", "tube_current": "2mA"}),
        ("A    12.5mm  10s  30kV 500uA Pd Thick  2.SPE", {"core": "A", "x_mm": "12.5", "filter": "Pd Thick"}),
        ("A X 12.5mm Y 3.0mm DC10mm CC12mm 9kV", {"x_mm": "12.5", "y_mm": "3.0", "slit_dc_mm": "10", "tube_kv": "9"}),
        ("0012.spe", {}),
        ("two words.spe", {}),
    ],
)
def test_other_file_names(name, expected):
    fields = file_name_fields(name)
    assert {key: fields[key] for key in expected} == expected
    assert bool(fields) == bool(expected)


def test_values_that_the_header_lacks_come_from_the_file_name(tmp_path):
    lacking = dict.fromkeys(("X_Position", "Slit_DC", "ACC_VOLT", "TUBE_CUR", "MEAS_TIM", "TotalCPS"))
    for name in (NEW_NAME, OLD_NAME):
        spectrum = read(tmp_path, avaatech_spe(**lacking), name)
        assert (spectrum.depth_mm, spectrum.tube_kv, spectrum.tube_ua) == (910.0, 10.0, 150.0)
        assert spectrum.live_time_s == 10.0
        assert spectrum.real_time_s is None
    nowhere = read(tmp_path, avaatech_spe(**lacking), "a.spe")
    assert (nowhere.core, nowhere.depth_mm, nowhere.tube_kv, nowhere.tube_ua) == (None,) * 4
    assert nowhere.y_mm == 12.5


def test_the_header_wins_over_the_file_name_and_both_are_kept(tmp_path):
    content = avaatech_spe(ACC_VOLT="30", MEAS_TIM="20 22", Core_ID="GC-08", Section_ID="4")
    spectrum = read(tmp_path, content, OLD_NAME)
    assert (spectrum.tube_kv, spectrum.live_time_s, spectrum.real_time_s) == (30.0, 20.0, 22.0)
    assert (spectrum.core, spectrum.metadata["section"]) == ("GC-08", "4")
    disagreements = {key: value for key, value in spectrum.metadata.items() if key.startswith("file_name_")}
    assert disagreements == {"file_name_tube_kv": "10", "file_name_live_time_s": "10"}


@pytest.mark.parametrize(("current", "tube_ua"), [("150", 150.0), ("0.15", 150.0), ("2", 2000.0), ("10", None)])
def test_the_unit_of_the_tube_current_is_taken_from_its_size(tmp_path, current, tube_ua):
    spectrum = read(tmp_path, avaatech_spe(TUBE_CUR=current), "a.spe")
    assert spectrum.tube_ua == pytest.approx(tube_ua) if tube_ua else spectrum.tube_ua is None
    assert spectrum.metadata["TUBE_CUR"] == current


def test_the_format_has_no_energy_scale_unless_it_was_calibrated(tmp_path):
    plain = read(tmp_path, avaatech_spe())
    assert (plain.gain_kev, plain.offset_kev) == (None, None)
    assert plain.metadata["calibration"] == "none: the file states no energy scale"
    calibrated = read(tmp_path, avaatech_spe(after="$ENER_FIT:\n-0.003 0.02\n"))
    assert (calibrated.gain_kev, calibrated.offset_kev) == (0.02, -0.003)
    assert calibrated.metadata["calibration"] == "$ENER_FIT:"


@pytest.mark.parametrize("rate", ["41", "37", "0", "25", "79"])
def test_the_count_rate_may_be_rounded_and_over_live_or_real_time(tmp_path, rate):
    assert read(tmp_path, avaatech_spe(TotalCPS=rate)).metadata["TotalCPS"] == rate


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (avaatech_spe(channels="0 12"), r"\$DATA: the header declares 13 channels but 12 were found"),
        (avaatech_spe(channels="0 10"), "declares 11 channels but 12"),
        (avaatech_spe(channels="0"), "the first and the last channel must stand below"),
        (avaatech_spe(channels="0 99999999999"), "the last channel must be a whole number from 0 to 65535"),
        (avaatech_spe()[:190], "the first and the last channel must stand below"),
        (avaatech_spe()[:-4], "declares 12 channels but 11"),
        (avaatech_spe(after="$DATA:\n0 1\n1 1\n"), r"must have one \$DATA: section"),
        (avaatech_spe([1, 2, "x", 4]), r"\$DATA: the count of channel 2 must be a number; found 'x'"),
        (avaatech_spe([1, 2.5, 3]), "whole numbers from 0 to .*; found 2.5 in channel 1"),
        (avaatech_spe([1, -2, 3]), "found -2 in channel 1"),
        (avaatech_spe([0, 0], TotalCPS=None), "all its channels are zero"),
        (avaatech_spe(TotalCPS="400"), "TotalCPS must agree with the counts, 409 in 10 s; found 400"),
        (avaatech_spe(TotalCPS="4"), "found 4"),
        (avaatech_spe(ACC_VOLT="ten"), r"\$ACC_VOLT: ACC_VOLT must be a number; found 'ten'"),
        (avaatech_spe(ACC_VOLT="1e9"), "ACC_VOLT must lie from 0 to"),
        (avaatech_spe(MEAS_TIM="-10 11"), "the live time must lie from 0"),
    ],
)
def test_what_is_refused(tmp_path, content, message):
    path = tmp_path / "a.spe"
    path.write_bytes(content)
    with pytest.raises(SpectrumFileError, match=message) as caught:
        read_spectra(path)
    assert str(path) in str(caught.value)
