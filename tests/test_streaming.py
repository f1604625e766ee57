"""Streams of training batches: which spectra come, in which order, from which worker, and how a run goes on."""

import dataclasses
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

import corpus_xrf
import streaming_xrf
from configuration_xrf import XRFMaskedConfig
from corpus_xrf import NativeSpectra, feature_batches, load_split
from dataset_builder import FilesPart, Recipe, SimulationPart, Spectrum, simulated_recipe, spectra_to_table
from dataset_builder.augmentation import Drift, Thinning
from dataset_builder.simulation.source import SimulatedSource
from feature_extraction_xrf import XRFFeatureExtractor
from streaming_xrf import (
    Mixture,
    SimulatedSpectra,
    SpectrumStream,
    StoredSpectra,
    StreamedRows,
    augmented_batches,
    first_labels,
    held_out_rows,
    recipe_mixture,
    stream_batches,
)

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")


@pytest.fixture
def extractor():
    # ln(1 + counts): the inputs of a spectrum tell its counts
    return XRFFeatureExtractor.for_config(XRFMaskedConfig.from_size("tiny", spectrum_length=128), scaling="log")


def spectra(number, channels=128, seed=0, **fields):
    fields = {"gain_kev": 0.02, "offset_kev": 0.0, "tube_kv": 10.0, **fields}
    counts = np.random.default_rng(seed).poisson(40, (number, channels))
    return [Spectrum(row, sample=f"S-{index}", **fields) for index, row in enumerate(counts)]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(spectra_to_table(rows), path)
    return path


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    for shard in range(2):
        write(folder / "data" / f"train-{shard:05d}-of-00002.parquet", spectra(30, seed=shard))
    return folder


class NumberedUnits:
    """As a `SimulatedSource`: units of 8 and 9 spectra in turn, whose counts say unit and row."""

    num_spectra = 170

    class Batch:
        def __init__(self, unit, rows):
            self.counts = np.full((len(rows), 128), 1, dtype=np.int32)
            self.counts[:, 0], self.counts[:, 1] = unit, rows
            self.gain_kev, self.offset_kev = np.full(len(rows), 0.02), np.zeros(len(rows))
            self.tube_kv = np.full(len(rows), 10.0)
            self.labels = {"Fe": 100.0 * unit + rows}

        def __len__(self):
            return len(self.counts)

    def unit_size(self, unit):
        return 8 + unit % 2

    def simulate(self, unit):
        yield self.Batch(unit, np.arange(5))
        yield self.Batch(unit, np.arange(5, self.unit_size(unit)))


def units_and_rows(batches):
    """What the counts of `NumberedUnits` say."""
    values = torch.cat([batch["input_values"][:, :2] for batch in batches])
    return [tuple(pair) for pair in torch.expm1(values.double()).round().int().tolist()]


def drawn(stream, number, workers=0, first_batch=0):
    """Epochs and batches."""
    loader = DataLoader(stream, batch_size=None, num_workers=workers)
    return list(itertools.islice(stream_batches(loader, stream, CPU, first_batch), number))


def assert_equal_batches(found, expected):
    assert len(found) == len(expected)
    for (epoch, batch), (expected_epoch, expected_batch) in zip(found, expected, strict=True):
        assert epoch == expected_epoch and batch.keys() == expected_batch.keys()
        for name in batch:
            assert torch.equal(*map(torch.as_tensor, (batch[name], expected_batch[name]))), name


# --- streamed corpora ---


