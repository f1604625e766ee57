"""EMSA/MAS `.msa` and its dialects."""

import numpy as np
import pytest
from instrument_files import emsa_msa as files

from dataset_builder import SpectrumFileError, iter_spectra, read_spectra


def read(tmp_path, file_content, name="a.msa"):
    path = tmp_path / name
    path.write_bytes(file_content)
    return read_spectra(path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_several_values_to_a_line_are_one_spectrum(tmp_path, end):
    (spectrum,) = read(tmp_path, files.bruker(end=end))
    np.testing.assert_array_equal(spectrum.counts, files.BRUKER_COUNTS)
    assert (spectrum.gain_kev, spectrum.offset_kev) == (0.01, -0.0255)
    assert (spectrum.live_time_s, spectrum.real_time_s) == (119.973, 131.887)
    assert (spectrum.sample, spectrum.detector, spectrum.tube_kv) == ("steel 4", None, None)
    assert spectrum.metadata["TACTLYR"] == "0.045 cm"
    assert spectrum.metadata["MNFWHM"] == "0.1437976 keV"


def test_two_detectors_are_two_spectra_with_their_own_scale_and_times(tmp_path):
    a, b = read(tmp_path, files.pixl())
    np.testing.assert_array_equal(a.counts, files.PIXL_COUNTS_A)
    np.testing.assert_array_equal(b.counts, files.PIXL_COUNTS_B)
    assert (a.detector, b.detector) == ("A", "B")
    assert (a.gain_kev, a.offset_kev) == pytest.approx((0.0079226, -0.0118))
    assert (b.gain_kev, b.offset_kev) == pytest.approx((0.0079273, -0.0132))
    assert (a.live_time_s, b.live_time_s, b.real_time_s) == (14.0815, 14.0743, 15)
    assert (a.x_mm, a.y_mm) == pytest.approx((-120.623, 131.043))  # written in metres
    assert (a.metadata["EVENTS"], b.metadata["EVENTS"]) == ("130", "129")
    assert (a.metadata["OWNER"], a.metadata["PMC"]) == ("PIXL Flight Model", "93")
    assert (a.sample, a.instrument) == ("a", "PIXL")  # the title is N/A


def test_a_file_that_does_not_say_its_energy_scale_has_none(tmp_path):
    (spectrum,) = read(tmp_path, files.pixl_one_detector())
    np.testing.assert_array_equal(spectrum.counts, files.PIXL_COUNTS_A)
    assert (spectrum.gain_kev, spectrum.offset_kev, spectrum.detector) == (None, None, "A")
    for missing in ("XUNITS", "XPERCHAN", "OFFSET"):
        (spectrum,) = read(tmp_path, files.bruker(**{missing: None}))
        assert spectrum.gain_kev is None or spectrum.offset_kev is None
        assert {"XUNITS", "XPERCHAN", "OFFSET"} - {missing} <= set(spectrum.metadata)


@pytest.mark.parametrize("name", ["horiba.txt", "decimal_comma.msa"])
def test_energies_beside_the_counts(tmp_path, name):
    (spectrum,) = read(tmp_path, files.examples()[name], "a.txt")
    np.testing.assert_array_equal(spectrum.counts, files.HORIBA_COUNTS)
    assert spectrum.gain_kev == pytest.approx(0.01)
    assert spectrum.offset_kev == pytest.approx(-0.02)
    assert (spectrum.tube_kv, spectrum.live_time_s) == (30, 30)
    assert spectrum.tube_ua == pytest.approx(1000)  # 1e6 nA
    assert (spectrum.x_mm, spectrum.y_mm) == (1.5, -2)
    assert spectrum.metadata["ELEVANGLE"].startswith("45")


def test_the_energy_column_is_enough(tmp_path):
    energies = [1.0 + 0.02 * channel for channel in range(5)]
    (spectrum,) = read(tmp_path, files.horiba(energies=energies, XPERCHAN=None, OFFSET=None, CHOFFSET=None))
    assert (spectrum.gain_kev, spectrum.offset_kev) == pytest.approx((0.02, 1.0))


def test_electronvolts(tmp_path):
    changes = {"XUNITS": "Energy (eV)", "XPERCHAN": "10", "OFFSET": "-25.5"}
    (spectrum,) = read(tmp_path, files.bruker(**changes))
    assert (spectrum.gain_kev, spectrum.offset_kev) == pytest.approx((0.01, -0.0255))


def test_values_that_are_no_counts_are_named_so(tmp_path):
    counts = [0.5, 1.25, 3, 4, 5, 6, 7, 8, 9, 10]
    (spectrum,) = read(tmp_path, files.bruker(counts=counts, YUNITS="counts/s"))
    assert spectrum.metadata["counts_unit"] == "counts/s"
    assert spectrum.counts.tolist() == [round(count, 1) for count in counts]  # the file has one decimal


def test_repeated_keywords_and_the_checksum_are_kept(tmp_path):
    content = (
        files.bruker(COMMENT="first").replace(b"#NPOINTS", b"#COMMENT     : second\n#NPOINTS") + b"#CHECKSUM: 4711\n"
    )
    (spectrum,) = read(tmp_path, content)
    assert spectrum.metadata["COMMENT"] == "second; first"
    assert spectrum.metadata["CHECKSUM"] == "4711"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (files.bruker(NPOINTS="11"), "declares 11 values but 10 were found"),
        (files.horiba(DATATYPE="Y"), "declares 5 values but 10 were found"),
        (files.pixl(DATATYPE="Y"), "declares 6 values but 12 were found"),
        (files.bruker(NPOINTS="0"), "configuration only"),
        (files.bruker(NPOINTS="2e9"), "NPOINTS must be a whole number from 0 to 65536; found '2e9'"),
        (files.bruker(NPOINTS=None), "NPOINTS must be a number"),
        (files.bruker(DATATYPE="YX"), "DATATYPE must be Y, XY or YY; found 'YX'"),
        (files.bruker(SIGNALTYPE="ELS"), "SIGNALTYPE must be one of X-ray energies, EDS or XRF; found ELS"),
        (files.bruker(XUNITS="nm"), "XUNITS must be eV or keV; found 'nm'"),
        (
            files.bruker(XPERCHAN="10", CHOFFSET=None),
            "channel width must lie from 0.5 to 500 eV; the file gives 10000 eV",
        ),
        (files.bruker(CHOFFSET="-3"), "CHOFFSET must be the channel at 0 keV, 2.5 by OFFSET .*; found -3"),
        (files.horiba(OFFSET="-0.04", CHOFFSET=None), "energy column must agree .*; channel 0 is at -0.02 keV"),
        (files.horiba(XPERCHAN="0.02", CHOFFSET=None), "energy column must agree .*; channel 4 is at 0.02 keV"),
        (files.horiba(energies=[-0.02, -0.01, 0.01, 0.02, 0.03]), "energies must rise evenly"),
        (files.bruker(counts=[0, 1.5, *range(8)]), "found 1.5 in channel 1"),
        (files.bruker(counts=[0, -1, *range(8)]), "found -1 in channel 1"),
        (files.pixl(EVENTS="130, 140"), "detector B: the header declares 140 events but 129 were found"),
        (files.bruker(BEAMKV="much"), "BEAMKV must be a number; found 'much'"),
        (files.bruker(last=""), "a line #ENDOFDATA must follow"),
        (files.bruker(spectrum=""), "a line #SPECTRUM must follow"),
    ],
)
def test_what_disagrees_is_refused(tmp_path, content, message):
    with pytest.raises(SpectrumFileError, match=message):
        read(tmp_path, content)


