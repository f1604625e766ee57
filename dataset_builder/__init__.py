"""Spectra from instrument files, tables and physics to a Parquet corpus.

Names are imported when they are first used, so `import dataset_builder` needs only numpy.
"""

from importlib import import_module

from .spectrum import Spectrum, SpectrumFileError

_MODULE_OF = {
    "FIXED_COLUMNS": "features",
    "row_to_spectrum": "features",
    "spectra_to_table": "features",
    "spectrum_features": "features",
    "table_schema": "features",
    "table_to_spectra": "features",
    "guess_calibration": "calibration",
    "inspect_file": "inspection",
    "ColumnMapping": "readers",
    "iter_spectra": "readers",
    "read_spectra": "readers",
    "check_groups_separated": "splits",
    "group_names": "splits",
    "split_by_group": "splits",
    "SimulatedSource": "simulation",
    "FilesPart": "recipe",
    "Recipe": "recipe",
    "SimulationPart": "recipe",
    "LeakageError": "builder",
    "XRFDatasetBuilder": "builder",
    "build_corpus": "corpus",
    "simulated_recipe": "corpus",
}

__all__ = ["Spectrum", "SpectrumFileError", *_MODULE_OF]


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
