"""Corpora as model inputs: splits, features and batches, against the extractor and hand-made cases."""

import dataclasses
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from configuration_xrf import XRFMaskedConfig
from corpus_xrf import (
    NativeSpectra,
    SpectrumBatches,
    cached_features,
    extract_features,
    is_simulated,
    labels_of,
    load_split,
    measured_patches,
    recipe_corpus,
    spread,
    whole_batch,
)
from dataset_builder import Spectrum, simulated_recipe, spectra_to_table
from feature_extraction_xrf import XRFFeatureExtractor


@pytest.fixture
def config():
    return XRFMaskedConfig.from_size("tiny", spectrum_length=128)


@pytest.fixture
def extractor(config):
    return XRFFeatureExtractor.for_config(config)


def spectra(number, channels=128, seed=0, **fields):
    fields = {"gain_kev": 0.02, "offset_kev": 0.0, "tube_kv": 10.0, **fields}
    counts = np.random.default_rng(seed).poisson(40, (number, channels))
    return [Spectrum(row, sample=f"S-{index}", **fields) for index, row in enumerate(counts)]


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "data").mkdir(parents=True)
    for shard in range(2):
        table = spectra_to_table(spectra(30, seed=shard))
        pq.write_table(table, folder / "data" / f"train-{shard:05d}-of-00002.parquet")
    return folder


def test_features_are_those_of_the_extractor_for_ragged_rows_and_unknown_voltage(extractor):
    mixed = spectra(3) + spectra(2, channels=100, gain_kev=0.025, tube_kv=None, seed=1)
    features = extract_features(spectra_to_table(mixed), range(7, 12), extractor, "train").to_pydict()
    expected = extractor(mixed)
    assert features["sample_id"] == [7, 8, 9, 10, 11]
    np.testing.assert_array_equal(np.float32(features["input_values"]), expected["input_values"])
    np.testing.assert_array_equal(features["attention_mask"], expected["attention_mask"])


def test_a_corpus_without_voltages_counts_everything_as_measured(extractor):
    table = spectra_to_table(spectra(2, tube_kv=1.0))
    limited = extract_features(table, range(2), extractor, "train")["attention_mask"].to_pylist()
    unlimited = extract_features(table.drop_columns("tube_kv"), range(2), extractor, "train")["attention_mask"]
    assert sum(limited[0]) == 4  # patches of 0.32 keV that begin below 1 keV
    assert sum(unlimited.to_pylist()[0]) == 8


@pytest.mark.parametrize(
    "column, value, sentence",
    [
        ("counts", [1.0, float("nan")] + [0.0] * 126, "spectrum 41 of split 'train' has nan in channel 1"),
        ("counts", [1.0, -2.0] + [0.0] * 126, "spectrum 41 of split 'train' has -2 in channel 1"),
        ("counts", None, "Spectrum 41 of split 'train' has no counts"),
        ("counts", [0.0] * 128, "Spectrum 41 of split 'train' has no counts in the measured range"),
        ("gain_kev", -0.02, "spectrum 41 of split 'train' has -0.02"),
        ("gain_kev", None, "Spectrum 41 of split 'train' has no energy calibration"),
        ("offset_kev", 100.0, "Spectrum 41 of split 'train' covers 99.99 to 102.55 keV"),
    ],
)
def test_a_bad_spectrum_is_named_by_its_row(extractor, column, value, sentence):
    table = spectra_to_table(spectra(3))
    values = table[column].to_pylist()
    values[1] = value
    table = table.set_column(table.column_names.index(column), column, pa.array(values, table[column].type))
    with pytest.raises(ValueError, match=sentence):
        extract_features(table, [40, 41, 42], extractor, "train")


def test_cached_features_are_computed_once_and_anew_for_another_extractor(corpus, config):
    rows = load_split(corpus, "train")
    first = cached_features(rows, XRFFeatureExtractor.for_config(config), "train")
    again = cached_features(rows, XRFFeatureExtractor.for_config(config), "train")
    other = cached_features(rows, XRFFeatureExtractor.for_config(config, scaling="log"), "train")
    assert first.cache_files == again.cache_files != other.cache_files
    assert len(first) == 60 and first["sample_id"][:].to_pylist() == list(range(60))


def test_labels_are_cached_with_the_features_and_missing_ones_are_nan(tmp_path, extractor):
    rows = [dataclasses.replace(s, targets={"Fe": float(i)} if i != 2 else {}) for i, s in enumerate(spectra(4))]
    table = spectra_to_table(rows, ["Fe"], {"Fe": "wt%"})
    pq.write_table(table, tmp_path / "train.parquet")
    split = load_split(tmp_path, "train")
    features = cached_features(split, extractor, "train", ("Si", "Fe")).with_format("numpy")[:]
    np.testing.assert_array_equal(features["labels"], [[np.nan, 0], [np.nan, 1], [np.nan, np.nan], [np.nan, 3]])
    without = cached_features(split, extractor, "train").with_format("numpy")[:]
    assert "labels" not in without
    np.testing.assert_array_equal(without["input_values"], features["input_values"])
    np.testing.assert_array_equal(labels_of(table, ["Fe"])[:, 0], [0, 1, np.nan, 3])
    taken = NativeSpectra.from_table(table, ["Fe"]).take(np.array([3, 1]))
    assert taken.labels.tolist() == [[3], [1]]


