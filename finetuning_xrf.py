"""Adapting a pretrained encoder to laboratory labels: labelled spectra in memory, ways to adapt, what came out.

N = spectra, L = channels of the model's grid, P = patches, D = hidden size, T = targets. A missing laboratory value is
NaN everywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig, TrainerCallback

from configuration_xrf import XRFMaskedConfig
from corpus_xrf import extract_features
from dataset_builder.features import FIXED_COLUMNS
from dataset_builder.spectrum import Spectrum
from dataset_builder.splits import split_by_group
from evaluation_xrf import METRIC_NAMES, NORMAL_HALF_WIDTHS, interval_metrics, regression_metric
from feature_extraction_xrf import XRFFeatureExtractor
from modeling_xrf import XRFForRegression, XRFModel

# What a concentration in this unit can be. Other units have no limits.
VALID_RANGES = {"wt%": (0.0, 100.0), "ppm": (0.0, 1e6)}
MIN_LABELS = 3  # of a target in training: two to span a line and one to judge it
# Ridge penalties as a share of the embeddings' total variance, the trace of their scatter matrix.
PROBE_PENALTIES = np.logspace(-8, 2, 41)
# The least penalty for a head that is to be trained on. An embedding varies along few directions; with less penalty
# the head lives off the others, so steeply that the first steps of training, or bfloat16, throw it far off.
START_PENALTY = 1e-3
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")  # of attention, feed-forward layers, perceptron
ROWS_AT_ONCE = 1024  # spectra rebinned together, so that memory stays small
ROWS_IN_A_BATCH = 256  # spectra that go through a model together


@dataclass(frozen=True)
class LabelledSpectra(torch.utils.data.Dataset):
    """Spectra with laboratory values, ready for training; few enough to be held in memory.

    Args:
        input_values (`torch.FloatTensor` of shape `(N, L)`), attention_mask (`torch.LongTensor` of shape `(N, P)`):
            as [`XRFFeatureExtractor`] returns them.
        labels (`torch.FloatTensor` of shape `(N, T)`): laboratory values in each target's unit, NaN where missing.
        counts (`np.ndarray` of shape `(N, L)`): counts on the model's grid, which the baselines see.
        groups (`np.ndarray` of shape `(N,)`, *optional*): core, or else sample, of every spectrum.
    """

    input_values: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    counts: np.ndarray
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {
            "input_values": self.input_values[row],
            "attention_mask": self.attention_mask[row],
            "labels": self.labels[row],
        }

    def select(self, rows: np.ndarray) -> LabelledSpectra:
        """The spectra of these row numbers."""
        return LabelledSpectra(
            self.input_values[rows],
            self.attention_mask[rows],
            self.labels[rows],
            self.counts[rows],
            None if self.groups is None else self.groups[rows],
        )


# --- the corpus ---


def read_labels(rows, target_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Laboratory values and groups of a split, without reading its spectra.

    Args:
        rows (`datasets.Dataset`): a split of a corpus.
        target_names (`Sequence[str]`): columns with laboratory values.

    Returns:
        labels `(N, T)` float64, NaN where missing, and groups `(N,)`: the core, or else the sample, of every spectrum
        (`None` where some spectrum names neither).

    Raises:
        ValueError: a target is no column of the corpus, or a value is infinite.
    """
    available = [name for name in rows.column_names if name not in FIXED_COLUMNS]
    for name in target_names:
        if name not in available:
            raise ValueError(f"The corpus has no target {name!r}; it has {', '.join(available) or 'none'}.")
    places = [name for name in ("core", "sample") if name in rows.column_names]
    frame = rows.select_columns([*target_names, *places]).to_pandas()
    labels = frame[list(target_names)].to_numpy(dtype=np.float64, na_value=np.nan)
    for row, column in np.argwhere(np.isinf(labels)):
        raise ValueError(f"Row {row} has an infinite {target_names[column]}; correct it, or leave it empty.")
    groups = np.full(len(frame), "", dtype=object)
    for name in places:
        groups = np.where(groups == "", frame[name].fillna("").astype(str), groups)
    return labels, groups.astype(str) if (groups != "").all() else None


def read_target_units(rows, target_names: Sequence[str]) -> list[str]:
    """Unit of each target, from the corpus' JSON column `target_units`; empty where it does not say."""
    units = rows[0].get("target_units") if "target_units" in rows.column_names else None
    return [json.loads(units or "{}").get(name, "") for name in target_names]


