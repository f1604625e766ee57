"""`inspect_file` says what a file is, what is missing and what was left out, and draws it."""

import re

import numpy as np
import pytest
from instrument_files.fits_table import type_one
from instrument_files.npz import archive
from instrument_files.table import SEMICOLONS, WIDE
from PIL import Image
from synthetic_spectrum import synthetic

from dataset_builder import ColumnMapping, SpectrumFileError, inspect_file


def test_a_line_a_spectrum_with_its_conditions(tmp_path):
    (tmp_path / "a.npz").write_bytes(archive(filter=np.array(["Al 1 mm", ""]), operator=np.array(["Ada", "Ben"])))
    header, first, second, fields = inspect_file(tmp_path / "a.npz").splitlines()
    assert header == f"{tmp_path / 'a.npz'}: NumPy archive, 2 spectra"
    assert first.strip() == (
        "Spectrum(a, 3 channels, -0.90--0.9 keV, 50 kV, 10.0 s, 6 counts) Mo tube, filter Al 1 mm"
    )
    assert second.strip().endswith("22 counts) Rh tube")
    assert fields == "further header fields: operator"


def test_long_files_are_shortened_and_folders_are_summed(tmp_path):
    (tmp_path / "a.npz").write_bytes(archive())
    (tmp_path / "b.npz").write_bytes(archive())
    (tmp_path / "wide.csv").write_text(WIDE)
    text = inspect_file(tmp_path, max_spectra=3)
    assert text.startswith(f"{tmp_path}: NumPy archive (2 files), CSV table (1 file), 6 spectra\n")
    assert text.count("Spectrum(") == 3 and "\n  and 3 more" in text


def test_what_was_rejected_and_rates_are_said(tmp_path):
    counts = np.ones((30, 4), int)
    counts[5:20] = 0
    rates = dict.fromkeys(("counts", "num_channels", "elements", "weight_percent", "sample", "anode_z"))
    rates |= dict.fromkeys(("gain_kev", "offset_kev", "live_time_s"), np.array(1.0))
    (tmp_path / "a.npz").write_bytes(archive(**rates | {"counts_per_second": counts}))
    text = inspect_file(tmp_path / "a.npz")
    assert "NumPy archive, 15 spectra" in text
    assert "warning: 15 of 15 hold counts per second" in text
    assert text.count("\nrejected: ") == 11 and "row 5: the spectrum must hold counts" in text
    assert text.endswith("rejected: 5 more")


def test_a_missing_calibration_comes_with_a_guess_that_is_not_applied(tmp_path):
    counts = np.array([synthetic(0.02, 0.0).counts, synthetic(0.02, 0.0, seed=1).counts])
    np.savez(tmp_path / "a.npz", counts=counts)
    text = inspect_file(tmp_path / "a.npz", plot=tmp_path / "a.png")
    assert "warning: 2 of 2 have no energy calibration; the lines of the first suggest gain_kev=" in text
    assert float(re.search(r"gain_kev=([\d.]+)", text)[1]) == pytest.approx(0.02, rel=1e-3)
    assert "confidence 1.00" in text and "Ca Kα" in text and "Nothing was changed" in text
    assert "keV" not in text.splitlines()[1]
    assert text.endswith("2 of the spectra on a guessed energy scale")


@pytest.mark.parametrize(("peaks", "message"), [((), "At least two clear peaks"), ((3, 8.5), "suggest none convinc")])
def test_an_unconvincing_guess_is_called_so(tmp_path, peaks, message):
    np.savez(tmp_path / "a.npz", counts=synthetic(0.02, 0.0, dict.fromkeys(peaks, 1e5)).counts[None])
    text = inspect_file(tmp_path / "a.npz", plot=tmp_path / "a.png")
    assert "1 of 1 have no energy calibration" in text and message in text
    assert text.endswith("1 of the spectra over their channels")


def test_the_plot_is_a_png_of_the_first_spectra(tmp_path):
    np.savez(tmp_path / "a.npz", counts=[synthetic(0.02, 0.0).counts] * 8, gain_kev=0.02, offset_kev=0.0)
    text = inspect_file(tmp_path / "a.npz", plot=tmp_path / "a.png")
    assert text.endswith(f"plot: {tmp_path / 'a.png'}, 6 of the spectra")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG" and image.height > image.width


def test_a_mapping_and_unknown_files(tmp_path):
    (tmp_path / "a.csv").write_text(SEMICOLONS)
    mapping = ColumnMapping(channels="ch", constants={"gain_kev": 0.02, "offset_kev": 0.0})
    assert "CSV table, 2 spectra" in inspect_file(tmp_path / "a.csv", column_mapping=mapping)
    assert "rejected: " in inspect_file(tmp_path / "a.csv") and "give a column mapping" in inspect_file(
        tmp_path / "a.csv"
    )
    (tmp_path / "a.xyz").write_text("?")
    with pytest.raises(SpectrumFileError, match="the format is not known"):
        inspect_file(tmp_path / "a.xyz")


def test_a_gain_without_offset_counts_as_no_calibration(tmp_path):
    pytest.importorskip("astropy")
    (tmp_path / "a.fits").write_bytes(type_one())
    text = inspect_file(tmp_path / "a.fits")
    assert "FITS table, 1 spectrum\n" in text and "SDD-1, filter none" in text
    assert "1 of 1 have no energy calibration" in text
