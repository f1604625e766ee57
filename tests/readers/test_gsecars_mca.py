"""GSECARS/EPICS multi-element `.mca`."""

import numpy as np
import pytest
from instrument_files.gsecars_mca import COUNTS, content, examples, one_element

from dataset_builder import SpectrumFileError, iter_spectra, read_spectra


def read(tmp_path, file_content):
    path = tmp_path / "a.mca"
    path.write_bytes(file_content)
    return read_spectra(path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_each_element_has_its_own_counts_scale_and_times(tmp_path, end):
    first, second = read(tmp_path, content(end=end))
    np.testing.assert_array_equal(first.counts, [row[0] for row in COUNTS])
    np.testing.assert_array_equal(second.counts, [row[1] for row in COUNTS])
    assert (first.gain_kev, first.offset_kev) == (0.01465549, -0.01068655)
    assert (second.gain_kev, second.offset_kev) == (0.01463605, -0.009660292)
    assert (first.live_time_s, first.real_time_s) == (96.360748, 120.011093)
    assert (second.live_time_s, second.real_time_s) == (96.160698, 120.004974)
    assert (first.detector, second.detector, first.sample) == ("1", "2", "a")


def test_metadata_is_that_of_the_element(tmp_path):
    first, second = read(tmp_path, content())
    assert (first.metadata["ROI_0_LEFT"], second.metadata["ROI_0_LEFT"]) == ("1", "2")
    assert (first.metadata["ROI_0_LABEL"], second.metadata["ROI_0_LABEL"]) == ("Ca Ka", "Ti Ka")
    assert first.metadata["13BMA:E:Energy.VAL"] == "35000.0000 (Mono Energy)"
    assert first.metadata["13BMD:m81.VAL"] == "131.3602 (Sample Stage Y (vert))"
    assert first.metadata["DATE"] == "Jan 30, 2013 15:25:17.766"


def test_a_date_of_as_many_words_as_elements_stays_whole(tmp_path):
    four = [(*row, 1, 1) for row in COUNTS]
    spectra = read(tmp_path, content(four, 4, CAL_OFFSET=None, REAL_TIME=None, LIVE_TIME=None))
    assert [spectrum.metadata["DATE"] for spectrum in spectra] == ["Jan 30, 2013 15:25:17.766"] * 4
    assert spectra[3].gain_kev is None


def test_one_element(tmp_path):
    (spectrum,) = read(tmp_path, examples()["one_element.mca"])
    np.testing.assert_array_equal(spectrum.counts, [row[0] for row in COUNTS])
    assert (spectrum.live_time_s, spectrum.metadata["ROI_0_LABEL"]) == (96.360748, "Ca Ka")


def test_a_curved_scale_becomes_the_best_line_with_its_deviation(tmp_path):
    quadratic = 4e-9
    counts = [[1] for _ in range(1000)]
    scale = {"CAL_OFFSET": "0.01", "CAL_SLOPE": "0.015", "CAL_QUAD": f"{quadratic}"}
    (spectrum,) = read(tmp_path, content(counts, 1, REAL_TIME=None, LIVE_TIME=None, **scale))
    channel = np.arange(1000)
    curve = 0.01 + 0.015 * channel + quadratic * channel**2
    gain, offset = np.polyfit(channel, curve, 1)
    assert (spectrum.gain_kev, spectrum.offset_kev) == pytest.approx((gain, offset), rel=1e-6)
    # The best line through a parabola over N channels is off by quad N^2 / 6 at the ends.
    assert float(spectrum.metadata["deviation_from_line_ev"]) == pytest.approx(
        1000 * quadratic * 1000**2 / 6, abs=0.01
    )
    assert (spectrum.metadata["CAL_QUAD"], spectrum.metadata["CAL_SLOPE"]) == ("4e-09", "0.015")


def test_an_element_too_curved_for_a_line_is_refused_and_the_others_are_read(tmp_path):
    path = tmp_path / "a.mca"
    counts = [(1, 1)] * 1000
    path.write_bytes(content(counts, CAL_QUAD="0 2e-07"))  # 33 eV at the ends, over two channels
    errors = []
    (spectrum,) = iter_spectra(path, on_reject=errors.append)
    assert spectrum.detector == "1"
    (error,) = errors
    assert error.place == "element 2"
    assert "within 1 channel widths of a line" in error.reason


def test_an_element_that_was_never_calibrated_has_no_scale(tmp_path):
    (spectrum,) = read(tmp_path, one_element(CAL_OFFSET="0.0", CAL_SLOPE="1.0"))
    assert (spectrum.gain_kev, spectrum.offset_kev) == (None, None)
    assert spectrum.metadata["CAL_SLOPE"] == "1.0"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (content(num_channels=7), "declares 7 channels but 6 were found"),
        (content(num_elements=3), "channel 0: a row must have 3 counts, one for each element; found 2"),
        (content(num_elements=0), "ELEMENTS must be a whole number from 1 to 1000; found '0'"),
        (content(num_channels=2 * 10**9), "CHANNELS must be a whole number from 1 to 65536"),
        (content(LIVE_TIME="96.4 x"), "LIVE_TIME must be a number; found '96.4 x'"),
        (content(CAL_SLOPE="14.6 14.6"), "element 1: the channel width must lie from 0.5 to 500 eV"),
        (content(CAL_SLOPE="0 0"), "the channel width must lie"),
        (content([(1, 2), (3, 2.5)]), "element 2: counts must be whole numbers .* found 2.5 in channel 1"),
        (content([(1, 0), (3, 0)]), "element 2: the spectrum must hold counts"),
        (content().replace(b"DATA:", b"DAT:"), "a line DATA: .* must follow"),
    ],
)
def test_what_disagrees_is_refused(tmp_path, content, message):
    with pytest.raises(SpectrumFileError, match=message):
        read(tmp_path, content)


def test_genuine_file(real_data):
    spectra = read_spectra(real_data / "formats" / "gsecars_mca" / "srm1832.mca")
    assert [spectrum.detector for spectrum in spectra] == ["1", "2", "3", "4"]
    assert [spectrum.counts.size for spectrum in spectra] == [2048] * 4
    assert [spectrum.total_counts for spectrum in spectra] == [4634946, 4484726, 5866804, 7481558]
    assert [spectrum.live_time_s for spectrum in spectra] == [96.360748, 96.160698, 87.729240, 77.401505]
    assert [spectrum.gain_kev for spectrum in spectra] == [0.01465549, 0.01463605, 0.01462989, 0.01463264]
    for spectrum in spectra:
        # The strongest peak of the glass film standard is copper K alpha.
        assert spectrum.energy_kev[spectrum.counts.argmax()] == pytest.approx(8.046, abs=0.03)