def read_spectra(
    rows,
    split: str,
    picked: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None,
    feature_extractor: XRFFeatureExtractor,
) -> LabelledSpectra:
    """Some spectra of a split, rebinned and scaled as the model wants them.

    Args:
        rows (`datasets.Dataset`): a split of M spectra; `split` is its name.
        picked (`np.ndarray` of shape `(N,)`): row numbers of the wanted ones.
        labels (`np.ndarray` of shape `(M, T)`), groups (`np.ndarray` of shape `(M,)`, *optional*): of the whole split.

    Raises:
        ValueError: a spectrum that the feature extractor refuses, named by its row.
    """
    values, masks, counts = [], [], []
    for start in range(0, len(picked), ROWS_AT_ONCE):
        part = picked[start : start + ROWS_AT_ONCE]
        table = rows.select(part).with_format("arrow")[:]
        features = extract_features(table, part.tolist(), feature_extractor, split)
        for name, parts in (("input_values", values), ("attention_mask", masks)):
            parts.append(features[name].combine_chunks().flatten().to_numpy().reshape(len(part), -1))
        native = [row.values.to_numpy() for row in table["counts"].combine_chunks()]
        on_grid, _ = feature_extractor.rebin(native, table["gain_kev"].to_numpy(), table["offset_kev"].to_numpy())
        counts.append(on_grid.astype(np.float32))
    return LabelledSpectra(
        input_values=torch.from_numpy(np.concatenate(values)),
        attention_mask=torch.from_numpy(np.concatenate(masks)).long(),
        labels=torch.from_numpy(labels[picked].astype(np.float32)),
        counts=np.concatenate(counts),
        groups=None if groups is None else groups[picked],
    )


