"""The parts of pretraining: masks that can be repeated, simulated labels, rates, arithmetic, checkpoints, log.

B = spectra in a batch, L = channels, P = patches of a whole spectrum, T = targets.
"""

import contextlib
import ctypes
import json
import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device
from safetensors import SafetensorError

from configuration_xrf import XRFMaskedConfig
from corpus_xrf import feature_batches, measured_patches, spread
from feature_extraction_xrf import XRFFeatureExtractor
from files_xrf import write_json, write_text
from modeling_xrf import num_visible_patches, reconstruction_targets

PROGRESS_FILE = "progress.json"
STATISTICS_SPECTRA = 50_000  # spectra that the corpus mean, and the `channel` scaling, are computed from
FIGURE_SPECTRA = 3
LABEL_STATISTICS_SPECTRA = 20_000  # spectra that the mean and standard deviation of labels are computed from
LABEL_FLOOR = 1e-4  # of labels whose logarithm is taken: 1 ppm in wt%, about what XRF can detect at best
HALF_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of those that accelerate mixes with float32
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


# ---------------------------------------------------------------------------------------------------------------------
# What the model is asked, and how well it answers


def mask_noise(sample_ids: torch.Tensor, num_patches: int, seed: int, epoch: int) -> torch.Tensor:
    """Uniform noise `(B, P)` in [0, 1) that depends on nothing but the arguments, so that a spectrum's mask is the
    same whatever the batch, process or device, and after a resume: SplitMix64 (Steele et al. 2014) in place of a
    generator with a state.

    Args:
        sample_ids (`torch.LongTensor` of shape `(B,)`): the spectra's numbers.
        num_patches: P.
        seed, epoch: of the run; -1 is the epoch of validation.
    """
    state = _splitmix64(_splitmix64(torch.full_like(sample_ids, seed)) + epoch)
    state = _splitmix64(state + sample_ids)[:, None]
    bits = _splitmix64(state + torch.arange(num_patches, device=sample_ids.device))
    return _shift_right(bits, 40).float() / 2**24