def test_measured_patches_are_those_that_some_spectrum_measured():
    mask = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 0, 1, 0, 1, 0]], dtype=torch.uint8)
    tensors = measured_patches({"input_values": torch.ones(2, 96), "attention_mask": mask})
    assert tensors["patch_ids"].tolist() == [[1, 2, 4]] * 2
    assert tensors["attention_mask"].tolist() == [[1, 1, 0], [0, 1, 1]] and not tensors["all_measured"]
    assert measured_patches({"attention_mask": mask[1:]})["all_measured"]
    assert torch.equal(tensors["input_values"], torch.ones(2, 96))


def test_loader_fetches_whole_batches(corpus, extractor):
    features = cached_features(load_split(corpus, "train"), extractor, "train")
    loader = DataLoader(SpectrumBatches(features), batch_size=16, drop_last=True, collate_fn=whole_batch)
    batches = list(loader)
    assert len(batches) == 3
    assert batches[1]["sample_id"].tolist() == list(range(16, 32))
    assert batches[1]["input_values"].shape == (16, 128) and batches[1]["input_values"].dtype == torch.float32
    assert batches[1]["attention_mask"].shape == (16, 8)


def test_batches_are_rows_of_the_cache_in_any_order_and_from_any_process(tmp_path, extractor):
    pq.write_table(spectra_to_table(spectra(2500)), tmp_path / "train.parquet")  # stored in three pieces
    features = cached_features(load_split(tmp_path, "train"), extractor, "train")
    batches = SpectrumBatches(features)
    assert len(batches) == 2500 and len(batches._columns["input_values"]) == 3
    indices = np.random.default_rng(0).permutation(2500).tolist()
    expected = features.with_format("torch")[indices]
    for dataset in (batches, pickle.loads(pickle.dumps(batches))):
        found = dataset.__getitems__(indices)
        for name, values in expected.items():
            assert torch.equal(found[name].to(values.dtype), values), name


def test_workers_fetch_what_one_process_fetches(corpus, extractor):
    features = cached_features(load_split(corpus, "train"), extractor, "train")
    options = {"batch_size": 16, "drop_last": True, "collate_fn": whole_batch}
    alone = list(DataLoader(SpectrumBatches(features), **options))
    with_workers = list(DataLoader(SpectrumBatches(features), num_workers=2, **options))
    for first, second in zip(alone, with_workers, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_native_spectra_are_views_where_all_lengths_agree():
    table = spectra_to_table(spectra(5))
    native = NativeSpectra.from_table(table)
    np.testing.assert_array_equal(native.counts, np.stack([spectrum.counts for spectrum in spectra(5)]))
    assert not native.counts.flags.owndata
    np.testing.assert_array_equal(NativeSpectra.from_table(table.slice(2, 2)).counts, native.counts[2:4])
    np.testing.assert_array_equal(native.take(np.array([3, 1])).counts, native.counts[[3, 1]])


def test_native_spectra_of_different_lengths():
    mixed = spectra(2) + spectra(1, channels=100, gain_kev=0.03, tube_kv=None, seed=1)
    table = pa.concat_tables([spectra_to_table(mixed[:1]), spectra_to_table(mixed[1:])])
    native = NativeSpectra.from_table(table)
    for found, expected in ((native, mixed), (native.take(np.array([2, 0])), [mixed[2], mixed[0]])):
        for row, spectrum in zip(found.counts, expected, strict=True):
            np.testing.assert_array_equal(row, spectrum.counts)
        np.testing.assert_array_equal(found.gain_kev, [spectrum.gain_kev for spectrum in expected])
        np.testing.assert_array_equal(found.tube_kv, [spectrum.tube_kv or np.nan for spectrum in expected])
    assert np.isnan(NativeSpectra.from_table(table.drop_columns("tube_kv")).tube_kv).all()


def test_corpus_of_a_recipe_is_built_once():
    recipe = simulated_recipe(num_spectra=12, num_cores=6)
    folder = recipe_corpus(recipe)
    assert recipe_corpus(simulated_recipe(num_spectra=12, num_cores=6)) == folder
    assert recipe_corpus(simulated_recipe(num_spectra=12, num_cores=6, seed=1)) != folder
    assert sum(len(load_split(folder, split)) for split in ("train", "validation", "test")) == 12


def test_simulated_spectra_say_so():
    rows = Dataset.from_dict({"source": ["simulation, seed 3"] * 5})
    assert is_simulated(rows)
    assert not is_simulated(Dataset.from_dict({"source": ["simulation, seed 3", "core_7.spe"]}))
    assert not is_simulated(Dataset.from_dict({"source": ["simulation, seed 3", None]}))
    assert not is_simulated(rows.rename_column("source", "file"))


def test_spread_takes_the_ends_and_what_lies_evenly_between(corpus):
    assert spread(load_split(corpus, "train"), 3)["sample"] == ["S-0", "S-29", "S-29"]
    assert [row["sample"] for row in spread(load_split(corpus, "train", streaming=True), 2)] == ["S-0", "S-1"]
    assert len(spread(load_split(corpus, "train"), 1000)) == 60


def test_a_folder_is_not_taken_for_another_of_its_name_or_for_what_it_held_before(tmp_path):
    for folder, number in (("one", 3), ("two", 5), ("one", 4)):
        path = tmp_path / folder / "corpus" / "data" / "train-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parents[1] / "README.md").write_text(
            "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/*.parquet\n---\n"
        )
        pq.write_table(spectra_to_table(spectra(number)), path)
        assert len(load_split(path.parents[1], "train")) == number
