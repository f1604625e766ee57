"""The registry of formats: what is found in files and folders, what is passed over and what is refused."""

import os
import pkgutil
from importlib import import_module

import instrument_files
import pytest
from instrument_files.npz import archive
from instrument_files.table import SEMICOLONS, WIDE

from dataset_builder import ColumnMapping, SpectrumFileError, iter_spectra, read_spectra
from dataset_builder.readers import FORMATS, find_sources, read_source, recognise_format

MAPPING = ColumnMapping(channels="ch", columns={"sample": "id"})


def test_folders_are_searched_in_order_and_strangers_are_passed_over(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.csv").write_text(WIDE)
    (tmp_path / "a.npz").write_bytes(archive())
    (tmp_path / "notes.md").write_text("not a spectrum")
    (tmp_path / ".hidden.npz").write_bytes(archive())
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    assert [spectrum.source for spectrum in iter_spectra(tmp_path)] == ["a.npz", "a.npz", "2.csv", "2.csv"]


def test_tables_without_channels_are_passed_over_in_a_folder_but_not_when_named(tmp_path):
    (tmp_path / "a.npz").write_bytes(archive())
    (tmp_path / "concentrations.csv").write_text("sample,Ca,Fe\na,1.5,2.5\nb,3.5,4.5\n")
    (tmp_path / "prefixed.csv").write_text(SEMICOLONS)
    assert find_sources(tmp_path) == [tmp_path / "a.npz"]
    assert find_sources(tmp_path, MAPPING) == [tmp_path / "a.npz", tmp_path / "prefixed.csv"]
    assert [spectrum.sample for spectrum in iter_spectra(tmp_path, MAPPING)] == ["a", "b", "a", "b"]
    with pytest.raises(SpectrumFileError, match="the channel columns must be named channel_0"):
        read_spectra(tmp_path / "concentrations.csv")


def test_rows_are_skipped_and_reported_when_asked(tmp_path):
    (tmp_path / "a.csv").write_text(SEMICOLONS.replace("1;2;3", "0;0;0"))
    rejected = []
    spectra = list(iter_spectra(tmp_path, MAPPING, on_reject=rejected.append))
    assert [spectrum.sample for spectrum in spectra] == ["b"]
    assert [error.place for error in rejected] == ["row 0"]


def test_missing_unknown_and_empty_inputs_are_refused(tmp_path):
    with pytest.raises(SpectrumFileError, match="no such file"):
        read_spectra(tmp_path / "nothing.csv")
    with pytest.raises(SpectrumFileError, match="the folder must hold spectra"):
        read_spectra(tmp_path)
    for name, content in (("a.xyz", b"?"), ("a.npz", b""), ("a.parquet", b""), ("a.csv", b"1,2\n3,4\n5,6\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SpectrumFileError, match="the format is not known"):
            read_spectra(tmp_path / name)
        with pytest.raises(SpectrumFileError, match="the format is not known"):  # it changed since it was found
            list(read_source(tmp_path / name))


def test_every_format_has_examples_that_it_knows(tmp_path):
    """What the fuzz test starts from; a file that another format takes would never reach its reader."""
    known = set()
    for module in pkgutil.iter_modules(instrument_files.__path__):
        examples = getattr(import_module(f"instrument_files.{module.name}"), "examples", dict)()
        for name, content in examples.items():
            (tmp_path / name).write_bytes(content)
            known.add(getattr(recognise_format(tmp_path / name), "name", None))
    assert known >= {file_format.name for file_format in FORMATS}