def streamed(corpus, extractor, batch_size, seed=0, block=2**14, **options):
    source = StreamedRows(load_split(corpus, "train", streaming=True), block)
    return SpectrumStream(source, extractor, "train", batch_size, seed, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_split_gives_every_spectrum_once_per_epoch_over_processes_and_workers(corpus, extractor, workers):
    expected = feature_batches(load_split(corpus, "train"), extractor, "train")
    expected = {tuple(row) for batch in expected for row in batch["input_values"].tolist()}
    seen, ids = [], []
    for process in range(2):
        stream = streamed(corpus, extractor, 5, process_index=process, num_processes=2)
        for epoch, batch in drawn(stream, 6, workers):
            assert epoch == 0 and batch["input_values"].shape == (5, 128)
            seen += [tuple(row) for row in batch["input_values"].tolist()]
            ids += batch["sample_id"].tolist()
    assert len(seen) == len(set(seen)) == len(set(ids)) == 60
    assert set(seen) == expected


def test_streamed_split_is_shuffled_within_blocks_by_seed_and_epoch(corpus, extractor):
    def ids(number, **options):
        stream = streamed(corpus, extractor, 10, block=20, **options)
        return [(epoch, batch["sample_id"].tolist()) for epoch, batch in drawn(stream, number)]

    batches = ids(12)
    assert [epoch for epoch, _ in batches] == [0] * 6 + [1] * 6
    assert sorted(batches[0][1] + batches[1][1]) == list(range(20))
    assert batches[0][1] != list(range(10)) and batches[0][1] != batches[6][1]
    assert ids(12) == batches and ids(1, seed=1) != batches[:1]


def test_streamed_split_shorter_than_a_batch_is_refused(corpus, extractor):
    with pytest.raises(ValueError, match="no whole batch of 61 spectra"):
        drawn(streamed(corpus, extractor, 61), 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_spectrum_in_a_stream_is_one_sentence(tmp_path, extractor, workers):
    table = spectra_to_table(spectra(4))
    gains = pa.array([0.02, 0.02, 0.0, 0.02])
    pq.write_table(table.set_column(table.column_names.index("gain_kev"), "gain_kev", gains), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"\Again_kev must be positive, but spectrum 2 of split 'train' has 0"):
        drawn(streamed(tmp_path, extractor, 2), 2, workers)


# --- simulated spectra ---


def simulated(extractor, batch_size=10, seed=0, block=40, **options):
    source = Mixture([SimulatedSpectra(NumberedUnits())], block=block)
    return SpectrumStream(source, extractor, "train", batch_size, seed, **options)


def test_units_come_in_blocks_that_are_shuffled(extractor):
    batches = [batch for _, batch in drawn(simulated(extractor), 8)]
    in_order = [(unit, row) for unit in range(10) for row in range(8 + unit % 2)]
    found = units_and_rows(batches)
    assert sorted(found[:40]) == in_order[:40] and sorted(found[40:]) == in_order[40:80]
    assert found[:10] != in_order[:10]
    assert sorted(torch.cat([batch["sample_id"] for batch in batches]).tolist()) == list(range(80))


def test_a_simulated_stream_depends_on_the_seed_and_nothing_else(extractor):
    expected = drawn(simulated(extractor), 12)
    assert_equal_batches(drawn(simulated(extractor), 12), expected)
    other = drawn(simulated(extractor, seed=1), 4)
    assert units_and_rows([other[0][1]]) != units_and_rows([expected[0][1]])
    assert sorted(units_and_rows(batch for _, batch in other)) == sorted(
        units_and_rows(batch for _, batch in expected[:4])
    )


def test_epochs_count_what_the_source_calls_its_size_and_bring_fresh_units(extractor):
    batches = drawn(simulated(extractor), 40)
    assert [epoch for epoch, _ in batches] == [0] * 17 + [1] * 17 + [2] * 6
    pairs = units_and_rows(batch for _, batch in batches)
    assert len(set(pairs)) == 400
    # the second of two processes sees half of an epoch, and half of the units
    half = drawn(simulated(extractor, process_index=1, num_processes=2), 12)
    assert [epoch for epoch, _ in half] == [0] * 9 + [1] * 3
    assert {unit % 2 for unit, _ in units_and_rows(batch for _, batch in half)} == {1}


@pytest.mark.parametrize("processes, workers", [(1, 2), (2, 0), (2, 2), (1, 3)])
def test_no_unit_is_produced_twice_by_two_workers(extractor, processes, workers):
    shares = processes * max(workers, 1)
    found, ids = [], []
    for process in range(processes):
        stream = simulated(extractor, process_index=process, num_processes=processes)
        batches = [batch for _, batch in drawn(stream, 8 * max(workers, 1), workers)]
        ids += torch.cat([batch["sample_id"] for batch in batches]).tolist()
        for worker in range(max(workers, 1)):  # asked in turn
            pairs = units_and_rows(batches[worker :: max(workers, 1)])
            share = process * max(workers, 1) + worker
            in_order = [(unit, row) for unit in range(share, 99, shares) for row in range(8 + unit % 2)]
            assert sorted(pairs) == in_order[:80]  # two blocks
            found += pairs
    assert len(set(found)) == len(found) == 80 * shares and len(set(ids)) == len(ids)


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("first", [1, 4, 7, 31])
def test_resumed_stream_goes_on_with_the_same_batches(corpus, extractor, workers, first):
    stored = StoredSpectra(load_split(corpus, "train"), seed=0)
    sources = {
        "simulated": lambda: Mixture([SimulatedSpectra(NumberedUnits())], block=30),
        "mixed": lambda: Mixture([SimulatedSpectra(NumberedUnits()), stored], [0.7, 0.3], block=30),
        "streamed": lambda: StreamedRows(load_split(corpus, "train", streaming=True), block=20),
        "labelled": lambda: Mixture([SimulatedSpectra(UnitsOfDifferentVoltage(), ["Fe"])], block=30),
    }
    for name, source in sources.items():
        options = {"augmentation": Thinning((0.5, 1.0), least_counts=0)} if name == "mixed" else {}
        stream = SpectrumStream(source(), extractor, "train", 10, seed=3, **options)
        whole = drawn(stream, first + 5, workers)
        stream = SpectrumStream(source(), extractor, "train", 10, seed=3, **options)
        assert_equal_batches(drawn(stream, 5, workers, first_batch=first), whole[first:])


# --- labels ---


class UnitsOfDifferentVoltage(NumberedUnits):
    """Units at 0.5, 1 and 2 kV in turn, which reach 2, 3 and 7 patches of 0.32 keV far."""

    def simulate(self, unit):
        for batch in super().simulate(unit):
            batch.tube_kv = np.full(len(batch), (0.5, 1.0, 2.0)[unit % 3])
            yield batch


def labelled(extractor, batch_size=10, seed=0, block=120, **options):
    source = Mixture([SimulatedSpectra(UnitsOfDifferentVoltage(), ["Fe"])], block=block)
    return SpectrumStream(source, extractor, "train", batch_size, seed, by_reach=True, **options)


def test_labels_go_with_their_spectra(extractor):
    for workers in (0, 2):
        for _, batch in drawn(labelled(extractor), 24, workers):
            expected = [[100.0 * unit + row] for unit, row in units_and_rows([batch])]
            assert batch["labels"].dtype == torch.float32 and batch["labels"].tolist() == expected


def test_spectra_that_reach_equally_far_share_batches(extractor, monkeypatch):
    monkeypatch.setattr(streaming_xrf, "REACH_STEP", 1)
    batches = [batch for _, batch in drawn(labelled(extractor), 12)]
    widths = [batch["patch_ids"].shape[1] for batch in batches]
    assert sorted(widths)[0] == 2 and widths.count(7) < 12 and widths != sorted(widths)
    mixed = [not batch["attention_mask"].all() for batch in batches]
    assert sum(mixed) <= 2  # at the two places where one voltage gives way to the next
    in_order = [(unit, row) for unit in range(20) for row in range(8 + unit % 2)]
    assert sorted(units_and_rows(batches)) == in_order[:120]
    assert all(len({unit for unit, _ in units_and_rows([batch])}) > 2 for batch in batches)  # not unit by unit
    again = [batch for _, batch in drawn(labelled(extractor), 12)]
    assert all(torch.equal(one["sample_id"], other["sample_id"]) for one, other in zip(batches, again, strict=True))


def test_reach_counts_range_and_voltage(extractor):
    stream = labelled(extractor)
    native = NativeSpectra([np.ones(128), np.ones(64), np.ones(128)], *np.array([[0.02] * 3, [0] * 3, [9, 9, np.nan]]))
    steps = streaming_xrf.REACH_STEP
    wide = XRFFeatureExtractor(spectrum_length=2048)
    stream.extractor = wide
    assert stream._reach(native).tolist() == [1, 1, 1]  # all within the first 16 patches, 5.12 keV
    high = NativeSpectra(np.ones((4, 2048)), *np.array([[0.02] * 4, [0] * 4, [5.0, 6.0, 50.0, np.nan]]))
    assert stream._reach(high).tolist() == [1, 2, 2048 // 16 // steps, 2048 // 16 // steps]
    stream.extractor = XRFFeatureExtractor(spectrum_length=2048, limit_to_tube_kv=False)
    assert set(stream._reach(high)) == {2048 // 16 // steps}


def test_first_labels_are_those_of_the_stream_and_of_a_spread_split(tmp_path):
    mixture = Mixture([SimulatedSpectra(NumberedUnits(), ["Fe"])], block=40)
    expected = [100.0 * unit + row for unit in range(9) for row in range(8 + unit % 2)][:70]
    assert first_labels(mixture, ["Fe"], 70).tolist() == [[value] for value in expected]
    assert len(first_labels(mixture, ["Fe"], 10_000)) == 170  # an epoch
    rows = [dataclasses.replace(spectrum, targets={"Fe": float(i)}) for i, spectrum in enumerate(spectra(9))]
    path = tmp_path / "train.parquet"
    pq.write_table(spectra_to_table(rows, ["Fe"], {"Fe": "wt%"}), path)
    np.testing.assert_array_equal(
        first_labels(load_split(tmp_path, "train"), ["Fe", "Si"], 3), [[0, np.nan], [4, np.nan], [8, np.nan]]
    )
    stream = load_split(tmp_path, "train", streaming=True)
    np.testing.assert_array_equal(first_labels(stream, ["Fe"], 2), [[0], [1]])
    batch = next(StreamedRows(stream, block=9, targets=["Fe"]).batches(0, 1, 9, seed=0))
    np.testing.assert_array_equal(batch.spectra.labels[:, 0], batch.sample_ids)


def test_a_target_in_another_unit_is_refused(tmp_path):
    rows = [dataclasses.replace(spectrum, targets={"Fe": 40_000.0}) for spectrum in spectra(4)]
    pq.write_table(spectra_to_table(rows, ["Fe"], {"Fe": "ppm"}), tmp_path / "train.parquet")
    for source in (lambda *a, **k: StoredSpectra(*a, seed=0, **k), StreamedRows):
        split = load_split(tmp_path, "train", streaming=source is StreamedRows)
        with pytest.raises(ValueError, match="The corpus has Fe in 'ppm', but .* it must be in 'wt%'; convert it"):
            source(split, targets=["Fe"])
        source(split)


# --- mixtures ---


def test_every_batch_holds_its_share_of_each_source(tmp_path, extractor):
    paths = [tmp_path / name / "train.parquet" for name in ("first", "second")]
    write(paths[0], [Spectrum(np.full(128, 1), gain_kev=0.02, offset_kev=0.0) for _ in range(30)])
    write(paths[1], [Spectrum(np.full(100, 3), gain_kev=0.025, offset_kev=0.0, tube_kv=10.0) for _ in range(50)])
    stored = [StoredSpectra(load_split(path.parent, "train"), seed=0) for path in paths]
    mixture = Mixture([SimulatedSpectra(NumberedUnits()), *stored], [5.0, 1.0, 4.0], block=200)
    assert mixture.num_spectra == 125  # 50 / 0.4: the second corpus is the first to be used up
    batches = drawn(SpectrumStream(mixture, extractor, "train", 100, seed=0), 30)
    numbers = np.array(
        [np.bincount(batch["input_values"][:, 50].expm1().round(), minlength=4) for _, batch in batches]
    )
    # channel 50: 1 in both the simulation and the first corpus, 3 * 0.8 in the second
    second = numbers[:, 2]
    assert second.mean() == pytest.approx(40, abs=0.1)
    places = (np.arange(3000) * (1 + 5**0.5) / 2) % 1
    assert second.sum() == (places >= 0.6).sum()
    assert [epoch for epoch, _ in batches[:4]] == [0, 0, 1, 2]


def test_weights_follow_the_sizes_if_not_given(corpus):
    stored = StoredSpectra(load_split(corpus, "train"), seed=0)
    mixture = Mixture([SimulatedSpectra(NumberedUnits()), stored])
    assert mixture.weights == pytest.approx([170 / 230, 60 / 230]) and mixture.num_spectra == 230
    assert Mixture([stored], num_spectra=7).num_spectra == 7


@pytest.mark.parametrize("shares", [1, 3])
def test_a_pass_over_stored_spectra_gives_each_once_over_all_shares(corpus, shares):
    stored = StoredSpectra(load_split(corpus, "train"), seed=0)
    counts = {tuple(row) for row in load_split(corpus, "train")["counts"]}
    passes = []
    for first_pass in range(2):
        rows = []
        for share in range(shares):
            size = 60 // shares
            mixture = Mixture([stored], block=size)
            batches = mixture.batches(share, shares, size, seed=0, first=first_pass)
            rows += [tuple(row) for row in next(batches).spectra.counts.tolist()]
        assert len(rows) == 60 and set(rows) == counts
        passes.append(rows)
    assert passes[0] != passes[1]
    with pytest.raises(ValueError, match="60 spectra are fewer than the 61 workers"):
        next(stored.tables(60, 61, 0))


def test_mixture_without_voltages_counts_everything_as_measured(tmp_path, extractor):
    write(tmp_path / "train.parquet", spectra(8, tube_kv=None))
    stored = StoredSpectra(load_split(tmp_path, "train"), seed=0)
    mixture = Mixture([stored, SimulatedSpectra(NumberedUnits())], [0.5, 0.5], block=8)
    (_, batch), *_ = drawn(SpectrumStream(mixture, extractor, "train", 8, seed=0), 1)
    assert batch["attention_mask"].all()


# --- augmentation ---


def test_augmentation_works_on_native_counts_and_repeats_with_the_seed(corpus, extractor):
    half = Thinning((0.5, 0.5), least_counts=0)

    def counts(augmentation, seed=0, number=12):
        mixture = Mixture([StoredSpectra(load_split(corpus, "train"), seed=0)], block=60)
        stream = SpectrumStream(mixture, extractor, "train", 10, seed, augmentation=augmentation)
        batches = [batch for _, batch in drawn(stream, number)]
        order = torch.cat([batch["sample_id"] for batch in batches]).argsort()
        return torch.cat([batch["input_values"] for batch in batches])[order].expm1().round()

    plain, thinned = counts(None), counts(half)
    assert (thinned <= plain).all() and thinned.sum() / plain.sum() == pytest.approx(0.5, abs=0.005)
    assert torch.equal(counts(half), thinned) and not torch.equal(counts(half, seed=1), thinned)
    first_pass, second_pass = thinned[:60], thinned[60:]
    assert not torch.equal(first_pass.sum(1).sort().values, second_pass.sum(1).sort().values)  # drawn anew


def test_every_spectrum_of_a_split_is_augmented_once(corpus, extractor, monkeypatch):
    monkeypatch.setattr(corpus_xrf, "ROWS_PER_TABLE", 25)
    rows = load_split(corpus, "train").add_column("Fe", list(range(60)))
    whole = np.array(rows["counts"])
    for share in (1.0, 0.5):
        thinning = Thinning((share, share), least_counts=0)
        batches = list(augmented_batches(rows, extractor, "train", 0, thinning, ("Fe",)))
        assert [len(batch["labels"]) for batch in batches] == [25, 25, 10]
        found = torch.cat([batch["input_values"] for batch in batches]).double().expm1().numpy()
        assert torch.cat([batch["labels"] for batch in batches])[:, 0].tolist() == list(range(60))
        if share == 1:
            np.testing.assert_allclose(found, whole, rtol=1e-4)
        else:
            assert found.sum() / whole.sum() == pytest.approx(0.5, abs=0.005) and (found < whole + 0.1).all()


def test_augmentation_of_different_lengths(tmp_path, extractor):
    mixed = spectra(3) + spectra(4, channels=100, gain_kev=0.025, seed=1) + spectra(2, channels=64, seed=2)
    write(tmp_path / "train.parquet", mixed)
    mixture = Mixture([StoredSpectra(load_split(tmp_path, "train"), seed=0)], block=9)
    for augmentation in (Drift(), Thinning((0.5, 0.5), least_counts=0)):
        stream = SpectrumStream(mixture, extractor, "train", 9, seed=0, augmentation=augmentation)
        (_, batch), *_ = drawn(stream, 1)
        native = next(mixture.batches(0, 1, 9, seed=0)).spectra
        expected = extractor(native.counts, native.gain_kev, native.offset_kev, native.tube_kv)
        np.testing.assert_array_equal(batch["attention_mask"], expected["attention_mask"])
        total = np.expm1(batch["input_values"].double()).sum(1)
        share = 1 if isinstance(augmentation, Drift) else 0.5
        np.testing.assert_allclose(total, share * np.expm1(expected["input_values"].astype(float)).sum(1), rtol=0.1)


# --- recipes ---


def test_splits_of_a_recipe_have_other_simulations(extractor):
    recipe = simulated_recipe(num_spectra=20, num_cores=4, seed=5)
    first = {split: recipe_mixture(recipe, split, seed=0).take(6)["counts"] for split in ("train", "validation")}
    (source,) = recipe.part_sources()
    built = next(source.simulate(0)).counts[:1].tolist()
    rows = [tuple(row) for counts in (*first.values(), built) for row in counts]
    assert len(set(rows)) == 13
    again = recipe_mixture(recipe, "train", seed=0).take(6)["counts"]
    assert list(again) == list(first["train"])
    with pytest.raises(ValueError, match='Unknown split "dev" of a recipe. Should be one of train, validation, test'):
        recipe_mixture(recipe, "dev", seed=0)


def test_a_genuine_simulation_is_streamed(extractor):
    source = SimulatedSource(num_spectra=40, num_cores=4, seed=1)
    stream = SpectrumStream(Mixture([SimulatedSpectra(source)], block=20), extractor, "train", 10, seed=0)
    found = torch.cat([batch["input_values"] for _, batch in drawn(stream, 4, workers=2)])
    expected = [
        extractor(batch.counts, 0.02, 0.0, 10.0)["input_values"] for u in range(4) for batch in source.simulate(u)
    ]
    expected = np.concatenate(expected)
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.tolist()))


def labels_mixture(recipe, folder):
    return recipe_mixture(recipe, "train", seed=0, data_root=folder, targets=["Fe"])


def test_recipe_of_files_and_simulation(tmp_path, extractor):
    cores = [Spectrum(s.counts, gain_kev=0.02, offset_kev=0.0, core=f"C-{i % 10}") for i, s in enumerate(spectra(60))]
    write(tmp_path / "measured.parquet", cores)
    parts = (
        SimulationPart("simulated", num_spectra=20, num_cores=4, weight=0.25),
        FilesPart("measured", "measured.parquet", weight=0.75),
    )
    recipe = Recipe("mixed", parts, validation_fraction=0.2, test_fraction=0.0)
    mixture = recipe_mixture(recipe, "train", seed=0, data_root=tmp_path)
    assert mixture.weights == pytest.approx([0.25, 0.75]) and mixture.num_spectra == 48 / 0.75
    training = mixture.take(64)["counts"]
    assert sum(len(counts) == 128 for counts in training) in (47, 48, 49)
    _, batch = drawn(SpectrumStream(labels_mixture(recipe, tmp_path), extractor, "train", 64, seed=0), 1)[0]
    assert batch["labels"].isnan().all(1).sum() in (47, 48, 49)  # the files know no iron
    held_out = held_out_rows(recipe, "validation", 16, tmp_path)
    assert sum(value is None for value in held_out_rows(recipe, "validation", 16, tmp_path, ["Fe"])["Fe"]) == 12
    assert sorted(map(len, held_out["counts"])) == [128] * 12 + [2048] * 4
    assert not {tuple(row) for row in held_out["counts"]} & {tuple(row) for row in training}
    assert set(held_out.column_names) >= {"sample", "core", "depth_mm"}
