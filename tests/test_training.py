"""The parts of masked pretraining, against closed forms, independent computations and hand-made cases."""

import json
import re
import time

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode

from configuration_xrf import XRFMaskedConfig
from corpus_xrf import measured_patches
from feature_extraction_xrf import XRFFeatureExtractor
from modeling_xrf import (
    XRFForMaskedSpectrumModeling,
    XRFForRegression,
    num_visible_patches,
    reconstruction_targets,
)
from training_xrf import (
    LABEL_FLOOR,
    History,
    LabelValidation,
    UncertainEfficiency,
    build_optimizer,
    channel_statistics,
    checkpoints,
    encoder_flops,
    floored_labels,
    label_loss,
    learning_rate_at,
    log_line,
    loss_terms,
    mask_noise,
    masked_loss,
    matrix_peak,
    read_progress,
    reconstruction_errors,
    regression_flops,
    save_checkpoint,
    target_fields,
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


# --- labels ---


def regressor(**options):
    torch.manual_seed(0)
    fields = SMALL | {
        "pooling": "mean", "target_names": ["Fe", "zero_drift", "Pb"], "target_units": ["wt%", "eV", "wt%"],
        "target_transform": ["log", "linear", "log"], "target_mean": [0.5, 2.0, -6.0], "target_std": [1.5, 3.0, 2.0],
        "target_min": [0.0, None, 0.0], "target_max": [100.0, None, 100.0],
    }  # fmt: skip
    return XRFForRegression(XRFMaskedConfig(**fields | options))


def labelled_batch(number=6):
    measured = torch.zeros(number, 8, dtype=torch.uint8)
    measured[:, 2:5] = 1
    measured[::2, 5:7] = 1  # the last patch and the first two are nobody's
    values = torch.rand(number, 128) * measured.repeat_interleave(16, dim=1)
    labels = torch.stack([torch.rand(number) * 8, torch.randn(number), torch.rand(number) * 1e-3], dim=1)
    labels[1, 0], labels[2, 2], labels[3, 2] = torch.nan, 0.0, 1e-6
    return {"input_values": values, "attention_mask": measured, "labels": labels}


@pytest.mark.parametrize("measured", [5, 8])
def test_masked_loss_on_measured_patches_is_that_of_whole_spectra(config, measured):
    torch.manual_seed(0)
    model = XRFForMaskedSpectrumModeling(config)
    ids, values, mask = torch.arange(4), torch.rand(4, 128), torch.zeros(4, 8, dtype=torch.uint8)
    mask[:, :measured] = 1
    for hidden in (False, True):
        mask[1, 2] = not hidden
        batch = measured_patches({"sample_id": ids, "input_values": values, "attention_mask": mask})
        assert batch["all_measured"] != hidden
        whole = model(values, attention_mask=mask, noise=mask_noise(ids, 8, seed=3, epoch=2))
        torch.testing.assert_close(masked_loss(model, batch, 2, config, seed=3), whole.loss)


@pytest.mark.parametrize("mask_ratio", [0.3, 0.5, 0.75])
def test_loss_terms_are_what_the_loss_is_the_mean_of(mask_ratio):
    measured = torch.tril(torch.ones(8, 8, dtype=torch.uint8))  # one patch to all eight
    batch = {"attention_mask": measured}
    model = XRFForMaskedSpectrumModeling(XRFMaskedConfig(**SMALL, mask_ratio=mask_ratio))
    hidden = model(torch.rand(8, 128), attention_mask=measured).mask
    assert loss_terms(batch, model.config) == hidden.sum() and 0 < hidden.sum() < 36
    model.config.masked_loss_only = False
    assert loss_terms(batch, model.config) == 36
    assert loss_terms(labelled_batch(), regressor().config) == 17  # of 18 labels one is missing


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("loss", ["mse", "gaussian"])
def test_measured_patches_give_the_loss_and_gradients_of_the_full_grid(pooling, loss):
    model = regressor(regression_loss=loss)
    model.config.pooling = pooling
    batch = labelled_batch()
    found = label_loss(model, measured_patches(batch), 0, model.config)
    found.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    labels = floored_labels(batch["labels"], model.config)
    full = model(batch["input_values"], attention_mask=batch["attention_mask"], labels=labels).loss
    full.backward()
    assert measured_patches(batch)["patch_ids"].shape == (6, 5)
    assert found.item() == pytest.approx(full.item(), rel=1e-5)
    assert len(gradients) == sum(p.grad is not None for p in model.parameters()) > 20
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, gradient in gradients.items():  # those of keys' biases are zero but for rounding
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-5, atol=1e-6 * largest)


def test_labels_are_floored_where_their_logarithm_is_taken():
    labels = torch.tensor([[0.0, -5.0, 1e-5], [torch.nan, torch.nan, 3.0]])
    expected = [[LABEL_FLOOR, -5.0, LABEL_FLOOR], [torch.nan, torch.nan, 3.0]]
    torch.testing.assert_close(floored_labels(labels, regressor().config), torch.tensor(expected), equal_nan=True)