def labelled_spectra(
    spectra: Sequence[Spectrum], labels: np.ndarray, groups: np.ndarray | None, feature_extractor: XRFFeatureExtractor
) -> LabelledSpectra:
    """`Spectrum` objects with labels `(N, T)` and groups `(N,)`, rebinned and scaled as the model wants them.

    Raises:
        ValueError: a spectrum that the feature extractor refuses.
    """
    spectra = list(spectra)
    if not spectra:
        length = feature_extractor.spectrum_length
        return LabelledSpectra(
            input_values=torch.zeros(0, length),
            attention_mask=torch.zeros(0, length // feature_extractor.patch_size, dtype=torch.long),
            labels=torch.zeros(0, np.shape(labels)[1]),
            counts=np.zeros((0, length), dtype=np.float32),
            groups=groups,
        )
    features = feature_extractor(spectra)
    calibration = ([getattr(spectrum, name) for spectrum in spectra] for name in ("gain_kev", "offset_kev"))
    counts, _ = feature_extractor.rebin([spectrum.counts for spectrum in spectra], *calibration)
    return LabelledSpectra(
        input_values=torch.from_numpy(features["input_values"]),
        attention_mask=torch.from_numpy(features["attention_mask"]).long(),
        labels=torch.from_numpy(np.asarray(labels, dtype=np.float32)),
        counts=counts.astype(np.float32),
        groups=groups,
    )


def check_labels(labels: np.ndarray, target_names: Sequence[str], purpose: str, minimum: int = 1) -> None:
    """Raise `ValueError` where a target has fewer than `minimum` labels or, with more than one, is constant.

    Args:
        labels (`np.ndarray` of shape `(N, T)`): laboratory values, NaN where missing.
        purpose (`str`): what the labels are for, such as `"training"`.
    """
    for name, values in zip(target_names, np.asarray(labels, dtype=np.float64).T):
        values = values[~np.isnan(values)]
        if len(values) < minimum:
            raise ValueError(
                f"{purpose} needs at least {minimum} label{'s' * (minimum > 1)} of {name}, but has {len(values)}; add "
                "labels, or leave the target out."
            )
        if minimum > 1 and np.ptp(values) == 0:
            raise ValueError(
                f"{name} is constant ({values[0]:g}) in the {len(values)} labels for {purpose}, so nothing can be "
                "learnt; add other labels, or leave the target out."
            )


def carve_validation(groups: np.ndarray | None, fraction: float, seed: int) -> np.ndarray:
    """Which of the drawn training spectra are set aside to stop training: whole cores or samples, never single rows.

    Returns:
        `np.ndarray` of bool, shape `(N,)`: `True` for validation.
    """
    number = 0 if groups is None else len(set(groups))
    if number < 2:
        raise ValueError(
            "Early stopping without a validation split needs training labels from two cores or samples, but there "
            f"{'is 1' if number == 1 else 'are none named'}; give validation_split, or patience 0 to train to the end."
        )
    return split_by_group(groups, {"train": 1 - fraction, "validation": fraction}, seed) == "validation"


# --- models ---


def load_encoder(name: str, revision: str | None = None) -> XRFModel:
    """The pretrained encoder of a repository (folder or Hub id) in single precision.

    Raises:
        ValueError: the repository holds another architecture, or lacks encoder weights.
        OSError: there is no such repository.
    """
    config = AutoConfig.from_pretrained(name, revision=revision)
    if config.model_type != XRFMaskedConfig.model_type:
        raise ValueError(
            f"{name} holds a model of type {config.model_type!r}, not {XRFMaskedConfig.model_type!r}; choose a "
            "pretrained XRF repository."
        )
    encoder, loading = XRFModel.from_pretrained(name, revision=revision, dtype=torch.float32, output_loading_info=True)
    if loading["missing_keys"]:
        raise ValueError(
            f"{name} lacks the encoder's weights {sorted(loading['missing_keys'])[0]}, ...; choose a complete one."
        )
    return encoder


def load_pretrained(name: str, revision: str | None = None) -> XRFModel | XRFForRegression:
    """The pretrained model of a repository (folder or Hub id) in single precision: with its head where it has learnt
    to predict targets, which some ways of adapting build on, else its encoder.

    Raises:
        ValueError, OSError: as [`load_encoder`].
    """
    encoder = load_encoder(name, revision)
    if not encoder.config.target_names:
        return encoder
    return XRFForRegression.from_pretrained(name, revision=revision, dtype=torch.float32)


def regression_model(
    encoder: XRFModel,
    target_names: Sequence[str],
    target_units: Sequence[str],
    labels: np.ndarray,
    pooling: str | None = None,
    regression_loss: str = "mse",
) -> XRFForRegression:
    """A new regression model around a copy of a pretrained encoder, with a head that predicts the labels' mean.

    Args:
        labels (`np.ndarray` of shape `(N, T)`): the training labels, whose mean and sd standardise the targets.
        pooling (`str`, *optional*): by default the encoder's `embedding_pooling`.
        regression_loss (`str`): see [`XRFMaskedConfig`].
    """
    labels = np.asarray(labels, dtype=np.float64)
    model = model_around(
        encoder,
        target_names,
        target_units,
        target_mean=[float(value) for value in np.nanmean(labels, axis=0)],
        target_std=[float(value) for value in np.nanstd(labels, axis=0, ddof=1)],
        pooling=pooling or encoder.config.embedding_pooling,
        regression_loss=regression_loss,
        spectrum_skip=False,
    )
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    return model


def model_around(encoder: XRFModel, target_names: Sequence[str], target_units: Sequence[str], **fields):
    """A new [`XRFForRegression`] around a copy of an encoder, on its device: its configuration with these targets, the
    valid ranges of their units, and other `fields`. Its head is still to be written."""
    ranges = [VALID_RANGES.get(unit, (None, None)) for unit in target_units]
    fields |= {
        "target_names": list(target_names),
        "target_units": list(target_units),
        "target_min": [lower for lower, _ in ranges],
        "target_max": [upper for _, upper in ranges],
    }
    config = type(encoder.config).from_dict({**encoder.config.to_dict(), "architectures": None}, **fields)
    model = XRFForRegression(config)
    model.xrf.load_state_dict(encoder.state_dict())
    return model.to(encoder.device)


def lora_model(
    model: XRFForRegression, rank: int, alpha: float, dropout: float, target_modules: Sequence[str] | None = None
):
    """The model with trainable low-rank updates (Hu et al. 2021) of linear layers, and a trainable head; all other
    weights are frozen.

    Args:
        rank (`int`), alpha (`float`): an update is `alpha / rank` times a product of two matrices of this rank.
        dropout (`float`): share of a layer's inputs that its update does not see in training.
        target_modules (`Sequence[str]`, *optional*): names of linear layers, such as `["q_proj"]`; by default
            those of `LORA_TARGETS` that the encoder has.

    Returns:
        `peft.PeftModelForSequenceClassification`

    Raises:
        ValueError: the encoder has no layer of such a name.
    """
    from peft import LoraConfig, get_peft_model

    layers = {name.split(".")[-1] for name, module in model.xrf.named_modules() if isinstance(module, torch.nn.Linear)}
    for name in target_modules or ():
        if name not in layers:
            raise ValueError(f"The encoder has no linear layer {name!r} to adapt; it has {', '.join(sorted(layers))}.")
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(target_modules or [name for name in LORA_TARGETS if name in layers]),
        modules_to_save=["head"],
    )
    return get_peft_model(model, config)


