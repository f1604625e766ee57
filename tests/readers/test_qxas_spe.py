"""QXAS (IAEA) `.spe`."""

import numpy as np
import pytest
from instrument_files import avaatech_spe, itrax_spe
from instrument_files.qxas_spe import CALIBRATED, COUNTS, examples, qxas_spe

from dataset_builder import SpectrumFileError, read_spectra
from dataset_builder.readers import recognise_format


def read(folder, content, name="a.spe"):
    (folder / name).write_bytes(content)
    (spectrum,) = read_spectra(folder / name)
    return spectrum


@pytest.mark.parametrize("name", examples())
def test_examples(tmp_path, name):
    spectrum = read(tmp_path, examples()[name], name)
    assert recognise_format(tmp_path / name).name == "QXAS spe"
    np.testing.assert_array_equal(spectrum.counts, COUNTS)
    assert spectrum.source == name


def test_header(tmp_path):
    spectrum = read(tmp_path, qxas_spe(sections=CALIBRATED))
    assert (spectrum.sample, spectrum.live_time_s, spectrum.real_time_s) == ("steel, 40 kV", 98.0, 100.0)
    assert spectrum.metadata["SPEC_REM"] == "first remark\nsecond remark"
    assert (spectrum.gain_kev, spectrum.offset_kev) == pytest.approx((0.0205, -0.0105))  # $MCA_CAL: before $ENER_FIT:
    assert spectrum.metadata["calibration"] == "$MCA_CAL:"


def test_a_file_without_header_is_named_after_itself_and_has_no_energy_scale(tmp_path):
    spectrum = read(tmp_path, qxas_spe(), "glass.spe")
    assert (spectrum.sample, spectrum.live_time_s) == ("glass", None)
    assert (spectrum.gain_kev, spectrum.offset_kev) == (None, None)


@pytest.mark.parametrize(
    ("name", "text", "first", "expected"),
    [
        ("ENER_FIT", "0.5 0.02", 0, (0.02, 0.5)),
        ("ENER_FIT", "0.5 0.02", 1, (0.02, 0.52)),  # energies go by channel numbers; index 0 is channel 1
        ("MCA_CAL", "3\n0.5 0.02 1e-6 keV", 0, (0.02, 0.5)),  # bends by 0.12 eV at channel 11
        ("MCA_CAL", "0.5 0,02", 0, (0.02, 0.5)),  # no number of coefficients, decimal comma
        ("MCA_CAL", "2\n0.0005 0.00002 MeV", 0, (0.02, 0.5)),
        ("MCA_CAL", "3\n0.5 0.02 1e-3 keV", 0, None),  # bends by six channels
        ("MCA_CAL", "3\n0 0.02 1e299 keV", 0, None),
        ("ENER_FIT", "0.000000 0.000000", 0, None),  # what programs write without a calibration
        ("ENER_FIT", "0 1", 0, None),
        ("MCA_CAL", "2\n0 20", 0, None),  # eV taken for keV
    ],
)
def test_energy_calibration(tmp_path, name, text, first, expected):
    spectrum = read(tmp_path, qxas_spe(sections={"DATA": None, name: text}, first=first))
    if expected is None:
        assert (spectrum.gain_kev, spectrum.offset_kev) == (None, None)
        assert spectrum.metadata["calibration"].startswith("none: ")
    else:
        assert (spectrum.gain_kev, spectrum.offset_kev) == pytest.approx(expected)


def test_the_three_spe_formats_are_told_apart_by_content(tmp_path):
    contents = {
        "Avaatech spe": avaatech_spe.avaatech_spe(),
        "Itrax spe": itrax_spe.itrax_spe(),
        "QXAS spe": qxas_spe(sections={"ACC_VOLT": "10"} | CALIBRATED),
    }
    for name, content in contents.items():
        (tmp_path / "same.spe").write_bytes(content)
        assert recognise_format(tmp_path / "same.spe").name == name
    (tmp_path / "same.spe").write_bytes(b'if line == "$TotalCPS:":\n    read("$DATA:")\n')
    assert recognise_format(tmp_path / "same.spe") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (qxas_spe(last=12), r"\$DATA: the header declares 13 channels but 12 were found"),
        (qxas_spe()[:-30], "declares 12 channels but"),
        (qxas_spe(sections={"MCA_CAL": "2\n0 x"}), r"\$MCA_CAL: a coefficient must be a number; found 'x'"),
        (qxas_spe() + b"$X:\n" * 1000, "at most 1000 sections"),
        (b"$SPEC_ID:\nsteel\n", "the first and the last channel must stand below"),
    ],
)
def test_what_is_refused(tmp_path, content, message):
    (tmp_path / "a.spe").write_bytes(content)
    with pytest.raises(SpectrumFileError, match=message):
        read_spectra(tmp_path / "a.spe")


def test_genuine_file(real_data):
    """Expected numbers were taken with `tail -n +5 Steel.spe | tr -s ' ' '\\n'`: all values after the fourth line."""
    path = real_data / "formats" / "qxas_spe" / "Steel.spe"
    (spectrum,) = read_spectra(path)
    values = [float(value) for line in path.read_text().splitlines()[4:] for value in line.split()]
    assert spectrum.counts.size == 2048
    assert spectrum.counts.tolist() == values
    assert spectrum.total_counts == 5_607_017
    assert (spectrum.sample, spectrum.gain_kev) == ("Steel", None)