@pytest.fixture
def wide():
    """A feature extractor with channels of 50 eV."""
    return XRFFeatureExtractor.for_config(XRFMaskedConfig(**SMALL, channel_width_kev=0.05))


@pytest.fixture
def uncertain(wide):
    """An efficiency known to 10 %, and 3,000 flat spectra of which the upper half was not measured."""
    values = torch.ones(3000, 128)
    values[:, 64:] = 0
    return UncertainEfficiency(wide, 0.1, seed=3), {"sample_id": torch.arange(3000), "input_values": values}


def test_curves_of_efficiency_are_as_rough_as_they_say(uncertain):
    efficiency, batch = uncertain
    curves = 2 * efficiency(batch, epoch=0)["input_values"][:, :64].double().log()  # of counts, not of their roots
    for channels in (2, 6, 12, 50):
        distance = 0.05 * channels  # keV
        variance = (curves[:, channels:] - curves[:, :-channels]).square().mean().item()
        expected = 2 * 0.1**2 * (1 - np.exp(-(distance**2) / (4 * 0.3**2)))
        assert variance == pytest.approx(expected, rel=0.05), channels
    assert curves.mean().item() == pytest.approx(0, abs=0.01)


def test_efficiency_keeps_the_mean_count_and_what_was_not_measured(uncertain):
    efficiency, batch = uncertain
    batch["input_values"][:, 10:20] = 3
    changed = efficiency(batch, epoch=0)["input_values"]
    for values in (changed, batch["input_values"]):
        torch.testing.assert_close(values.square().sum(1), torch.full((3000,), 144.0), rtol=1e-4, atol=0)
    assert not changed[:, 64:].any() and (changed[:, :64] > 0).all() and batch["input_values"].max() == 3


def test_efficiency_depends_on_spectrum_seed_and_epoch_only(uncertain, wide):
    efficiency, batch = uncertain
    first = efficiency(batch, epoch=1)["input_values"]
    some = {name: values[[7, 2000]] for name, values in batch.items()}
    torch.testing.assert_close(efficiency(some, epoch=1)["input_values"], first[[7, 2000]])
    assert not torch.allclose(efficiency(batch, epoch=2)["input_values"], first)
    other = UncertainEfficiency(wide, 0.1, seed=4)
    assert not torch.allclose(other(batch, epoch=1)["input_values"], first)


def test_efficiency_is_finite_for_any_even_deviate(uncertain, monkeypatch):
    efficiency, batch = uncertain
    for even in (0.0, 1 - 2**-24):  # the least and the greatest that there are
        monkeypatch.setattr(
            "training_xrf.mask_noise", lambda ids, number, *_, even=even: torch.full((3000, number), even)
        )
        assert efficiency(batch, epoch=0)["input_values"].isfinite().all()


def test_efficiency_of_another_scaling_is_refused(config):
    extractor = XRFFeatureExtractor.for_config(config, scaling="log")
    with pytest.raises(ValueError, match="An uncertain efficiency needs the scaling sqrt, but this is 'log'"):
        UncertainEfficiency(extractor, 0.1, seed=0)


def test_labels_are_learnt_from_spectra_of_uncertain_efficiency(uncertain):
    efficiency, batch = uncertain
    torch.manual_seed(0)
    model = XRFForRegression(XRFMaskedConfig(**SMALL, target_names=["Fe"], pooling="mean"))
    torch.nn.init.normal_(model.head.weight)
    batch = measured_patches(
        {name: values[:20] for name, values in batch.items()} | {"attention_mask": torch.ones(20, 8)}
    )
    batch["labels"] = torch.rand(20, 1)
    found = label_loss(model, batch, 5, model.config, efficiency)
    assert found == label_loss(model, efficiency(batch, 5), 0, model.config)
    assert found != label_loss(model, batch, 5, model.config)


def test_target_fields_by_hand():
    nan = np.nan
    labels = np.array([[10.0, 5.0, nan, 0.0, 100.0], [nan, -1.0, nan, 0.0, 1000.0], [0.1, 2.0, nan, 0.0, 10.0]])
    fields = target_fields(
        labels, ["Fe", "zero_drift", "Pb", "U", "count_rate"]
    )  # no lead is known, uranium is constant
    assert fields["target_names"] == ["Fe", "zero_drift", "count_rate"]
    assert fields["target_units"] == ["wt%", "eV", "counts/s"]
    assert fields["target_transform"] == ["log", "linear", "log"]
    assert fields["target_mean"] == pytest.approx([0.0, 2.0, np.log(100)])
    assert fields["target_std"] == pytest.approx([np.log(10), np.sqrt(6), np.log(10) * np.sqrt(2 / 3)])
    assert (fields["target_min"], fields["target_max"]) == ([0.0, None, None], [100.0, None, None])
    (mean,) = target_fields(np.array([[0.0], [1.0]]), ["Fe"])["target_mean"]
    assert mean == pytest.approx(np.log(LABEL_FLOOR) / 2)
    XRFMaskedConfig(**SMALL, **fields)