def layerwise_parameter_groups(
    model: torch.nn.Module, learning_rate: float, weight_decay: float, decay: float
) -> list[dict]:
    """Optimiser groups in which each layer learns `decay` times as fast as the one above it (Clark et al. 2020,
    arXiv 2003.10555): the head and the last normalisation at `learning_rate`, the top layer and the perceptron at
    `decay` times that, the embeddings slowest. Biases, normalisations and the CLS token are not decayed towards zero.

    Args:
        model: an [`XRFForRegression`], plain or with LoRA; frozen parameters are left out.
        learning_rate (`float`), weight_decay (`float`): of the head.
        decay (`float`): 1 gives all layers the same rate.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    top = base.config.num_hidden_layers + 1
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = re.search(r"\bxrf\.layers\.(\d+)\.", name)
        depth = int(layer[1]) + 1 if layer else 0 if "embeddings." in name else top - ("perceptron." in name)
        regularised = parameter.ndim >= 2 and not name.endswith("cls_token")
        group = groups.setdefault(
            (depth, regularised),
            {
                "params": [],
                "lr": learning_rate * decay ** (top - depth),
                "weight_decay": weight_decay if regularised else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


# --- the probe ---


@dataclass(frozen=True)
class RidgeProbe:
    """Ridge regression on embeddings, in each target's unit.

    Args:
        weight (`np.ndarray` of shape `(T, D)`), bias (`np.ndarray` of shape `(T,)`): the linear map.
        penalty (`np.ndarray` of shape `(T,)`): the chosen one of each target, for embeddings as they are.
        residual_sd (`np.ndarray` of shape `(T,)`): root of the mean squared leave-one-out error.
    """

    weight: np.ndarray
    bias: np.ndarray
    penalty: np.ndarray
    residual_sd: np.ndarray

    def predict(self, embeddings: np.ndarray) -> np.ndarray:
        """Embeddings `(N, D)` to predictions `(N, T)`."""
        return embeddings @ self.weight.T + self.bias


def fit_probe(
    embeddings: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None, least_penalty: float = 0.0
) -> RidgeProbe:
    """Ridge regression with an intercept, the penalty of each target chosen by leave-one-out cross-validation.

    What is left out is one core or sample at a time where `groups` names several, for its spectra vouch for each
    other, and one spectrum at a time otherwise.

    Args:
        embeddings (`np.ndarray` of shape `(N, D)`): `pooler_output` of the frozen encoder.
        labels (`np.ndarray` of shape `(N, T)`): laboratory values, NaN where missing.
        groups (`np.ndarray` of shape `(N,)`, *optional*): core or sample of every spectrum.
        least_penalty (`float`): choose among the `PROBE_PENALTIES` from here on.
    """
    penalties = PROBE_PENALTIES[least_penalty <= PROBE_PENALTIES]
    embeddings, labels = np.asarray(embeddings, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    columns = []
    for target in labels.T:
        present = ~np.isnan(target)
        columns.append(
            _fit_ridge(embeddings[present], target[present], None if groups is None else groups[present], penalties)
        )
    return RidgeProbe(*(np.stack(parts) for parts in zip(*columns)))


def _fit_ridge(features: np.ndarray, labels: np.ndarray, groups: np.ndarray | None, penalties: np.ndarray):
    """Weight `(D,)`, bias, penalty and leave-one-out sd of one target.

    With centred features U diag(s) V' the fit is H y, H = 1/n + U diag(s^2 / (s^2 + penalty)) U', and leaving out the
    rows g gives them the errors (I - H_gg)^-1 (y - H y)_g (Cook & Weisberg 1982, section 3.6, for groups of rows).
    """
    if groups is None or len(set(groups)) < 2:
        groups = np.arange(len(labels))
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    center = features.mean(axis=0)
    left, singular, right = np.linalg.svd(features - center, full_matrices=False)
    kept = singular > singular[0] * np.finfo(np.float64).eps * max(features.shape)
    left, singular, right = left[:, kept], singular[kept], right[kept]
    residual_labels = labels - labels.mean()
    errors = np.empty((len(penalties), len(labels)))
    penalties = penalties * np.sum(singular**2)
    for index, penalty in enumerate(penalties):
        root = left * np.sqrt(singular**2 / (singular**2 + penalty))
        residual = residual_labels - root @ (root.T @ residual_labels)
        for rows in members:
            hat = root[rows] @ root[rows].T + 1 / len(labels)
            errors[index, rows] = np.linalg.solve(np.eye(len(rows)) - hat, residual[rows])
    squared = np.mean(errors**2, axis=1)
    best = int(np.argmin(squared))
    weight = right.T @ (singular / (singular**2 + penalties[best]) * (left.T @ residual_labels))
    return weight, labels.mean() - center @ weight, penalties[best], np.sqrt(squared[best])


@torch.no_grad()
def write_probe(model: XRFForRegression, probe: RidgeProbe) -> None:
    """Put a probe's solution into the head of a new regression model, which then predicts as the probe does; a
    Gaussian head gives the leave-one-out error as its standard deviation everywhere."""
    mean, std = np.array(model.config.target_mean), np.array(model.config.target_std)
    weight, bias = probe.weight / std[:, None], (probe.bias - mean) / std
    if model.config.regression_loss == "gaussian":
        weight = np.concatenate([weight, np.zeros_like(weight)])
        bias = np.concatenate([bias, 2 * np.log(np.maximum(probe.residual_sd / std, 1e-6))])
    model.head.weight.copy_(torch.from_numpy(weight))
    model.head.bias.copy_(torch.from_numpy(bias))


# --- what a model says ---


def embed(model: XRFForRegression, spectra: LabelledSpectra, batch_size: int) -> np.ndarray:
    """The encoder's pooled embedding of every spectrum, `(N, D)` float64."""
    return np.concatenate([output.pooler_output.double().cpu() for output in _outputs(model.xrf, spectra, batch_size)])


