"""The parts of masked pretraining, against closed forms, independent computations and hand-made cases."""

import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from configuration_xrf import XRFMaskedConfig
from dataset_builder import Spectrum, spectra_to_table
from feature_extraction_xrf import XRFFeatureExtractor
from modeling_xrf import XRFForMaskedSpectrumModeling
from training_xrf import (
    History,
    SpectrumBatches,
    SpectrumStream,
    cached_features,
    channel_statistics,
    checkpoints,
    extract_features,
    feature_batches,
    learning_rate_at,
    load_split,
    log_line,
    mask_noise,
    matrix_peak,
    num_visible_patches,
    parameter_groups,
    read_progress,
    reconstruction_errors,
    reconstruction_targets,
    repeated_stream,
    save_checkpoint,
    spread,
    training_flops,
    whole_batch,
    writing,
)

SMALL = {
    "spectrum_length": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 48,
}  # fmt: skip


@pytest.fixture
def config():
    return XRFMaskedConfig(**SMALL)


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


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


# --- spectra to batches ---


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


# --- masks, statistics, errors ---


def test_mask_noise_is_splitmix64_of_its_arguments():
    def splitmix64(state):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        return state ^ (state >> 31)

    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the published first output for seed 0
    noise = mask_noise(torch.tensor([0, 5, 2**40]), 4, seed=3, epoch=2)
    for row, sample in enumerate([0, 5, 2**40]):
        state = splitmix64((splitmix64((splitmix64(3) + 2) % 2**64) + sample) % 2**64)
        for patch in range(4):
            assert noise[row, patch].item() == (splitmix64((state + patch) % 2**64) >> 40) / 2**24


def test_mask_noise_is_uniform_and_new_for_every_seed_epoch_and_sample():
    ids = torch.arange(4000)
    noise = mask_noise(ids, 16, seed=0, epoch=0)
    shares = torch.histc(noise, 10, 0, 1) / noise.numel()
    assert noise.min() >= 0 and noise.max() < 1
    assert (shares - 0.1).abs().max() < 0.005
    assert torch.corrcoef(noise.T).fill_diagonal_(0).abs().max() < 0.07
    for other in (mask_noise(ids, 16, 1, 0), mask_noise(ids, 16, 0, 1), mask_noise(ids + 1, 16, 0, -1)):
        assert abs(torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1]) < 0.02


def test_channel_statistics_look_at_measured_channels_only(config):
    generator = np.random.default_rng(0)
    values = generator.normal(3, 2, (50, 128)).astype(np.float32)
    values[:, 7] = 0.1
    measured = generator.random((50, 8)) < 0.6
    measured[:, 3] = False
    batches = (
        {"input_values": torch.from_numpy(values[part]), "attention_mask": torch.from_numpy(measured[part]).long()}
        for part in (slice(0, 20), slice(20, 50))
    )
    mean, sd = channel_statistics(batches, config.patch_size)
    channels = np.where(np.repeat(measured, 16, axis=1), values.astype(np.float64), np.nan)
    known = [channel for channel in range(128) if channel // 16 != 3]
    np.testing.assert_allclose(mean[known], np.nanmean(channels[:, known], axis=0), rtol=1e-9)
    spread_ = np.nanstd(channels[:, known], axis=0)
    np.testing.assert_allclose(sd[known], np.where(spread_ < 1e-6, 1, spread_), rtol=1e-6)
    assert mean[48:64].eq(0).all() and sd[48:64].eq(1).all()


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("masked_loss_only", [True, False])
def test_reconstruction_errors_by_hand(normalized, masked_loss_only):
    torch.manual_seed(0)
    config = XRFMaskedConfig(**SMALL, normalize_patch_targets=normalized, masked_loss_only=masked_loss_only)
    model = XRFForMaskedSpectrumModeling(config)
    values, corpus_mean = torch.rand(5, 128), torch.rand(128)
    measured = torch.ones(5, 8, dtype=torch.long)
    measured[3, 5:] = 0
    batch = {"sample_id": torch.arange(5), "input_values": values, "attention_mask": measured}
    parts = [{name: tensor[part] for name, tensor in batch.items()} for part in (slice(0, 3), slice(3, 5))]
    sums = reconstruction_errors(model, parts, corpus_mean, seed=4)

    outputs = model(values, attention_mask=measured, noise=mask_noise(torch.arange(5), 8, 4, -1))
    expected = np.zeros(3)
    for row in range(5):
        for patch in range(8):
            part = slice(16 * patch, 16 * patch + 16)
            target = values[row, part].numpy().astype(np.float64)
            if normalized:
                target = (target - target.mean()) / (target.std(ddof=1) + 1e-6)
            if outputs.mask[row, patch]:
                reconstruction = outputs.reconstruction[row, part].detach().numpy()
                mean = corpus_mean[part].numpy()
                expected += [((reconstruction - target) ** 2).sum(), ((mean - target) ** 2).sum(), 16]
    np.testing.assert_allclose(sums, expected, rtol=1e-5)
    assert sums[2] == 16 * (4 * 4 + 3)  # half of 8 patches hidden; of 5 measured ones, 3
    if masked_loss_only:
        assert outputs.loss.item() == pytest.approx(expected[0] / expected[2], rel=1e-5)
    assert model.training
    target = reconstruction_targets(values, config)
    assert target.shape == values.shape and torch.equal(target, values) != normalized


# --- optimisation ---


def test_decay_is_for_matrices_only(config):
    model = XRFForMaskedSpectrumModeling(config)
    decayed, free = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    decayed = {id(parameter) for parameter in decayed["params"]}
    free = {id(parameter) for parameter in free["params"]}
    assert len(decayed) + len(free) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        is_matrix = name.endswith("weight") and "layernorm" not in name
        assert (id(parameter) in decayed) == is_matrix and (id(parameter) in free) != is_matrix, name


def test_warm_up_is_linear_and_schedules_end_at_the_minimum():
    def rates(schedule, factor=0.5):
        return [learning_rate_at(step, 21, 1.0, 0.1, 4, factor, schedule) for step in range(21)]

    for schedule in ("cosine", "linear", "constant"):
        assert rates(schedule)[:5] == pytest.approx([0.5, 0.625, 0.75, 0.875, 1.0])
        assert rates(schedule, factor=0)[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])
    progress = np.arange(17) / 16
    np.testing.assert_allclose(rates("cosine")[4:], 0.1 + 0.9 * (1 + np.cos(np.pi * progress)) / 2)
    np.testing.assert_allclose(rates("linear")[4:], 1 - 0.9 * progress)
    np.testing.assert_allclose(rates("constant")[4:], 1)
    assert rates("cosine")[12] == pytest.approx(0.55) and rates("cosine")[-1] == pytest.approx(0.1)
    assert learning_rate_at(0, 1, 1.0) == 1.0