@pytest.mark.parametrize(
    "content",
    [files.pixl(counts_a=(0,) * 6, EVENTS=None), files.pixl(EVENTS="99, 129"), files.pixl(LIVETIME="-1, 14")],
)
def test_one_damaged_detector_does_not_cost_the_other(tmp_path, content):
    path = tmp_path / "a.msa"
    path.write_bytes(content)
    errors = []
    (spectrum,) = iter_spectra(path, on_reject=errors.append)
    assert spectrum.detector == "B"
    assert [error.place for error in errors] == ["detector A"]


def test_every_cut_is_refused_or_loses_only_what_stands_behind_the_data(tmp_path):
    whole = files.bruker()
    for length in range(1, len(whole)):
        if length < whole.index(b"#ENDOFDATA") + 10:
            with pytest.raises(SpectrumFileError):
                read(tmp_path, whole[:length])
        else:
            np.testing.assert_array_equal(read(tmp_path, whole[:length])[0].counts, files.BRUKER_COUNTS)


def test_genuine_standard_file(real_data):
    (spectrum,) = read_spectra(real_data / "formats" / "emsa_msa" / "Steel_50kv_50_ma_Rh_vac_D1.msa")
    assert (spectrum.counts.size, spectrum.total_counts) == (4096, 6536485)
    assert (spectrum.gain_kev, spectrum.offset_kev) == (0.009999, -0.9553045)
    assert (spectrum.live_time_s, spectrum.real_time_s) == (119.973, 131.887)
    # The strongest peak is iron K alpha.
    assert spectrum.energy_kev[spectrum.counts.argmax()] == pytest.approx(6.404, abs=0.02)


def test_genuine_pixl_files(real_data):
    folder = real_data / "formats" / "pixl_msa"
    a, b = read_spectra(next(folder.glob("two_detectors*.MSA")))
    assert (a.total_counts, b.total_counts) == (183302, 195317)
    assert (a.gain_kev, b.gain_kev) == pytest.approx((0.0079226, 0.0079273))
    assert (a.live_time_s, b.live_time_s) == (14.0815, 14.0743)
    for spectrum in (a, b):
        assert spectrum.counts.size == 4096
        # Iron K alpha, by a header whose gain is 0.5 % high.
        assert spectrum.energy_kev[spectrum.counts.argmax()] == pytest.approx(6.404, abs=0.05)
    (normal,) = read_spectra(next(folder.glob("Normal_A*.msa")))
    assert (normal.total_counts, normal.detector, normal.gain_kev) == (70872, "A", None)
    (total,) = read_spectra(next(folder.glob("Calibration*.msa")))
    assert (total.counts.size, total.total_counts, total.live_time_s) == (4096, 118401630, 13973.4)
    assert total.gain_kev == pytest.approx(0.0100449)


def test_genuine_horiba_file(real_data):
    (spectrum,) = read_spectra(real_data / "formats" / "horiba_xy_txt" / "Ti.txt")
    assert (spectrum.counts.size, spectrum.total_counts, spectrum.counts[492]) == (4096, 486742, 22831)
    assert spectrum.gain_kev == pytest.approx(0.01)
    assert (spectrum.live_time_s, spectrum.real_time_s, spectrum.tube_kv) == (30.0, 35.051467, 30.0)
    assert spectrum.energy_kev[spectrum.counts.argmax()] == pytest.approx(4.511, abs=0.02)  # titanium K alpha
