"""Panalytical `.mp2`."""

import numpy as np
import pytest
from instrument_files.panalytical_mp2 import COUNTS, ENERGIES, content, examples

from dataset_builder import SpectrumFileError, read_spectra


def read(tmp_path, file_content):
    path = tmp_path / "a.mp2"
    path.write_bytes(file_content)
    return read_spectra(path)


@pytest.mark.parametrize("name", examples())
def test_counts_and_scale_come_from_their_own_columns(tmp_path, name):
    (spectrum,) = read(tmp_path, examples()[name])
    np.testing.assert_array_equal(spectrum.counts, COUNTS)
    assert spectrum.counts.dtype.kind == "i"
    assert spectrum.gain_kev == pytest.approx(0.00802, rel=1e-6)
    assert spectrum.offset_kev == pytest.approx(-0.0082, abs=1e-8)
    assert (spectrum.live_time_s, spectrum.real_time_s) == (14.7137825, 18.000489)
    assert (spectrum.tube_kv, spectrum.tube_ua, spectrum.anode) == (12.0, 416.0, "Ag")
    assert (spectrum.instrument, spectrum.detector) == ("Panalytical Epsilon1", "SDD5")


def test_header_fields_without_a_place_of_their_own_are_kept(tmp_path):
    (spectrum,) = read(tmp_path, examples()["helium.mp2"])
    assert (spectrum.sample, spectrum.filter) == ("clay 7", "None")
    assert spectrum.metadata["Medium"] == "Helium"
    assert spectrum.metadata["TubeAnode"] == "Ag 50"
    assert spectrum.metadata["TimeMeasured"] == "16/08/2017 12:11:47"
    assert spectrum.metadata["ROI-Fit (chan)"] == "2; 6"  # both lines of this name


def test_sample_in_another_encoding(tmp_path):
    (spectrum,) = read(tmp_path, examples()["decimal_comma.mp2"])
    assert spectrum.sample == "Löß 3"


def test_columns_are_found_by_name_and_energies_in_ev(tmp_path):
    energies = [1000 * energy for energy in ENERGIES]
    columns = ("Energy (eV)", "Background", "Counts", "Fit")
    rows = content(energies=energies, columns=columns).decode().split("\r\n")
    swapped = [line.split("\t") for line in rows]
    lines = [
        "\t".join([r[0], r[2], r[1], r[3]]) if len(r) == 4 and r[1] != "Background" else "\t".join(r) for r in swapped
    ]
    (spectrum,) = read(tmp_path, "\r\n".join(lines).encode())
    np.testing.assert_array_equal(spectrum.counts, COUNTS)
    assert spectrum.gain_kev == pytest.approx(0.00802, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NrOfChannels": "9"}, "declares 9 channels but 8 were found"),
        ({"OutputCounts": "44"}, "declares 44 total counts but 43 were found"),
        ({"energies": (*ENERGIES[:4], *(energy + 0.00802 for energy in ENERGIES[4:]))}, "energies must rise evenly"),
        (
            {"energies": [1000 * energy for energy in ENERGIES]},
            "channel width must lie from 0.5 to 500 eV; .* 8020 eV",
        ),
        ({"energies": ENERGIES[::-1]}, "the channel width must lie"),
        ({"energies": (1e299,) * 8}, "energies must lie within 1000 keV"),
        ({"counts": (0, 0, 7, 3.5, 21, 8, 4, 0)}, "found 3.5 in channel 3"),
        ({"counts": (0, 0, 7, "x", 21, 8, 4, 0)}, "the count of channel 3 must be a number; found 'x'"),
        ({"counts": (0,) * 8, "OutputCounts": "0"}, "all its channels are zero"),
        (
            {"columns": ("Channel", "Counts", "Background", "Fit")},
            "table with the columns Energy and Counts must follow",
        ),
        ({"columns": ("Energy (keV)", "Rate", "Background", "Fit")}, "found 'Energy .keV., Rate"),
        ({"columns": ("Energy (keV)", "Counts", "Fit")}, "channel 0: a row must have 3 columns; found 4"),
        ({"LiveTime": "soon"}, "LiveTime must be a number; found 'soon'"),
        ({"kV": "-12"}, "kV must lie from 0 to 1000"),
    ],
)
def test_what_disagrees_is_refused_with_its_place(tmp_path, changes, message):
    with pytest.raises(SpectrumFileError, match=message) as caught:
        read(tmp_path, content(**changes))
    assert str(tmp_path / "a.mp2") in str(caught.value)


def test_a_file_cut_off_in_its_rows_is_refused(tmp_path):
    whole = content()
    for length in range(whole.index(b"Fit\r\n") + 5, len(whole) - 12):
        with pytest.raises(SpectrumFileError):
            read(tmp_path, whole[:length])


def test_genuine_files(real_data):
    paths = sorted((real_data / "formats" / "panalytical_mp2").glob("*.mp2"))
    spectra = [spectrum for path in paths for spectrum in read_spectra(path)]
    assert len(spectra) == 24
    for spectrum in spectra:
        assert spectrum.counts.size == 4096
        assert spectrum.total_counts == int(spectrum.metadata["OutputCounts"])
        # The software's own fit, which the energy column was made from.
        assert spectrum.gain_kev == pytest.approx(float(spectrum.metadata["GainFit"]), abs=1e-10)
        assert spectrum.offset_kev == pytest.approx(float(spectrum.metadata["ZeroFit"]), abs=1e-7)
    conditions = {(spectrum.tube_kv, spectrum.filter) for spectrum in spectra}
    assert conditions == {(50, "Ag 100"), (50, "Cu 500"), (12, "Al 50"), (10, "None")}
    assert {spectrum.sample for spectrum in spectra} == {
        f"oreas {name}" for name in ("22d", "24b", "24c", "25a", "45d", "45e")
    }
    first = spectra[0]
    assert first.sample == "oreas 22d"
    assert first.total_counts == 493236
    assert (first.live_time_s, first.real_time_s, first.tube_ua) == (8.4485648, 12.000494, 100)
    assert first.counts[4094] == 20
    assert first.energy_kev[4094] == pytest.approx(32.8382, abs=1e-5)
    assert spectra[-1].counts[300] == 480
    assert spectra[-1].energy_kev[300] == pytest.approx(2.398071, abs=1e-6)
