"""`Spectrum`, its corpus rows, and what importing the package costs."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from dataset_builder import (
    FIXED_COLUMNS,
    Spectrum,
    SpectrumFileError,
    row_to_spectrum,
    spectra_to_table,
    spectrum_features,
    table_to_spectra,
)


def make_spectrum(**changes):
    fields = {
        "counts": np.array([0, 3, 5, 2]),
        "gain_kev": 0.02,
        "offset_kev": -0.01,
        "live_time_s": 10.5,
        "tube_kv": 15.0,
        "anode": "Rh",
        "sample": "BL-1-122",
        "core": "mudrock",
        "depth_mm": 122.0,
        "targets": {"CaCO3": 12.5},
        "target_units": {"CaCO3": "wt%"},
        "metadata": {"Vacuum": "0"},
        "source": "a.csv",
    }
    return Spectrum(**{**fields, **changes})


def test_energy_of_channels_is_offset_plus_gain_times_number():
    np.testing.assert_allclose(make_spectrum().energy_kev, [-0.01, 0.01, 0.03, 0.05])


def test_repr_shows_what_a_scientist_asks_first():
    counts = np.zeros(2048)
    counts[100] = 3_410_000
    spectrum = Spectrum(
        counts, gain_kev=0.0198374, offset_kev=0.0, tube_kv=15.0, live_time_s=171.867, sample="mudrock BL-1-122"
    )
    assert repr(spectrum) == "Spectrum(mudrock BL-1-122, 2048 channels, 0.00-40.6 keV, 15 kV, 171.9 s, 3.41 M counts)"
    assert repr(Spectrum([1, 2])) == "Spectrum(2 channels, 3 counts)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": np.zeros((2, 3))}, r"one-dimensional.*BL-1-122 has shape \(2, 3\)"),
        ({"counts": []}, "at least one channel"),
        ({"counts": [1.0, np.nan, 2.0]}, "finite; BL-1-122 has nan in channel 1"),
        ({"counts": [1.0, np.inf]}, "finite; BL-1-122 has inf in channel 1"),
        ({"counts": [1, -4]}, "negative; BL-1-122 has -4 in channel 1"),
        ({"counts": ["a", "b"]}, "must be numbers"),
        ({"gain_kev": -0.02}, "gain_kev must be positive; BL-1-122 has -0.02"),
        ({"gain_kev": 0.0}, "gain_kev must be positive"),
        ({"gain_kev": np.nan}, "gain_kev must be positive"),
        ({"offset_kev": np.inf}, "offset_kev must be finite"),
    ],
)
def test_bad_input_is_refused_with_its_value(changes, message):
    with pytest.raises(ValueError, match=message):
        make_spectrum(**changes)


def test_energy_needs_a_calibration():
    with pytest.raises(ValueError, match="no energy calibration"):
        _ = Spectrum([1, 2]).energy_kev


def test_file_error_names_file_and_place_and_survives_pickling():
    error = pickle.loads(pickle.dumps(SpectrumFileError("a.csv", "counts must be finite.", "row 3")))
    assert str(error) == "a.csv, row 3: counts must be finite."
    assert (error.path, error.place, error.reason) == ("a.csv", "row 3", "counts must be finite.")
    assert isinstance(error, ValueError)


def test_rows_of_a_table_give_the_spectra_back():
    bare = Spectrum(np.arange(7, dtype=np.float64))
    spectra = [make_spectrum(), bare]
    table = spectra_to_table(spectra, ["CaCO3", "TOC"], {"CaCO3": "wt%", "TOC": "wt%"})
    assert table.column_names == [*FIXED_COLUMNS, "CaCO3", "TOC"]
    assert table["TOC"].null_count == 2
    for original, restored in zip(spectra, table_to_spectra(table)):
        np.testing.assert_array_equal(original.counts, restored.counts)
        for name in ("gain_kev", "offset_kev", "live_time_s", "tube_kv", "sample", "core", "depth_mm", "targets"):
            assert getattr(original, name) == getattr(restored, name), name
        assert original.metadata == restored.metadata
        assert original.target_units == restored.target_units


def test_row_of_a_dataset_with_nan_for_missing_values():
    row = {"counts": [1.0, 2.0], "gain_kev": 0.02, "depth_mm": float("nan"), "TOC": float("nan")}
    spectrum = row_to_spectrum({**row, "target_units": json.dumps({"TOC": "wt%"}), "unknown_column": 3.0})
    assert spectrum.depth_mm is None
    assert spectrum.targets == {}


def test_row_without_counts_is_refused():
    with pytest.raises(ValueError, match="must have counts"):
        row_to_spectrum({"sample": "a"})


@pytest.mark.parametrize("names", [["counts"], ["TOC", "TOC"]])
def test_target_names_that_clash_are_refused(names):
    with pytest.raises(ValueError, match="unique"):
        spectrum_features(names)


def test_importing_the_package_loads_nothing_heavy():
    heavy = ["torch", "transformers", "datasets", "pyarrow", "pandas", "xraylib", "scipy"]
    code = f"import sys, dataset_builder; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_no_part_of_the_package_needs_torch():
    code = (
        "import sys, dataset_builder\n"
        "for name in dataset_builder.__all__: getattr(dataset_builder, name)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    # `datasets` imports torch itself where it is installed; it is told not to.
    command = [sys.executable, "-c", "import os; os.environ['USE_TORCH'] = '0'\n" + code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_unknown_name_is_an_attribute_error():
    import dataset_builder

    with pytest.raises(AttributeError, match="no_such_name"):
        _ = dataset_builder.no_such_name
