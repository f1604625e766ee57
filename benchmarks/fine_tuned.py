"""Fine-tuning by gradient descent as a peer of the closed-form adaptation: all weights or LoRA, from a checkpoint or
from random weights, with mixed, distorted and noisy training rows.

`few_labels.py` runs it. Labels are learnt as logarithms, each target divided by the standard deviation of its own. The
number of epochs is the one with the least error over inner folds of the training rows, as for the convolutional peer.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from adaptation_xrf import adapt
from finetuning_xrf import LabelledSpectra, layerwise_parameter_groups, lora_model, regression_model
from modeling_xrf import XRFForRegression, XRFModel
from peers_xrf import inner_folds
from training_xrf import UncertainEfficiency

BATCH_SIZE = 16
MAX_EPOCHS = 60


@dataclass(frozen=True)
class FineTuning:
    """How a model is trained.

    Args:
        learning_rate (`float`): of the head; a layer below learns `layer_decay` times as fast as the one above.
        lora (`bool`): train updates of rank 8 and the head, in place of all weights.
        random_weights (`bool`): start from the checkpoint's architecture alone.
        mixup (`float`): both parameters of the beta distribution that the shares of mixed rows are drawn from, spectra
            and logarithms of labels alike (Zhang et al. 2018, arXiv 1710.09412); 0 mixes none.
        label_noise (`float`): standard deviation of noise on ln(label), drawn anew in every epoch.
        efficiency_sd (`float`): of the uncertain efficiency of the spectra, as `run_msm.py` has it; 0 for none.
        logit (`bool`): learn ln(w / (100 - w)) of labels of w wt%, in place of ln(w).
        most_labels (`int`): not run with more, for time.
    """

    learning_rate: float = 3e-4
    layer_decay: float = 0.75
    lora: bool = False
    random_weights: bool = False
    mixup: float = 0.0
    label_noise: float = 0.0
    efficiency_sd: float = 0.0
    logit: bool = False
    most_labels: int = 100

    def __call__(self, base, extractor, rows: LabelledSpectra, target_names, seed: int) -> XRFForRegression:
        """A new model for the targets, fitted to the rows."""
        efficiency = UncertainEfficiency(extractor, self.efficiency_sd, seed) if self.efficiency_sd else None
        start, labels = self._start(base, rows, target_names, seed)
        groups = None if rows.groups is None else np.asarray(rows.groups)
        errors = np.zeros(MAX_EPOCHS)
        for training, held_out in inner_folds(len(labels), groups):
            models = self._train(start, rows, labels, training, MAX_EPOCHS, seed, efficiency)
            errors += [self._error(model.eval(), rows, labels, held_out).item() for model in models]
        best = int(np.argmin(errors)) + 1
        *_, model = self._train(start, rows, labels, np.arange(len(labels)), best, seed, efficiency)
        return (model.merge_and_unload() if self.lora else model).eval()

    def _start(self, base, rows: LabelledSpectra, target_names, seed: int):
        """The model that training begins with, and the labels `(N, T)` as they are learnt."""
        units = ["wt%"] * len(target_names)
        nothing = LabelledSpectra(
            *(values[:0] for values in (rows.input_values, rows.attention_mask, rows.labels)), None
        )
        start = adapt(base, nothing, target_names, units)
        labels = self._transform(rows.labels)
        if self.random_weights:
            torch.manual_seed(seed)
            start = XRFForRegression(start.config)
            start.config.target_mean, start.config.target_std = labels.nanmean(0).tolist(), nan_sd(labels).tolist()
        return start, labels

    def _transform(self, weight_percent: torch.Tensor) -> torch.Tensor:
        """Labels or predictions as they are compared."""
        weight_percent = weight_percent.clamp(min=1e-6)
        if self.logit:
            return torch.logit((weight_percent / 100).clamp(max=1 - 1e-6))  # 100 wt% has no logit
        return weight_percent.log()

    def _train(self, start, rows, labels, chosen, num_epochs: int, seed: int, efficiency) -> Iterator[torch.nn.Module]:
        """The model after each epoch on the `chosen` rows."""
        generator, shares = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
        torch.manual_seed(seed)
        model = copy.deepcopy(start)
        if self.lora:
            model = lora_model(model, 8, 16, 0.0)
        groups = layerwise_parameter_groups(model, self.learning_rate, 0.01, self.layer_decay)
        optimizer = torch.optim.AdamW(groups)
        spread = nan_sd(labels[chosen])
        for epoch in range(num_epochs):
            model.train()
            for batch in torch.from_numpy(chosen)[torch.randperm(len(chosen), generator=generator)].split(BATCH_SIZE):
                values, wanted = rows.input_values[batch], labels[batch]
                if efficiency is not None:
                    values = efficiency({"input_values": values, "sample_id": batch}, epoch)["input_values"]
                wanted = wanted + self.label_noise * torch.randn(wanted.shape, generator=generator)
                if self.mixup:
                    share = float(shares.beta(self.mixup, self.mixup))
                    values, wanted = (share * each + (1 - share) * each.flip(0) for each in (values, wanted))
                optimizer.zero_grad()
                self._loss(model, values, rows.attention_mask[batch], wanted, spread).backward()
                optimizer.step()
            yield model

    @torch.no_grad()
    def _error(self, model, rows, labels, chosen) -> torch.Tensor:
        values, measured = rows.input_values[chosen], rows.attention_mask[chosen]
        return self._loss(model, values, measured, labels[chosen], nan_sd(labels))

    def _loss(self, model, values, measured, labels, spread: torch.Tensor) -> torch.Tensor:
        """Mean squared error of transformed predictions in units of the labels' `spread`, where there are labels."""
        predictions = model(input_values=values, attention_mask=measured).predictions
        present = ~labels.isnan()
        residual = (self._transform(predictions) - labels.nan_to_num()) / spread
        return torch.where(present, residual.square(), 0.0).sum() / present.sum().clamp(min=1)