def predict(model: torch.nn.Module, spectra: LabelledSpectra, batch_size: int):
    """Predictions `(N, T)` and their standard deviations `(N, T)` (`None` without a Gaussian head), float64."""
    outputs = list(_outputs(model, spectra, batch_size))
    predictions = np.concatenate([output.predictions.double().cpu() for output in outputs])
    if outputs[0].standard_deviation is None:
        return predictions, None
    return predictions, np.concatenate([output.standard_deviation.double().cpu() for output in outputs])


@dataclass(frozen=True)
class Answers:
    """What a model says of N spectra.

    Args:
        values (`np.ndarray` of shape `(N, T)`): in the targets' units.
        intervals (`dict[float, tuple]`): coverage -> (lower, upper), each `(N, T)`; empty without any.
        unfamiliar (`np.ndarray` of bool, shape `(N,)`, *optional*): which spectra are unlike those it was adapted to;
            `None` where the model does not tell.
    """

    values: np.ndarray
    intervals: dict[float, tuple[np.ndarray, np.ndarray]]
    unfamiliar: np.ndarray | None = None


def answers(model: torch.nn.Module, spectra: LabelledSpectra, batch_size: int = ROWS_IN_A_BATCH) -> Answers:
    """Predictions with the model's calibrated intervals, or else those of its Gaussian head."""
    outputs, config = list(_outputs(model, spectra, batch_size)), model.config

    def joined(name):
        if getattr(outputs[0], name) is None:
            return None
        return np.concatenate([getattr(output, name).double().cpu() for output in outputs])

    values, sd, lower, upper, distance = map(
        joined, ("predictions", "standard_deviation", "lower", "upper", "distance")
    )
    intervals = {}
    if lower is not None:
        for place, coverage in enumerate(config.interval_coverages):
            intervals[coverage] = lower[..., place], upper[..., place]
    elif sd is not None:
        for coverage, width in NORMAL_HALF_WIDTHS.items():
            intervals[coverage] = clamp(values - width * sd, config), clamp(values + width * sd, config)
    return Answers(values, intervals, None if distance is None else distance > config.familiarity_threshold)


