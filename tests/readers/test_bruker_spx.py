"""The reader of Bruker `.spx` files."""

import time

import numpy as np
import pytest
from instrument_files.bruker_spx import COUNTS, background, examples, spectrum, spx

from dataset_builder import SpectrumFileError, iter_spectra, read_spectra

BILLION_LAUGHS = "<!DOCTYPE x [<!ENTITY a0 'ha'>{}]>".format(
    "".join(f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 10))
)
EXTERNAL_ENTITY = "<!DOCTYPE x [<!ENTITY passwords SYSTEM 'file:///etc/passwd'>]>"


def read(tmp_path, content):
    (tmp_path / "a.spx").write_bytes(content)
    return read_spectra(tmp_path / "a.spx")


def test_counts_and_fields(tmp_path):
    (found,) = read(tmp_path, examples()["a.spx"])
    np.testing.assert_array_equal(found.counts, COUNTS)
    assert (found.gain_kev, found.offset_kev) == (0.01, -0.955)
    assert (found.live_time_s, found.real_time_s) == (pytest.approx(28.046), pytest.approx(30.0))
    assert (found.tube_kv, found.tube_ua, found.anode, found.filter) == (50.0, 199.0, "Rh", "AlTi")
    assert (found.instrument, found.detector) == ("Bruker XS-51 0032", "XFlash 430 11_36")
    assert (found.sample, found.x_mm, found.y_mm) == ("Point 1", 12.345, 6.5)
    expected = {
        "TRTSpectrumHardwareHeader PulseDensity": "28913",
        "TRTDetectorHeader ResponseFunction": "0,1; 2,3",
        "TRTSpectrumHeader Date": "23.3.2021",
        "TRTAxesHeader AxesParameter Axis2": "AxisName=Z, AxisPosition=9E4, AxisUnit=\xb5m",
    }
    assert expected.items() <= found.metadata.items()


def test_computed_background_is_no_spectrum(tmp_path):
    (found,) = read(tmp_path, examples()["background.spx"])
    np.testing.assert_array_equal(found.counts, COUNTS)


def test_several_spectra_without_headers_have_no_energy_scale(tmp_path):
    first, second = read(tmp_path, examples()["two.spx"])
    assert [first.counts.tolist(), second.counts.tolist()] == [[0, 5], [3, 4]]
    assert (first.gain_kev, first.offset_kev, first.live_time_s, first.anode, first.sample) == (None,) * 4 + ("a",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (spx(spectrum(channel_count=4096)), "declares 4096 channels but 6 were found"),
        (spx(spectrum((1, -2, 3))), "whole numbers from 0 .*; found -2 in channel 1"),
        (spx(spectrum((1, 22.76))), "whole numbers from 0 .*; found 22.76 in channel 1"),
        (spx(spectrum((1, "", 3))), "the count of channel 1 must be a number; found ''"),
        (spx(spectrum((0, 0))), "all its channels are zero"),
        (spx(spectrum((1,) * 70_000)), "the count of channel 65536 must be a number"),
        (spx(spectrum(calib_lin="-1E-2")), "CalibLin must lie from 0"),
        (spx(spectrum(calib_lin="0")), "gain_kev must be positive"),
        (spx(spectrum(calib_abs="zero")), "CalibAbs must be a number; found 'zero'"),
        (spx(spectrum(live_ms="-1")), "LifeTime must lie from 0"),
        (spx(spectrum(anode="450")), "Anode must be a whole number from 1 to 107; found '450'"),
        (spx('<ClassInstance Type="TRTSpectrum">' + background() + "</ClassInstance>"), "must have Channels"),
        (spx("<Channels>1,2</Channels>"), "must hold a measured spectrum"),
        (spx(spectrum()) + b"<", "must be complete and well-formed"),
        (spx(spectrum(name="&amp")), "must be complete and well-formed"),
        (spx(spectrum(), doctype=BILLION_LAUGHS).replace(b"23.3.2021", b"&a9;"), "no document type or entities"),
        (spx(spectrum(), doctype=EXTERNAL_ENTITY).replace(b"23.3.2021", b"&passwords;"), "no document type"),
        (spx("<a>" * 100 + "</a>" * 100), "at most 64 levels"),
        (spx("<a/>" * 1_000_001), "and 1000000 elements"),
    ],
)
def test_damage_is_refused(tmp_path, content, message):
    started = time.process_time()
    with pytest.raises(SpectrumFileError, match=message) as caught:
        read(tmp_path, content)
    assert str(tmp_path / "a.spx") in str(caught.value)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("name", examples())
def test_a_file_cut_off_anywhere_is_refused(tmp_path, name):
    content = examples()[name].rstrip()
    for length in range(0, len(content), 3):
        with pytest.raises(SpectrumFileError):
            read(tmp_path, content[:length])


def test_a_bad_spectrum_is_reported_and_the_others_are_read(tmp_path):
    (tmp_path / "a.spx").write_bytes(spx(spectrum(live_ms="x"), spectrum(name="good")))
    rejected = []
    (found,) = iter_spectra(tmp_path, on_reject=rejected.append)
    assert (found.sample, [error.place for error in rejected]) == ("good", ["spectrum 0"])


def test_genuine_files(real_data):
    folder = real_data / "formats" / "bruker_spx"
    (tungsten,) = read_spectra(folder / "Element B W.spx")
    (painting,) = read_spectra(folder / "bruker_m6_jetstream_file_example.spx")
    assert (tungsten.counts.size, tungsten.total_counts) == (4095, 46_896_460)
    assert (painting.counts.size, painting.total_counts) == (4096, 1_090_697)  # not the fitted background's
    assert (tungsten.live_time_s, tungsten.real_time_s) == (pytest.approx(200.054), pytest.approx(262.572))
    assert (tungsten.tube_kv, tungsten.tube_ua, tungsten.anode) == (50.0, 199.0, "Rh")
    assert (tungsten.instrument, painting.instrument) == ("Bruker XS-52 0039", "Bruker XS-51 0032")
    assert (tungsten.x_mm, tungsten.y_mm) == (pytest.approx(177.0, abs=0.001), pytest.approx(80.961, abs=0.001))
    for found, line_kev in ((tungsten, 8.398), (tungsten, 0.0), (painting, 3.691), (painting, 0.0)):
        near = np.abs(found.energy_kev - line_kev) < 0.045
        excess = found.counts[near] - found.counts[near].min()
        assert np.average(found.energy_kev[near], weights=excess) == pytest.approx(line_kev, abs=0.006)


def test_genuine_file_is_what_the_unlabelled_archive_holds(real_data):
    (found,) = read_spectra(real_data / "formats" / "bruker_spx" / "Element B W.spx")
    archive = iter_spectra(real_data / "unlabelled" / "m4_tornado_elements_and_glass.npz")
    (same,) = (one for one in archive if one.sample == "Trials/Element B W.spx")
    np.testing.assert_array_equal(found.counts, same.counts)
    assert (found.gain_kev, found.offset_kev) == (pytest.approx(same.gain_kev), pytest.approx(same.offset_kev))


def test_channels_that_are_missing_in_genuine_files_are_empty_ones_at_the_end(real_data):
    archive = iter_spectra(real_data / "unlabelled" / "m4_tornado_elements_and_glass.npz")
    short = [found for found in archive if found.counts.size < 4096]
    assert len(short) == 22 and all(found.counts[-1] > 0 for found in short)
