"""The reader of Bruker's S1PXRF text exports."""

import numpy as np
import pytest
from instrument_files.s1pxrf import HEADER, examples, s1pxrf

from dataset_builder import SpectrumFileError, read_spectra


def save(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", examples())
def test_counts_and_fields(tmp_path, name):
    (spectrum,) = read_spectra(save(tmp_path / name, examples()[name]))
    np.testing.assert_array_equal(spectrum.counts, [0, 7, 3, 4])
    assert spectrum.gain_kev == pytest.approx(0.0198374)
    assert (spectrum.offset_kev, spectrum.tube_kv, spectrum.tube_ua) == (0.0, 15.0, 25.0)
    assert (spectrum.live_time_s, spectrum.real_time_s) == (58.25, 60.5)
    assert (spectrum.sample, spectrum.filter, spectrum.source) == ("MUD-1", "2", name)
    assert spectrum.metadata["HV DAC"] == "105"
    assert "does not state it" in spectrum.metadata["offset_kev"]


def test_without_channel_width_there_is_no_energy_scale(tmp_path):
    header = [line for line in HEADER if "eV per channel" not in line]
    (spectrum,) = read_spectra(save(tmp_path / "a.csv", s1pxrf(header=header)))
    assert (spectrum.gain_kev, spectrum.offset_kev) == (None, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (s1pxrf([1, 2, 3], num_channels=4), "declares 4 channels but 3 were found"),
        (s1pxrf([1, 2, 3], valid_counts=60), "declares 60 valid counts but 6 were found"),
        (s1pxrf([1, "x", 3]), "the count of channel 1 must be a number; found 'x'"),
        (s1pxrf([1, "nan", 3]), "the count of channel 1 must be a number; found 'nan'"),
        (s1pxrf([1, -2, 3]), "whole numbers from 0 .*; found -2 in channel 1"),
        (s1pxrf([1, 2.5, 3]), "whole numbers from 0 .*; found 2.5 in channel 1"),
        (s1pxrf([0, 0, 0]), "all its channels are zero"),
        (s1pxrf([1, 2, 3]).replace(b"\r1,", b"\r7,"), "channel 1 must stand next; found '7,2'"),
        (s1pxrf([1, 2, 30])[:-3], "quotes must be closed; found '2,\"3'"),
        ("\r".join(HEADER).encode(), "Channel#,Intensity"),
        (s1pxrf(header=[line.replace("19.8374", "-19.8374") for line in HEADER]), "eV per channel must lie from 0"),
        (s1pxrf(header=[line.replace("19.8374", "0") for line in HEADER]), "gain_kev must be positive"),
    ],
)
def test_damage_is_refused(tmp_path, content, message):
    path = save(tmp_path / "a.csv", content)
    with pytest.raises(SpectrumFileError, match=message) as caught:
        read_spectra(path)
    assert str(path) in str(caught.value)


def test_genuine_files(real_data):
    first, second = read_spectra(real_data / "formats" / "bruker_s1pxrf_csv")
    assert (first.tube_kv, second.tube_kv, first.counts.size) == (15.0, 40.0, 2048)
    assert first.total_counts == pytest.approx(3_399_004, rel=0.001)  # the totals that the files declare
    assert second.total_counts == pytest.approx(725_605, rel=0.001)


@pytest.mark.parametrize(("line_kev", "element"), [(1.740, "Si"), (3.313, "K"), (3.691, "Ca"), (6.399, "Fe")])
def test_zero_of_a_genuine_file_is_at_the_first_channel(real_data, line_kev, element):
    """The centre of the counts around each K alpha line lies within a quarter of a channel of its energy."""
    (spectrum,) = read_spectra(real_data / "formats" / "bruker_s1pxrf_csv" / "MS15BL-1-122-IVSD-MAJ.CSV")
    near = np.abs(spectrum.energy_kev - line_kev) < 0.06
    excess = spectrum.counts[near] - spectrum.counts[near].min()
    assert np.average(spectrum.energy_kev[near], weights=excess) == pytest.approx(line_kev, abs=0.005)


def test_genuine_file_is_what_the_labelled_archive_holds(real_data):
    (from_file,) = read_spectra(real_data / "formats" / "bruker_s1pxrf_csv" / "MS15BL-1-122-IVSD-MAJ.CSV")
    archive = read_spectra(real_data / "labelled" / "mudrock_light_instrument_b.npz")
    (from_archive,) = [spectrum for spectrum in archive if spectrum.sample == "BL-1-122"]
    np.testing.assert_array_equal(from_file.counts, from_archive.counts)
    assert from_file.gain_kev == pytest.approx(from_archive.gain_kev, abs=1e-9)