class LnWherePositive:
    """A calibration of each target by itself, of its logarithm where all its labels to learn from are positive.

    Args:
        make: function of the names of the targets and of whether to fit their logarithms, which returns a method.
        target_names (`Sequence[str]`): the names of the T targets.
    """

    least_labels = MIN_LABELS

    def __init__(self, make: Callable, target_names: Sequence[str]):
        self.make, self.target_names = make, target_names

    def fit(self, spectra, targets, groups=None) -> LnWherePositive:
        """Fits to spectra, targets `(N, T)` and groups `(N,)`."""
        self.parts_ = []
        for name, column in zip(self.target_names, np.asarray(targets).T):
            positive = bool((column[~np.isnan(column)] > 0).all())
            self.parts_.append(self.make([name], positive).fit(spectra, column[:, None], groups))
        return self

    def predict(self, spectra) -> np.ndarray:
        """Predicts `(N, T)` values."""
        return np.concatenate([part.predict(spectra) for part in self.parts_], axis=1)


class AdaptedModel:
    """A way of adapting a pretrained encoder as a method of `protocols_xrf`, which fits it anew to every split.

    Args:
        adapt_to: function of [`LabelledSpectra`] that returns a new regression model.
        feature_extractor: of the pretrained encoder.
        least_labels (`int`): that it needs.
    """

    def __init__(
        self,
        adapt_to: Callable[[LabelledSpectra], torch.nn.Module],
        feature_extractor: XRFFeatureExtractor,
        least_labels: int = MIN_LABELS,
    ):
        self.adapt_to, self.feature_extractor = adapt_to, feature_extractor
        self.least_labels = least_labels

    def fit(self, spectra: Sequence[Spectrum], targets, groups=None) -> AdaptedModel:
        """Fits to spectra, targets `(N, T)` and groups `(N,)`."""
        self.model_ = self.adapt_to(labelled_spectra(spectra, targets, groups, self.feature_extractor))
        return self

    def answers(self, spectra: Sequence[Spectrum]) -> Answers:
        """All that the fitted model says."""
        no_labels = np.full((len(spectra), len(self.model_.config.target_names)), np.nan)
        return answers(self.model_, labelled_spectra(spectra, no_labels, None, self.feature_extractor))

    def predict(self, spectra: Sequence[Spectrum]):
        """Predicts `(N, T)` values and `{coverage: (lower, upper)}`, each `(N, T)`."""
        said = self.answers(spectra)
        return said.values, said.intervals


@torch.no_grad()
def _outputs(model: torch.nn.Module, spectra: LabelledSpectra, batch_size: int):
    model.eval()
    device = next(model.parameters()).device
    for start in range(0, len(spectra), batch_size):
        rows = slice(start, start + batch_size)
        yield model(
            input_values=spectra.input_values[rows].to(device),
            attention_mask=spectra.attention_mask[rows].to(device),
        )


def clamp(predictions: np.ndarray, config: XRFMaskedConfig) -> np.ndarray:
    """Predictions `(N, T)` within each target's valid range, as the model's own are."""
    lower = [-np.inf if value is None else value for value in config.target_min]
    upper = [np.inf if value is None else value for value in config.target_max]
    return np.clip(predictions, lower, upper)


def result_rows(
    metric, split: str, method: str, predictions, references, config: XRFMaskedConfig, intervals: dict | None = None
) -> list[dict]:
    """What the metric says of one method's predictions on one split: a row per target.

    Args:
        metric (`evaluate.Metric`): as `evaluation_xrf.regression_metric` makes it for the targets of `config`.
        predictions, references (`np.ndarray` of shape `(N, T)`): in each target's unit.
        config: has `target_names` and `target_units`.
        intervals (`dict[float, tuple]`, *optional*): coverage -> (lower, upper), each `(N, T)`.

    Returns:
        list of `{"split", "method", "target", "unit"}` and the metrics, with intervals of 90 % also `coverage_90` and
        `width_90`, and so on; `None` for what cannot be known.
    """
    values = metric.compute(predictions=predictions, references=references)
    rows = [
        {
            "split": split,
            "method": method,
            "target": target,
            "unit": unit,
            **{name: _finite(values[f"{target}_{name}"]) for name in METRIC_NAMES},
        }
        for target, unit in zip(config.target_names, config.target_units)
    ]
    for column, row in enumerate(rows):
        for coverage, (lower, upper) in (intervals or {}).items():
            honesty = interval_metrics(lower[:, column], upper[:, column], references[:, column], coverage)
            for name in ("coverage", "width"):
                row[f"{name}_{round(100 * coverage)}"] = _finite(honesty[name])
    return rows


