"""Shimadzu EDX profile CSV."""

import numpy as np
import pytest
from instrument_files.shimadzu_csv import COUNTS_NA, COUNTS_U, condition, content, examples, profile

from dataset_builder import SpectrumFileError, iter_spectra, read_spectra


def read(tmp_path, file_content):
    path = tmp_path / "a.csv"
    path.write_bytes(file_content)
    return read_spectra(path)


def test_one_spectrum_for_each_channel_with_points(tmp_path):
    (spectrum,) = read(tmp_path, examples()["one_profile.csv"])
    np.testing.assert_array_equal(spectrum.counts, COUNTS_NA)
    assert (spectrum.gain_kev, spectrum.offset_kev) == (0.01, 0.0)
    assert (spectrum.live_time_s, spectrum.real_time_s) == (959, None)
    assert (spectrum.anode, spectrum.tube_kv, spectrum.tube_ua, spectrum.filter) == ("Rh", 50, 1000, "Al")
    assert (spectrum.sample, spectrum.instrument) == ("filter 02f", "Shimadzu 700HS2")
    assert spectrum.metadata["Channel"] == "Na"
    assert spectrum.metadata["Atmosphere"] == "Vac."
    assert spectrum.metadata["Collimator"] == "10(mm)"
    assert "Element :  Ca, Fe" in spectrum.metadata["results"]


def test_each_profile_has_its_own_condition(tmp_path):
    first, second = read(tmp_path, examples()["two_profiles.csv"])
    np.testing.assert_array_equal(first.counts, COUNTS_NA)
    np.testing.assert_array_equal(second.counts, COUNTS_U)
    assert (first.tube_kv, second.tube_kv) == (50, 15)
    assert (second.live_time_s, second.real_time_s, second.gain_kev) == (None, 100, 0.02)
    assert second.metadata["Channel"] == "U"


def test_a_condition_in_another_layout_is_kept_as_text_only(tmp_path):
    profiles = profile("Na", COUNTS_NA)
    (spectrum,) = read(tmp_path, content(profiles, conditions=("Na                    50 kV automatic",)))
    assert (spectrum.tube_kv, spectrum.live_time_s) == (None, None)
    assert spectrum.metadata["condition"] == "50 kV automatic"
    (spectrum,) = read(tmp_path, content(profiles, conditions=()))
    assert (spectrum.tube_kv, spectrum.metadata["condition"]) == (None, "not in the file")


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        (profile("Na", COUNTS_NA, points=7), "channel Na: the header declares 7 points but 6 were found"),
        (profile("Na", COUNTS_NA, end=0.6), "Range must be as wide as Points times Step"),
        (profile("Na", COUNTS_NA, step=10.0), "channel width must lie from 0.5 to 500 eV"),
        (profile("Na", (0, 1.5, 3)), "found 1.5 in channel 1"),
        (profile("Na", (0, 0, 0)), "all its channels are zero"),
        (profile("Na", ()), "a profile must have points"),
        (profile("", COUNTS_NA), "must stand before Channel_info_end"),
        (profile("Na", COUNTS_NA)[:3], "must stand before Channel_info_end"),
    ],
)
def test_what_disagrees_is_refused(tmp_path, profiles, message):
    with pytest.raises(SpectrumFileError, match=message):
        read(tmp_path, content(profiles, conditions=(condition("Na"),)))


def test_a_file_cut_off_between_two_profiles_is_refused(tmp_path):
    with pytest.raises(
        SpectrumFileError, match="every condition must have a profile; U has none: the file is cut off"
    ):
        read(tmp_path, content(profile("Na", COUNTS_NA)))


def test_a_count_cut_off_within_its_digits_is_refused(tmp_path):
    whole = content(profile("Na", (0, 1, 123)), conditions=(condition("Na"),))
    for length in range(1, whole.index(b'"123"') + 5):
        with pytest.raises(SpectrumFileError):
            read(tmp_path, whole[:length])


def test_an_empty_profile_does_not_cost_the_other(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(content(profile("Na", (0, 0)) + profile("U", COUNTS_U)))
    errors = []
    (spectrum,) = iter_spectra(path, on_reject=errors.append)
    assert spectrum.metadata["Channel"] == "U"
    assert [error.place for error in errors] == ["channel Na"]


def test_genuine_file(real_data):
    (path,) = (real_data / "formats" / "shimadzu_csv").glob("*.csv")
    (spectrum,) = read_spectra(path)
    assert (spectrum.counts.size, spectrum.total_counts, spectrum.counts[32]) == (2048, 1386552, 124)
    assert (spectrum.gain_kev, spectrum.offset_kev) == (0.01, 0.0)
    assert (spectrum.sample, spectrum.anode, spectrum.tube_kv) == ("Lon19 PS L02f", "Rh", 50)
    assert (spectrum.tube_ua, spectrum.filter, spectrum.live_time_s) == (1000, "Al", 959)
    iron = slice(600, 680)
    assert spectrum.energy_kev[iron][spectrum.counts[iron].argmax()] == pytest.approx(6.404, abs=0.02)