def test_label_validation_by_hand(accelerator):
    model = regressor(regression_loss="gaussian")
    batch = labelled_batch(20)
    batch["labels"][:, 2] = torch.nan
    arrays = {name: values.numpy() for name, values in batch.items()}
    features = Dataset.from_dict({name: list(values) for name, values in arrays.items()})
    validation = LabelValidation(accelerator, features, "dev", batch_size=7)
    measured = validation.measure(model)

    model.eval()
    with torch.no_grad():
        outputs = model(batch["input_values"], attention_mask=batch["attention_mask"], labels=batch["labels"])
    known = ~np.isnan(arrays["labels"][:, 0])
    iron = np.log(arrays["labels"][known, 0]), np.log(outputs.predictions[known, 0].numpy())
    drift = arrays["labels"][:, 1], outputs.predictions[:, 1].numpy()
    assert measured["validation_loss"] == pytest.approx(outputs.loss.item(), rel=1e-5)
    assert list(measured["r"]) == ["Fe", "zero_drift"]
    for name, (y, p) in (("Fe", iron), ("zero_drift", drift)):
        assert measured["r"][name] == pytest.approx(np.corrcoef(y, p)[0, 1], rel=1e-4)
    r2 = [1 - np.sum((y - p) ** 2) / np.sum((y - y.mean()) ** 2) for y, p in (iron, drift)]
    assert measured["validation_r2"] == pytest.approx(np.mean(r2), rel=1e-4)
    assert measured["validation_r"] == pytest.approx(np.mean(list(measured["r"].values())))  # no oxides here
    assert "'dev': loss" in validation.line(measured) and "over 2 targets" in validation.line(measured)


# --- optimisation ---


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_decay_is_for_matrices_only(config, optimizer):
    model = XRFForMaskedSpectrumModeling(config)
    groups = build_optimizer(model, optimizer, 1e-3, 0.05).param_groups
    decay_of = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert len(decay_of) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        is_matrix = name.endswith("weight") and "layernorm" not in name
        assert decay_of[id(parameter)] == (0.05 if is_matrix else 0.0), name


@pytest.mark.parametrize("kind", ["encoder and decoder", "perceptron"])
def test_muon_turns_the_matrices_of_layers_and_adamw_moves_the_rest(config, kind):
    """A first step of Muon moves a matrix by its gradient with all singular values near 1 in their place (its
    iteration leaves .7 to 1.2), times the rate and 0.2 sqrt(the longer side)."""
    if kind == "perceptron":
        config = XRFMaskedConfig(**SMALL | {"num_hidden_layers": 0}, perceptron_size=48, target_names=["Ca", "Fe"])
    rate, changes = 1e-2, {}
    for optimizer in ("adamw", "muon"):
        torch.manual_seed(0)
        model = (XRFForRegression if kind == "perceptron" else XRFForMaskedSpectrumModeling)(config)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        build_optimizer(model, optimizer, rate).step()
        changes[optimizer] = {name: (p.detach() - before[name]) / rate for name, p in model.named_parameters()}
    turned = {
        name for name, change in changes["muon"].items() if not torch.equal(change, changes["adamw"][name])
    }  # all others moved alike
    for name in turned:
        change = changes["muon"][name] / (0.2 * max(changes["muon"][name].shape) ** 0.5)
        left, sizes, right = torch.linalg.svd(gradients[name], full_matrices=False)
        clear = sizes > 0.1 * sizes[0]  # smaller ones are not lifted all the way in five iterations
        along = -(left.T @ change @ right.T).diagonal()[clear]
        assert clear.sum() > 10 and ((along > 0.6) & (along < 1.3)).all(), (name, along)
    matrices = {name for name, parameter in model.named_parameters() if parameter.squeeze().ndim == 2}
    at_the_ends = {name for name in matrices if re.search(r"patch_embeddings|decoder\.(embed|head)|^head", name)}
    assert turned == matrices - at_the_ends and len(turned) > 5


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


PERCEPTRON = {"perceptron_size": 24, "perceptron_num_layers": 3}


@pytest.mark.parametrize(
    "changes",
    [
        {"regression_loss": "mse"},
        {"regression_loss": "gaussian"},
        PERCEPTRON,
        {**PERCEPTRON, "num_hidden_layers": 0, "pooling": "cls"},
    ],
)
def test_flops_of_regression_are_those_that_torch_counts(changes):
    model = regressor(**changes)
    model.config._attn_implementation = model.xrf.config._attn_implementation = "eager"
    with FlopCounterMode(display=False) as forward:
        model(torch.rand(1, 128), patch_ids=torch.arange(1, 6)[None])
    assert 3 * forward.get_total_flops() == regression_flops(model.config, 5)


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
    embedding = 3 * 2 * num_visible_patches(config, 8) * 16 * 32
    assert backward.get_total_flops() == 2 * forward.get_total_flops() - embedding
    with FlopCounterMode(display=False) as forward:
        model(torch.rand(3, 128), patch_ids=torch.tensor([0, 2, 3, 5, 7]).expand(3, -1))
    assert forward.get_total_flops() == training_flops(config, 5) < training_flops(config)
    with FlopCounterMode(display=False) as forward:
        model.xrf(torch.rand(1, 128))
    assert forward.get_total_flops() == encoder_flops(config, 8)


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