@dataclass(frozen=True)
class StandardisedFineTuning(FineTuning):
    """A new head, all weights at one rate, and standardised labels as they are. So MAX (arXiv 2410.12330) fine-tunes a
    masked autoencoder, from its CLS token; its rate of 1e-5 is for thousands of labels, the default is for few."""

    layer_decay: float = 1.0

    def _start(self, base, rows: LabelledSpectra, target_names, seed: int):
        labels = rows.labels
        encoder = getattr(base, "xrf", base)
        if self.random_weights:
            torch.manual_seed(seed)
            encoder = XRFModel(encoder.config)
        return regression_model(encoder, target_names, ["wt%"] * len(target_names), labels, pooling="cls"), labels

    def _loss(self, model, values, measured, labels, spread: torch.Tensor) -> torch.Tensor:
        return model(input_values=values, attention_mask=measured, labels=labels).loss


def nan_sd(labels: torch.Tensor) -> torch.Tensor:
    """Standard deviation `(T,)` of the labels `(N, T)` that are there, at least 0.01."""
    return torch.from_numpy(np.nanstd(labels.numpy(), axis=0)).clamp(min=0.01)


WAYS = {
    "full": FineTuning(),
    "full_equal_rates": FineTuning(layer_decay=1.0),
    "full_mixup": FineTuning(mixup=0.4),
    "full_label_noise": FineTuning(label_noise=0.2),
    "full_efficiency": FineTuning(efficiency_sd=0.1),
    "full_logit": FineTuning(logit=True),
    "lora": FineTuning(learning_rate=1e-3, lora=True),
    "scratch": FineTuning(learning_rate=1e-3, layer_decay=1.0, random_weights=True),
    "scratch_standardised": StandardisedFineTuning(learning_rate=1e-3, random_weights=True, most_labels=500),
}
