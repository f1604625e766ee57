"""Corpora as model inputs: splits, features and batches, against the extractor and hand-made cases."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from configuration_xrf import XRFMaskedConfig
from corpus_xrf import (
    SpectrumBatches,
    SpectrumStream,
    cached_features,
    extract_features,
    feature_batches,
    load_split,
    repeated_stream,
    spread,
    whole_batch,
)
from dataset_builder import Spectrum, spectra_to_table
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


def test_loader_fetches_whole_batches(corpus, extractor):
    features = cached_features(load_split(corpus, "train"), extractor, "train")
    loader = DataLoader(SpectrumBatches(features), batch_size=16, drop_last=True, collate_fn=whole_batch)
    batches = list(loader)
    assert len(batches) == 3
    assert batches[1]["sample_id"].tolist() == list(range(16, 32))
    assert batches[1]["input_values"].shape == (16, 128) and batches[1]["input_values"].dtype == torch.float32
    assert batches[1]["attention_mask"].shape == (16, 8)


def test_spread_takes_the_ends_and_what_lies_evenly_between(corpus):
    assert spread(load_split(corpus, "train"), 3)["sample"] == ["S-0", "S-29", "S-29"]
    assert [row["sample"] for row in spread(load_split(corpus, "train", streaming=True), 2)] == ["S-0", "S-1"]
    assert len(spread(load_split(corpus, "train"), 1000)) == 60


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_gives_every_spectrum_once_per_epoch_over_processes_and_workers(corpus, extractor, workers):
    expected = feature_batches(load_split(corpus, "train"), extractor, "train")
    expected = {tuple(row) for batch in expected for row in batch["input_values"].tolist()}
    seen, ids = [], []
    for process in range(2):
        rows = load_split(corpus, "train", streaming=True)
        stream = SpectrumStream(rows, extractor, "train", 5, seed=0, process_index=process, num_processes=2)
        for batch in DataLoader(stream, batch_size=None, num_workers=workers):
            assert batch["input_values"].shape == (5, 128)
            seen += [tuple(row) for row in batch["input_values"].tolist()]
            ids += batch["sample_id"].tolist()
    assert len(seen) == len(set(seen)) == len(set(ids)) == 60
    assert set(seen) == expected


def test_stream_is_shuffled_within_blocks_by_seed_and_epoch_and_can_be_continued(corpus, extractor):
    def drawn(number, seed=0, first_batch=0, block=20):
        rows = load_split(corpus, "train", streaming=True)
        stream = SpectrumStream(rows, extractor, "train", 10, seed, block=block)
        loader = DataLoader(stream, batch_size=None)
        batches = repeated_stream(loader, stream, torch.device("cpu"), first_batch)
        return [(epoch, batch["sample_id"].tolist()) for (epoch, batch), _ in zip(batches, range(number))]

    batches = drawn(12)
    assert [epoch for epoch, _ in batches] == [0] * 6 + [1] * 6
    assert sorted(batches[0][1] + batches[1][1]) == list(range(20))
    assert batches[0][1] != list(range(10)) and batches[0][1] != batches[6][1]
    assert drawn(12) == batches and drawn(5, first_batch=7) == batches[7:]
    assert drawn(1, seed=1) != batches[:1]


def test_stream_shorter_than_a_batch_is_refused(corpus, extractor):
    stream = SpectrumStream(load_split(corpus, "train", streaming=True), extractor, "train", 61, seed=0)
    with pytest.raises(ValueError, match="no whole batch of 61 spectra"):
        next(repeated_stream(DataLoader(stream, batch_size=None), stream, torch.device("cpu")))


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_spectrum_in_a_stream_is_one_sentence(tmp_path, extractor, workers):
    table = spectra_to_table(spectra(4))
    gains = pa.array([0.02, 0.02, 0.0, 0.02])
    pq.write_table(table.set_column(table.column_names.index("gain_kev"), "gain_kev", gains), tmp_path / "t.parquet")
    stream = SpectrumStream(load_split(tmp_path, "train", streaming=True), extractor, "train", 2, seed=0)
    batches = repeated_stream(DataLoader(stream, batch_size=None, num_workers=workers), stream, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"\Again_kev must be positive, but spectrum 2 of split 'train' has 0"):
        next(batches)


def test_a_folder_is_not_taken_for_another_of_its_name_or_for_what_it_held_before(tmp_path):
    for folder, number in (("one", 3), ("two", 5), ("one", 4)):
        path = tmp_path / folder / "corpus" / "data" / "train-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parents[1] / "README.md").write_text(
            "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/*.parquet\n---\n"
        )
        pq.write_table(spectra_to_table(spectra(number)), path)
        assert len(load_split(path.parents[1], "train")) == number
