"""The parts of masked pretraining, against closed forms, independent computations and hand-made cases."""

import json
import time

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch.utils.flop_counter import FlopCounterMode

from configuration_xrf import XRFMaskedConfig
from modeling_xrf import XRFForMaskedSpectrumModeling, reconstruction_targets
from training_xrf import (
    History,
    channel_statistics,
    checkpoints,
    learning_rate_at,
    log_line,
    mask_noise,
    matrix_peak,
    num_visible_patches,
    parameter_groups,
    read_progress,
    reconstruction_errors,
    save_checkpoint,
    training_flops,
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
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


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