def _finite(value: float):
    return value if np.isfinite(value) else None


def markdown_table(rows: Sequence[dict]) -> str:
    """Rows of [`result_rows`] as a Markdown table."""
    has_intervals = any("coverage_90" in row for row in rows)
    table = [
        ["target", "split", "method", "n", "R2", "RMSE", "MAE", "bias", "RPD", "RPIQ", *["in 90 %"] * has_intervals],
        *(
            [
                f"{row['target']} ({row['unit']})" if row["unit"] else row["target"],
                row["split"],
                row["method"],
                str(row["n"]),
                *(_number(row[name]) for name in ("r2", "rmse", "mae", "bias", "rpd", "rpiq")),
                *[_number(row.get("coverage_90"))] * has_intervals,
            ]
            for row in sorted(rows, key=lambda row: row["target"])
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in table]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def validation_metrics(target_names: Sequence[str]):
    """`compute_metrics` for `Trainer`: what `evaluation_xrf.regression_metric` says of the validation spectra."""
    metric = regression_metric(target_names)

    def compute(outputs) -> dict[str, float]:
        predictions = outputs.predictions
        if isinstance(predictions, tuple):  # a Gaussian head's standard deviations come second
            predictions = predictions[0]
        return metric.compute(predictions=predictions, references=outputs.label_ids)

    return compute


class LogLines(TrainerCallback):
    """One aligned line per epoch: step, loss, and validation loss where there is one."""

    loss = float("nan")  # until the first epoch is over

    def on_log(self, args, state, control, logs=None, **kwargs):
        validated = "eval_loss" in logs
        if "loss" in logs:
            self.loss = logs["loss"]
        if validated or ("loss" in logs and args.eval_strategy == "no"):
            validation = f"  validation loss {logs['eval_loss']:9.4f}" if validated else ""
            print(f"step {state.global_step:>6} of {state.max_steps}  loss {self.loss:9.4f}{validation}", flush=True)


def shared_groups(training: LabelledSpectra, test: LabelledSpectra) -> int | None:
    """How many cores or samples are in both; `None` where they are not named."""
    if training.groups is None or test.groups is None:
        return None
    return len(set(training.groups) & set(test.groups))


def render_card(
    template: str | Path,
    summary: dict,
    config: XRFMaskedConfig,
    training: dict,
    base_model_id: str | None,
    license: str,
    figures: Sequence[str] = (),
) -> str:
    """The card of an adapter or a fine-tuned model, Markdown with its metadata in front.

    Args:
        template: Jinja template of the card.
        summary (`dict`): what `metrics.json` holds.
        training (`dict`): the options of the training.
        base_model_id (`str`, *optional*): Hub id of the base; `None` for a local one.
        license (`str`): Hub identifier.
        figures (`Sequence[str]`): names of images beside the card.
    """
    adapter = summary["method"] == "lora"
    hub_dataset = None if Path(summary["dataset"]).is_dir() else summary["dataset"]
    name = f"{' and '.join(config.target_names)} from XRF spectra"
    metrics = {"r2": "R2", "rmse": "RMSE", "mae": "MAE"}
    results = [row for row in summary["results"] if row["method"] == summary["method"]]
    card_data = ModelCardData(
        license=license,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="tabular-regression",
        base_model=base_model_id,
        base_model_relation=None if base_model_id is None else "adapter" if adapter else "finetune",
        datasets=hub_dataset,
        tags=["xrf", "x-ray-fluorescence", "geochemistry", "xrf-regression", *(["lora"] if adapter else [])],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="tabular-regression",
                dataset_type=hub_dataset or "xrf-spectra",
                dataset_name=Path(summary["dataset"]).name,
                dataset_split=row["split"],
                metric_type=metric,
                metric_name=f"{row['target']} {label}"
                + (f" ({row['unit']})" if metric != "r2" and row["unit"] else ""),
                metric_value=row[metric],
            )
            for row in results
            for metric, label in metrics.items()
            if row[metric] is not None
        ],
    )
    return str(
        ModelCard.from_template(
            card_data,
            template_path=str(template),
            name=name,
            adapter=adapter,
            base=base_model_id or Path(summary["model"]).name,
            dataset_name=hub_dataset or Path(summary["dataset"]).name,
            summary=summary,
            config=config,
            training=training,
            table=markdown_table(summary["results"]),
            figures=figures,
        )
    )