def _splitmix64(state: torch.Tensor) -> torch.Tensor:
    """Its output for 64-bit states; int64 arithmetic wraps as the unsigned one of the original does."""
    state = state + (0x9E3779B97F4A7C15 - 2**64)
    state = (state ^ _shift_right(state, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    state = (state ^ _shift_right(state, 27)) * (0x94D049BB133111EB - 2**64)
    return state ^ _shift_right(state, 31)


def _shift_right(state: torch.Tensor, bits: int) -> torch.Tensor:
    """A shift that fills with zeros; that of int64 repeats the sign."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def channel_statistics(
    batches: Iterable[dict[str, torch.Tensor]], patch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of `input_values` in every channel, over the spectra that measured it.

    Returns:
        two `torch.DoubleTensor` of shape `(L,)`; 0 and 1 for a channel that no spectrum measured, and a standard
        deviation of 1 where all values are equal.
    """
    sums = 0  # number, sum, sum of squares
    for batch in batches:
        measured = batch["attention_mask"].repeat_interleave(patch_size, dim=1).double()
        values = batch["input_values"].double() * measured
        sums = sums + torch.stack([measured.sum(0), values.sum(0), values.square().sum(0)])
    number = sums[0].clamp(min=1)
    mean = sums[1] / number
    variance = sums[2] / number - mean.square()
    sd = torch.where(variance > 1e-12 * mean.square(), variance.clamp(min=0).sqrt(), 1.0)
    return mean, sd


def model_inputs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What any of the models is given of a batch of `measured_patches`."""
    return {name: batch[name] for name in ("input_values", "attention_mask", "patch_ids")}


def build_extractor(
    config: XRFMaskedConfig, rows, split: str, scaling: str = "sqrt", **options
) -> XRFFeatureExtractor:
    """A new feature extractor for a model; the statistics of `channel` scaling come from `rows` of a split."""
    if scaling == "channel":
        length = config.spectrum_length
        unscaled = {"scaling": scaling, "channel_mean": [0.0] * length, "channel_std": [1.0] * length, **options}
        batches = feature_batches(
            spread(rows, STATISTICS_SPECTRA), XRFFeatureExtractor.for_config(config, **unscaled), split
        )
        mean, sd = channel_statistics(batches, config.patch_size)
        options.update(channel_mean=mean.tolist(), channel_std=sd.tolist())
    return XRFFeatureExtractor.for_config(config, scaling=scaling, **options)


@torch.no_grad()
def reconstruction_errors(model, batches: Iterable[dict], corpus_mean: torch.Tensor, seed: int) -> torch.Tensor:
    """Sums over the masked channels of all batches, with one fixed mask per spectrum.

    Args:
        model (`XRFForMaskedSpectrumModeling`): left in training mode.
        batches: dicts with `sample_id`, `input_values` and `attention_mask`.
        corpus_mean (`(L,)`): the spectrum that the model must beat, on the scale of the reconstruction targets.
        seed: of the masks.

    Returns:
        `torch.DoubleTensor` `(3,)`: squared error of the reconstruction, squared error of the corpus mean, number of
        masked channels.
    """
    config, device = model.config, model.device
    corpus_mean = corpus_mean.to(device, torch.float32)
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    model.eval()
    for batch in batches:
        batch = send_to_device(measured_patches(batch), device)
        noise = mask_noise(batch["sample_id"], config.num_patches, seed, epoch=-1)
        outputs = model(**model_inputs(batch), noise=noise)
        targets = reconstruction_targets(batch["input_values"], config)
        masked = outputs.mask.repeat_interleave(config.patch_size, dim=1)  # (B, L)
        error = (outputs.reconstruction.float() - targets).square() * masked
        mean_error = (corpus_mean - targets).square() * masked
        sums += torch.stack([error.sum(), mean_error.sum(), masked.sum()]).double()
    model.train()
    return sums


def mean_target(rows, extractor: XRFFeatureExtractor, split: str, config: XRFMaskedConfig) -> torch.Tensor:
    """What a model that has learnt nothing but the corpus would reconstruct `(L,)`: the mean of the targets."""
    batches = feature_batches(spread(rows, STATISTICS_SPECTRA), extractor, split)
    mean, _ = channel_statistics(
        ({**batch, "input_values": reconstruction_targets(batch["input_values"], config)} for batch in batches),
        config.patch_size,
    )
    return mean


class Validation:
    """Measures a model on the validation split, on every process its share, and draws a few reconstructions.

    Args:
        rows, features (`datasets.Dataset`): the split's native spectra, and what `cached_features` made of them.
        split: its name.
        corpus_mean (`(L,)`): the spectrum that the model must beat.
        seed: of the masks.
    """

    def __init__(
        self, accelerator, extractor, rows, features, split, corpus_mean: torch.Tensor, batch_size: int, seed: int
    ):
        self.accelerator, self.extractor, self.corpus_mean = accelerator, extractor, corpus_mean
        self.split, self.batch_size, self.seed = split, batch_size, seed
        share = range(accelerator.process_index, len(features), accelerator.num_processes)
        self.share = features.select(share).with_format("torch")
        self.examples = spread(features, FIGURE_SPECTRA).with_format("torch")[:]
        self.titles = [_spectrum_title(row) for row in spread(rows, FIGURE_SPECTRA).remove_columns("counts")]

    def line(self, measured: dict) -> str:
        """What `measure` found, in words."""
        return (
            f"masked patches of {self.split!r}: error {measured['validation_loss']:.5f}, R2 "
            f"{measured['validation_r2']:.4f} against the corpus mean"
        )

    def measure(self, model) -> dict[str, float]:
        """Error of the masked channels, and R2 against predicting the mean of the training spectra there."""
        sums = reconstruction_errors(model, self.share.iter(self.batch_size), self.corpus_mean, self.seed)
        error, mean_error, number = self.accelerator.reduce(sums, "sum")
        return {"validation_loss": (error / number).item(), "validation_r2": (1 - error / mean_error).item()}

    @torch.no_grad()
    def draw(self, model, path: str) -> None:
        """A figure of a few spectra with their masked patches reconstructed."""
        from figures_xrf import plot_reconstructions

        config = model.config
        batch = {name: values.to(model.device) for name, values in self.examples.items()}
        noise = mask_noise(batch["sample_id"], config.num_patches, self.seed, epoch=-1)
        model.eval()
        outputs = model(batch["input_values"], attention_mask=batch["attention_mask"], noise=noise)
        model.train()
        plot_reconstructions(
            path,
            self.extractor.energy_kev,
            reconstruction_targets(batch["input_values"], config).cpu(),
            outputs.reconstruction.float().cpu(),
            outputs.mask.cpu(),
            self.titles,
            batch["attention_mask"].cpu(),
            y_label="standardised counts" if config.normalize_patch_targets else "scaled counts",
        )


def masked_loss(model, batch: dict[str, torch.Tensor], epoch: int, config: XRFMaskedConfig, seed: int) -> torch.Tensor:
    """Loss of `XRFForMaskedSpectrumModeling` (perhaps wrapped by accelerate) on one batch of `measured_patches`."""
    noise = mask_noise(batch["sample_id"], config.num_patches, seed, epoch)
    attention_mask = None if batch["all_measured"] else batch["attention_mask"]  # attention without is faster
    return model(batch["input_values"], attention_mask, noise, batch["patch_ids"]).loss


def loss_terms(batch: dict[str, torch.Tensor], config: XRFMaskedConfig) -> torch.Tensor:
    """Number of terms that the loss of a batch is the mean of: its labels, or the patches that are reconstructed."""
    if "labels" in batch:
        return (~batch["labels"].isnan()).sum()
    measured = (batch["attention_mask"] != 0).sum(1)
    if not config.masked_loss_only:
        return measured.sum()
    return (measured - num_visible_patches(config, measured)).sum()


def loss_weights(accelerator, batches: Sequence[dict], config: XRFMaskedConfig) -> torch.Tensor:
    """What to multiply the losses of the batches of one step on this process with, `(len(batches),)`, so that their
    mean over batches and processes is the mean over all terms of the global batch, however it is divided."""
    terms = torch.stack([loss_terms(batch, config) for batch in batches]).float()
    total = accelerator.reduce(terms.sum(), "sum")
    return terms * (len(batches) * accelerator.num_processes) / total.clamp(min=1)


def _spectrum_title(row: dict) -> str:
    """What a row of a corpus says about where a spectrum was measured."""
    if row.get("sample"):
        return row["sample"]
    depth = row.get("depth_mm")
    return " ".join(filter(None, [row.get("core"), None if depth is None else f"{depth:g} mm"]))


# ---------------------------------------------------------------------------------------------------------------------
# Labels, known exactly because their spectra are simulated


def target_fields(labels: np.ndarray, target_names: Sequence[str]) -> dict[str, list]:
    """Fields of `XRFMaskedConfig` for targets of simulated spectra, those left out that nowhere vary.

    Quantities that span orders of magnitude are learnt as logarithms: compositions, floored at `LABEL_FLOOR`, and
    count rates. The other states of an instrument, which may be negative, are learnt as they are.

    Args:
        labels (`(N, T)`): labels of training spectra, NaN where missing.
        target_names: their columns, of `dataset_builder.simulation.TARGET_NAMES`.
    """
    from dataset_builder.simulation import TARGET_UNITS

    fields = {f"target_{name}": [] for name in ("names", "units", "transform", "mean", "std", "min", "max")}
    for name, values in zip(target_names, np.asarray(labels, dtype=np.float64).T, strict=True):
        values, unit = values[~np.isnan(values)], TARGET_UNITS[name]
        transform = "log" if unit in ("wt%", "counts/s") else "linear"
        if transform == "log":
            values = np.log(np.maximum(values, LABEL_FLOOR))
        if len(values) == 0 or np.ptp(values) == 0:
            continue
        lower, upper = (0.0, 100.0) if unit == "wt%" else (None, None)
        entry = (name, unit, transform, float(values.mean()), float(values.std()), lower, upper)
        for column, value in zip(fields.values(), entry, strict=True):
            column.append(value)
    return fields


def floored_labels(labels: torch.Tensor, config: XRFMaskedConfig) -> torch.Tensor:
    """Labels `(B, T)`, those of targets with the transform `log` not below `LABEL_FLOOR`."""
    lowest = [LABEL_FLOOR if transform == "log" else -math.inf for transform in config.target_transform]
    return torch.maximum(labels, labels.new_tensor(lowest))  # NaN stays NaN


class UncertainEfficiency:
    """What may be wrong in the simulation of an instrument: tube, path and detector let through another share of the
    photons of each energy than was thought. Every spectrum is multiplied by a smooth random curve, each time by
    another one, so that a model does not take the simulation for more exact than it is.

    The logarithm of the curve is white noise smoothed by a Gaussian of standard deviation `LENGTH_KEV`: at energies d
    apart it correlates by exp(-d^2 / (4 LENGTH_KEV^2)).

    Args:
        extractor (`XRFFeatureExtractor`): gives energies to channels; its scaling must be `sqrt`, of which counts can
            be multiplied without knowing them.
        ln_sd (`float`): standard deviation of the curve's logarithm.
        seed (`int`): of the run.

    Raises:
        ValueError: another scaling.
    """

    LENGTH_KEV = 0.3

    def __init__(self, extractor: XRFFeatureExtractor, ln_sd: float, seed: int):
        if extractor.scaling != "sqrt":
            raise ValueError(f"An uncertain efficiency needs the scaling sqrt, but this is {extractor.scaling!r}.")
        energy_kev, length_kev = extractor.energy_kev, self.LENGTH_KEV
        centers = np.arange(energy_kev[0] - 4 * length_kev, energy_kev[-1] + 5 * length_kev, length_kev)
        waves = np.exp(-0.5 * ((energy_kev - centers[:, None]) / length_kev) ** 2)
        self.waves = torch.from_numpy(ln_sd * waves / np.sqrt(np.square(waves).sum(axis=0))).float()  # (waves, L)
        self.seed = seed

    def __call__(self, batch: dict[str, torch.Tensor], epoch: int) -> dict[str, torch.Tensor]:
        """A batch with other `input_values`, which depend on nothing but the spectra's numbers, seed and epoch."""
        values = batch["input_values"]
        self.waves = self.waves.to(values.device)
        even = mask_noise(batch["sample_id"], len(self.waves), self.seed, epoch)
        curve = torch.special.ndtri(even.clamp(2**-25, 1 - 2**-24)) @ self.waves  # 0 and 1 are infinite
        changed = values * torch.exp(0.5 * curve)
        size = values.square().sum(1, keepdim=True) / changed.square().sum(1, keepdim=True)  # the mean count stays 1
        return {**batch, "input_values": changed * size.sqrt()}


def label_loss(
    model,
    batch: dict[str, torch.Tensor],
    epoch: int,
    config: XRFMaskedConfig,
    efficiency: UncertainEfficiency | None = None,
) -> torch.Tensor:
    """Loss of `XRFForRegression` (perhaps wrapped by accelerate) on one batch of a stream with labels."""
    if efficiency is not None:
        batch = efficiency(batch, epoch)
    return model(**model_inputs(batch), labels=floored_labels(batch["labels"], config)).loss


@torch.no_grad()
def label_sums(model, batches: Iterable[dict]) -> torch.Tensor:
    """Sums over the labels of all batches, of labels y and predictions p of transformed and standardised targets.

    Args:
        model (`XRFForRegression`): left in training mode.
        batches: dicts with `input_values`, `attention_mask` and `labels`.

    Returns:
        `torch.DoubleTensor` `(7, T)`: number of labels, sums of y, p, y^2, p^2 and y p, and a seventh row whose first
        entry is the loss times the number of labels.
    """
    config, device = model.config, model.device
    mean, std = (torch.tensor(values, device=device) for values in (config.target_mean, config.target_std))
    logarithmic = torch.tensor([transform == "log" for transform in config.target_transform], device=device)

    def standardized(values):
        tiny = torch.finfo(torch.float32).tiny
        return ((torch.where(logarithmic, values.clamp(min=tiny).log(), values) - mean) / std).double()

    sums = torch.zeros(7, len(config.target_names), dtype=torch.float64, device=device)
    model.eval()
    for batch in batches:
        batch = send_to_device(measured_patches(batch), device)
        labels = floored_labels(batch["labels"], config)
        outputs = model(**model_inputs(batch), labels=labels)
        present = ~labels.isnan()
        y, p = (torch.where(present, standardized(values.float()), 0.0) for values in (labels, outputs.predictions))
        sums[:6] += torch.stack([each.sum(0) for each in (present, y, p, y * y, p * p, y * p)])
        sums[6, 0] += outputs.loss.double() * present.sum()
    model.train()
    return sums


class LabelValidation:
    """Measures a regression model on the labels of a held-out split, on every process its share.

    Args:
        features (`datasets.Dataset`): what `cached_features` made of the split, with its labels.
        split: its name.
    """

    def __init__(self, accelerator, features, split: str, batch_size: int):
        self.accelerator, self.split, self.batch_size = accelerator, split, batch_size
        masks = features.select_columns("attention_mask").with_format("numpy")[:]["attention_mask"]
        order = np.argsort(masks.sum(axis=1), kind="stable")  # spectra with as many measured patches share batches
        share = order[accelerator.process_index :: accelerator.num_processes]
        self.share = features.select(share).with_format("torch")

    def batches(self) -> Iterable[dict[str, torch.Tensor]]:
        """The share of this process."""
        return self.share.iter(self.batch_size)

    def measure(self, model) -> dict:
        """Of transformed targets: loss, R2 against the mean of the split's own labels as a mean over targets, Pearson
        r as a mean over the main elements' oxides (over all targets if there are none), and `r` of every target with
        labels that vary."""
        from dataset_builder.simulation.targets import OXIDES

        sums = self.accelerator.reduce(label_sums(model, self.batches()), "sum").cpu()
        number, y, p, yy, pp, yp = sums[:6]
        variance = yy - y * y / number  # times the number, as all of these
        r2 = 1 - (yy - 2 * yp + pp) / variance
        r = (yp - y * p / number) / (variance * (pp - p * p / number)).sqrt()
        known = (number > 1) & (variance > 1e-9 * number) & r.isfinite()
        by_target = {name: r[i].item() for i, name in enumerate(model.config.target_names) if known[i]}
        main = [by_target[name] for name in OXIDES if name in by_target] or list(by_target.values())
        return {
            "validation_loss": (sums[6, 0] / number.sum()).item(),
            "validation_r2": r2[known].mean().item() if by_target else None,
            "validation_r": float(np.mean(main)) if main else None,
            "r": by_target,
        }

    def line(self, measured: dict) -> str:
        """What `measure` found, in words."""
        if not measured["r"]:
            return f"{self.split!r}: loss {measured['validation_loss']:.5f}; no label varies"
        return (
            f"{self.split!r}: loss {measured['validation_loss']:.5f}, R2 {measured['validation_r2']:.4f} over "
            f"{len(measured['r'])} targets, r {measured['validation_r']:.4f} over the main oxides"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Models in shares (FSDP2)


def set_sharded_precision(accelerator) -> None:
    """With FSDP2, exchange weights in the precision of the run, and sum gradients in float32. Inputs and outputs keep
    theirs, for rounded noise would be another mask; inside the model `accelerator.autocast` chooses, as without FSDP2.
    To be called before the model is prepared."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if accelerator.is_fsdp2:
        dtype = HALF_PRECISIONS.get(accelerator.mixed_precision)
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )


def whole_model(accelerator, model):
    """The model without what accelerate put around it; with FSDP2, where every process holds a share, a copy of all of
    it on every process. Called by all processes."""
    bare = accelerator.unwrap_model(model)
    if not accelerator.is_fsdp2:
        return bare
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    copy = type(bare)(bare.config).to(bare.device)
    copy.load_state_dict(get_model_state_dict(bare, options=StateDictOptions(full_state_dict=True)))
    return copy


# ---------------------------------------------------------------------------------------------------------------------
# Optimisation


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for some matrices and AdamW for all other parameters, as the one optimiser that a
    checkpoint, a gradient scaler and FSDP2 expect. Muon's steps have the size of those of AdamW (Liu et al. 2025), so
    that both share one rate and one weight decay.

    Args:
        hidden: the matrices that Muon steps.
        others: groups of parameters for AdamW.
        lr, weight_decay: of Muon; groups of AdamW bring theirs.
        betas: of AdamW.
    """

    def __init__(self, hidden: list[torch.nn.Parameter], others: list[dict], lr, weight_decay, betas):
        self.parts = (
            torch.optim.Muon(hidden, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, betas=betas, fused=True),
        )
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure=None):
        """One step of both, on the groups and the state of this optimiser, which loading a checkpoint replaces."""
        muon, adamw = self.parts
        muon.param_groups, adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        for part in self.parts:
            part.state = self.state
            part.step()


def build_optimizer(
    model: torch.nn.Module,
    name: str,
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: Sequence[float] = (0.9, 0.95),
) -> torch.optim.Optimizer:
    """AdamW for all parameters (`adamw`), or (`muon`) Muon for the matrices of the layers and of the perceptron, and
    AdamW for all others. Weight decay is for matrices; biases, norms and the two learned tokens are vectors."""
    hidden, matrices, vectors = [], [], []
    for path, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.squeeze().ndim < 2:
            vectors.append(parameter)
        else:
            hidden_layer = ".layers." in path or ".perceptron." in path
            (hidden if name == "muon" and hidden_layer else matrices).append(parameter)
    others = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if name == "muon":
        return MuonAndAdamW(hidden, others, learning_rate, weight_decay, tuple(betas))
    return torch.optim.AdamW(others, lr=learning_rate, betas=tuple(betas), fused=True)


def learning_rate_at(
    step: int,
    total_steps: int,
    learning_rate: float,
    min_learning_rate: float = 0.0,
    warmup_steps: int = 0,
    warmup_start_factor: float = 0.0,
    schedule: str = "cosine",
) -> float:
    """Rate of optimiser step `step`, counted from 0.

    It rises linearly from `warmup_start_factor * learning_rate` at step 0 to `learning_rate` at step `warmup_steps`,
    then falls to `min_learning_rate` at the last step, along half a cosine (Loshchilov & Hutter 2017) or a line, or
    stays (`constant`).
    """
    if step < warmup_steps:
        return learning_rate * (warmup_start_factor + (1 - warmup_start_factor) * step / warmup_steps)
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    share = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}[schedule]
    return min_learning_rate + (learning_rate - min_learning_rate) * share


# ---------------------------------------------------------------------------------------------------------------------
# Speed


def training_flops(config: XRFMaskedConfig, num_patches: int | None = None) -> int:
    """Floating-point operations of one spectrum in a pretraining step, a multiply-add counted as two. Of the spectrum,
    `num_patches` patches are used, by default all.

    Per token and block of width d: 8 d^2 for the four projections, 4 d f for feed-forward layers of width f, 4 n d for
    attention over n tokens. The encoder sees the visible patches, the decoder all, each with CLS; patch embedding, the
    map between the two, and the head come on top. The backward pass costs twice the forward pass.
    """
    patches, patch_size = num_patches or config.num_patches, config.patch_size
    visible = num_visible_patches(config, patches)
    width, decoder_width = config.hidden_size, config.decoder_hidden_size
    decoder = _blocks_flops(
        config.decoder_num_hidden_layers, patches + 1, decoder_width, config.decoder_intermediate_size
    )
    ends = (visible + 1) * width * decoder_width + patches * decoder_width * patch_size
    return 3 * (encoder_flops(config, visible) + decoder + 2 * ends)


def regression_flops(config: XRFMaskedConfig, num_patches: int) -> int:
    """As `training_flops`, of a step of `XRFForRegression` that encodes `num_patches` patches."""
    outputs = len(config.target_names) * (2 if config.regression_loss == "gaussian" else 1)
    return 3 * (encoder_flops(config, num_patches) + 2 * config.hidden_size * outputs)


def encoder_flops(config: XRFMaskedConfig, num_patches: int) -> int:
    """As `training_flops`, of the encoder alone on `num_patches` patches, without a backward pass; of a perceptron, a
    layer of width w adds 4 w^2."""
    blocks = _blocks_flops(config.num_hidden_layers, num_patches + 1, config.hidden_size, config.intermediate_size)
    width = config.perceptron_size
    ends = config.spectrum_length + config.num_patches + config.hidden_size if width else 0
    perceptron = 2 * ends * width + config.perceptron_num_layers * 4 * width**2
    return blocks + 2 * num_patches * config.patch_size * config.hidden_size + perceptron


def _blocks_flops(layers: int, tokens: int, width: int, intermediate: int) -> int:
    return layers * tokens * (8 * width**2 + 4 * width * intermediate + 4 * tokens * width)


def fastest_precision(device: torch.device) -> str:
    """`bf16` where a machine has units that multiply bfloat16 matrices, else `no`, as accelerate calls them."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    units = torch.cpu.get_capabilities()
    return "bf16" if device.type == "cpu" and (units.get("avx512_bf16") or units.get("amx_bf16")) else "no"


def fastest_attention(device: torch.device, mixed_precision: str) -> str:
    """The attention implementation that trains fastest: on a CPU, where the fused kernel multiplies no bfloat16
    matrices, `eager` in bf16."""
    return "eager" if device.type == "cpu" and mixed_precision == "bf16" else "sdpa"


def keep_freed_memory() -> None:
    """Let this process keep what it frees. By default glibc returns every large tensor to the system at once, and each
    next one is zeroed page by page: a tenth of the time of a step of a small model on a CPU. Elsewhere, no effect."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def matrix_peak(device: torch.device, dtype: torch.dtype, least_seconds: float = 0.1) -> float:
    """FLOP/s of large square matrix products on this device: the 100 % that the speed of training is compared with."""
    size = 8192 if device.type == "cuda" else 1024
    synchronize = torch.get_device_module(device).synchronize
    matrix = torch.randn(size, size, device=device).to(dtype)
    product = matrix @ matrix  # the first call chooses a kernel
    repeats = 1
    while True:
        synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(matrix, matrix, out=product)
        synchronize()
        seconds = time.perf_counter() - start
        if seconds > least_seconds:
            return repeats * 2 * size**3 / seconds
        repeats *= 2


# ---------------------------------------------------------------------------------------------------------------------
# Log and checkpoints


def log_line(record: dict, total_steps: int, seconds_left: float) -> str:
    """A record of the history as one line whose columns stand below each other from line to line."""
    minutes, seconds = divmod(round(seconds_left), 60)
    return (
        f"step {record['step']:>{len(str(total_steps))}}/{total_steps}  loss {record['loss']:9.5f}  "
        f"rate {record['learning_rate']:.3e}  gradient norm {record['gradient_norm']:9.4f}  "
        f"{record['spectra_per_s']:8.1f} spectra/s  {100 * record['share_of_peak']:5.1f} % of peak  "
        f"{minutes // 60:3d}:{minutes % 60:02d}:{seconds:02d} left"
    )


class History:
    """Records of a run, one JSON object a line in `path`, and in `records`; those after `last_step` are forgotten, as
    a run that resumes from there writes them anew."""

    def __init__(self, path: str | Path, last_step: int = 0):
        self.path, self.records = Path(path), []
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            self.records = [record for record in map(json.loads, lines) if record["step"] <= last_step]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in self.records))

    def add(self, record: dict) -> None:
        self.records.append(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def last(self, name: str) -> dict | None:
        """The last record that holds `name`."""
        return next((record for record in reversed(self.records) if name in record), None)


@contextlib.contextmanager
def writing(path: str | Path):
    """Turns whatever the several writers of torch and safetensors raise on a full disk into one `OSError`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise OSError(f"{path} could not be written ({reason}); free some disk space and resume the run.") from error


def save_checkpoint(accelerator, folder: str | Path, progress: dict, keep_last: int) -> Path:
    """Write `folder/step_000100` with everything that continues the run, whole or not at all, and remove all but the
    newest `keep_last` checkpoints. Called by every process.

    Args:
        progress: `step` and whatever else `read_progress` shall compare or return, kept as JSON beside the state.

    Raises:
        OSError: it could not be written.
    """
    path = Path(folder) / f"step_{progress['step']:06d}"
    temporary = path.with_name(f".{path.name}.part")
    if accelerator.is_main_process:
        for left_by_a_killed_run in Path(folder).glob(".step_*.part"):
            shutil.rmtree(left_by_a_killed_run)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        with writing(path):
            accelerator.save_state(str(temporary))
            if accelerator.is_main_process:
                write_json(temporary / PROGRESS_FILE, progress)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(path, ignore_errors=True)  # of a run that was extended and resumed from an earlier step
        os.replace(temporary, path)
        for old in checkpoints(folder)[:-keep_last]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return path


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in `folder`, the oldest first."""
    found = [path for path in Path(folder).glob("step_*") if (path / PROGRESS_FILE).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def read_progress(path: str | Path, expected: dict) -> dict:
    """How far a checkpoint is, once everything in `expected` is found to be as it was when it was written.

    Raises:
        ValueError: an option that decides the data order or the model has another value now. One that did not exist
            when the checkpoint was written is not compared.
    """
    progress = json.loads((Path(path) / PROGRESS_FILE).read_text(encoding="utf-8"))
    for name, value in expected.items():
        if progress.get(name, value) != value:
            raise ValueError(
                f"{path} was written with {name} {progress[name]!r}, but the run to resume has {value!r}; give the "
                "same, or start a new run in another output_dir."
            )
    return progress


def provenance() -> dict[str, str | None]:
    """Commit of this code (`None` outside a git checkout), hardware and date, which every reported number carries."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    if torch.cuda.is_available():
        hardware = torch.cuda.get_device_name()
    else:
        hardware = f"{torch.get_num_threads()} of {os.cpu_count()} {platform.machine()} CPU cores"
    return {"commit": commit, "hardware": hardware, "date": datetime.now(UTC).date().isoformat()}