# --- speed ---


def test_base_takes_54_gflop():
    # 54.06 GFLOP is MAX's own, which embeds all 128 patches before it drops half of them: 3 * 2 * 64 * 16 * 768 more
    assert training_flops(XRFMaskedConfig()) + 3 * 2 * 64 * 16 * 768 == pytest.approx(54.06e9, rel=1e-4)


@pytest.mark.parametrize("mask_ratio", [0.5, 0.8])
def test_flops_are_those_that_torch_counts(mask_ratio):
    config = XRFMaskedConfig(**SMALL, mask_ratio=mask_ratio)
    config._attn_implementation = "eager"
    model = XRFForMaskedSpectrumModeling(config)
    with FlopCounterMode(display=False) as forward:
        loss = model(torch.rand(3, 128)).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert forward.get_total_flops() == training_flops(config)  # three forward passes are one with its backward pass
    # twice the forward pass, but for the gradient with respect to the counts, which nothing needs
    embedding = 3 * 2 * num_visible_patches(config) * 16 * 32
    assert backward.get_total_flops() == 2 * forward.get_total_flops() - embedding


def test_matrix_peak_counts_operations_per_second():
    size, repeats = 1024, 3
    matrix = torch.randn(size, size)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        times.append(time.perf_counter() - start)
    by_hand = 2 * size**3 / min(times)
    assert 0.1 < matrix_peak(torch.device("cpu"), torch.float32, least_seconds=0.05) / by_hand < 10


# --- log and checkpoints ---


def test_log_lines_stand_below_each_other():
    first = {
        "step": 5, "loss": 0.5, "learning_rate": 1e-4, "gradient_norm": 0.25, "spectra_per_s": 812.4,
        "share_of_peak": 0.431,
    }  # fmt: skip
    second = {**first, "step": 1000, "loss": 12.25, "gradient_norm": 130.5, "spectra_per_s": 14000.0}
    lines = [log_line(first, 1000, 3725.4), log_line(second, 1000, 0.2)]
    assert len(lines[0]) == len(lines[1])
    assert lines[0] == (
        "step    5/1000  loss   0.50000  rate 1.000e-04  gradient norm    0.2500     812.4 spectra/s   43.1 % of peak"
        "    1:02:05 left"
    )


def test_history_forgets_what_a_resumed_run_writes_anew(tmp_path):
    history = History(tmp_path / "history.jsonl")
    for step in (1, 2, 3):
        history.add({"step": step, "loss": step / 2})
    history.add({"step": 3, "validation_loss": 7.0})
    again = History(tmp_path / "history.jsonl", last_step=2)
    assert [record["step"] for record in again.records] == [1, 2]
    assert again.last("loss")["loss"] == 1.0 and again.last("validation_loss") is None
    again.add({"step": 3, "loss": 9.0})
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert lines == again.records == [*history.records[:2], {"step": 3, "loss": 9.0}]


def test_checkpoints_restore_and_only_the_newest_are_kept(tmp_path, accelerator):
    layer = torch.nn.Linear(3, 3)
    model, optimizer = accelerator.prepare(layer, torch.optim.AdamW(layer.parameters(), lr=0.1))
    (tmp_path / ".step_000002.part").mkdir()  # left by a killed process
    weights = {}
    for step in (3, 12, 1_000_000, 2_000_000):
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        weights[step] = layer.weight.detach().clone()
        save_checkpoint(accelerator, tmp_path, {"step": step, "seed": 1}, keep_last=3)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_000012", "step_1000000", "step_2000000"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000012", "step_1000000", "step_2000000"]
    accelerator.load_state(str(tmp_path / "step_000012"))
    assert torch.equal(layer.weight, weights[12])
    assert read_progress(tmp_path / "step_000012", {"seed": 1}) == {"step": 12, "seed": 1}
    with pytest.raises(ValueError, match="was written with seed 1, but the run to resume has 2"):
        read_progress(tmp_path / "step_000012", {"seed": 2})


def test_writing_names_what_could_not_be_written(tmp_path):
    sentence = "model could not be written .*Is a directory.*; free some disk space"
    with pytest.raises(OSError, match=sentence), writing(tmp_path / "model"):
        tmp_path.write_text("")
