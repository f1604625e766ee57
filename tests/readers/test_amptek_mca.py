"""Amptek `.mca`."""

import numpy as np
import pytest
from instrument_files.amptek_mca import CALIBRATION, COUNTS, HEADER, content, examples

from dataset_builder import SpectrumFileError, read_spectra


def read(tmp_path, file_content):
    path = tmp_path / "a.mca"
    path.write_bytes(file_content)
    return read_spectra(path)


@pytest.mark.parametrize("name", examples())
def test_counts_with_and_without_header(tmp_path, name):
    (spectrum,) = read(tmp_path, examples()[name])
    np.testing.assert_array_equal(spectrum.counts, COUNTS)
    has_header = name != "no_header.mca"
    assert (spectrum.live_time_s, spectrum.real_time_s) == ((100.0, 100.714) if has_header else (None, None))
    assert spectrum.instrument == ("Amptek DP5" if has_header else "Amptek")
    assert (spectrum.sample, spectrum.tube_kv) == ("a", None)  # HVSE is the detector's bias


def test_the_scale_is_the_line_through_the_points(tmp_path):
    (spectrum,) = read(tmp_path, examples()["calibrated.mca"])
    gain, offset = np.polyfit([1, 3, 7], [0.020, 0.062, 0.140], 1)
    assert (spectrum.gain_kev, spectrum.offset_kev) == pytest.approx((gain, offset))
    assert spectrum.metadata["CALIBRATION"] == "; ".join(CALIBRATION)
    (spectrum,) = read(tmp_path, content(calibration=("LABEL - eV", "1 20", "3 62", "7 140")))
    assert (spectrum.gain_kev, spectrum.offset_kev) == pytest.approx((gain, offset))


@pytest.mark.parametrize("calibration", [("LABEL - Channel", "0 0", "600 10.5"), ("LABEL - keV", "600 10.5")])
def test_points_without_unit_and_single_points_are_no_scale(tmp_path, calibration):
    (spectrum,) = read(tmp_path, content(calibration=calibration))
    assert (spectrum.gain_kev, spectrum.offset_kev) == (None, None)
    assert spectrum.metadata["CALIBRATION"] == "; ".join(calibration)


def test_every_section_is_one_entry_of_the_metadata(tmp_path):
    (spectrum,) = read(tmp_path, content())
    assert spectrum.metadata["DP5 CONFIGURATION"] == "RESC=?; MCAC=8; HVSE=-135"
    assert spectrum.metadata["DPP STATUS"].endswith("Board Temp: 30°C")
    assert (spectrum.metadata["SERIAL_NUMBER"], spectrum.metadata["GAIN"]) == ("31907", "3")


def test_sample_is_the_description_else_a_tag_of_the_user(tmp_path):
    (spectrum,) = read(tmp_path, content(header=("TAG - coal 4", *HEADER[1:])))
    assert spectrum.sample == "coal 4"
    (spectrum,) = read(tmp_path, content(header=("TAG - coal 4", "DESCRIPTION - pellet - 2", *HEADER[2:])))
    assert spectrum.sample == "pellet - 2"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (content(configuration=("MCAC=2048;",)), "declares 2048 channels but 8 were found"),
        (content(configuration=("MCA Channels: 9",)), "declares 9 channels but 8 were found"),
        (content(status=("Slow Count: 20",)), "declares 20 counts .Slow Count. but 33 were found"),
        (content(counts=[*COUNTS[:7], "2 3"]), "the count of channel 7 must be a number; found '2 3'"),
        (content(counts=[*COUNTS[:7], -2]), "found -2 in channel 7"),
        (content(counts=[*COUNTS[:7], 10**13], status=()), "found 1e.13 in channel 7"),
        (content(counts=[], configuration=()), "a spectrum must have 1 to 65536 channels; found 0"),
        (content(calibration=("LABEL - keV", "1 0.02", "7")), "a calibration point must be a channel and an energy"),
        (content(calibration=("LABEL - keV", "2 0.02", "2 0.02")), "needs the energies of two channels"),
        (content(calibration=("LABEL - keV", "1 20", "7 140")), "the channel width must lie"),
        (content(calibration=("LABEL - keV", "0 0", "300 6.4", "500 10")), "energies must rise evenly"),
        (content(header=("LIVE_TIME - long",)), "LIVE_TIME must be a number; found 'long'"),
        (content() + content(), "<<PMCA SPECTRUM>> comes again"),
        (content().replace(b"<<DATA>>", b""), "a section <<DATA>> must follow"),
    ],
)
def test_what_disagrees_is_refused(tmp_path, content, message):
    with pytest.raises(SpectrumFileError, match=message):
        read(tmp_path, content)


def test_more_pulses_than_counts_are_no_disagreement(tmp_path):
    # Pulses above the last channel are counted by the processor and not in the spectrum.
    (spectrum,) = read(tmp_path, content(status=("Slow Count: 3000",)))
    assert spectrum.total_counts == sum(COUNTS)


def test_without_the_end_mark_only_a_full_set_of_channels_is_complete(tmp_path):
    def unfinished(num_channels):
        whole = content(counts=[1] * num_channels, configuration=(), status=())
        return whole[: whole.index(b"<<END>>")]

    assert read(tmp_path, unfinished(512))[0].counts.size == 512
    for num_channels in (8, 511, 600):
        with pytest.raises(SpectrumFileError, match=f"<<END>> must follow .* after {num_channels} channels"):
            read(tmp_path, unfinished(num_channels))


def test_genuine_files(real_data):
    folder = real_data / "formats" / "amptek_mca"
    (dp5,) = read_spectra(folder / "with_header.mca")
    assert (dp5.counts.size, dp5.total_counts, dp5.counts[406]) == (2048, 724836, 8408)
    assert (dp5.live_time_s, dp5.real_time_s) == (100.0, 100.714)
    assert (dp5.sample, dp5.instrument, dp5.gain_kev) == ("004", "Amptek DP5", None)
    (px4,) = read_spectra(folder / "SAMPLE_G.mca")
    assert (px4.counts.size, px4.total_counts, px4.counts[360]) == (1024, 708772, 21697)
    assert (px4.live_time_s, px4.real_time_s, px4.instrument) == (122.202, 180.0, "Amptek PX4")
    assert (px4.sample, px4.gain_kev) == ("SAMPLE_G", None)
