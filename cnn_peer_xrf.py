"""A small one-dimensional convolutional network as a calibration: the neural peer that sees nothing but the labels.

The network is of the kind that DL-IM uses for a few tens of samples: convolutions of width 3 with batch normalisation
and ReLU. Its average over all positions is replaced by one linear layer, because in a spectrum the position is the
element; and its early stopping never looks at what will be predicted.

N = spectra, L = channels, T = targets. A missing laboratory value is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from evaluation_xrf import (
    MIN_LABELS,
    checked_groups,
    checked_labels,
    name_targets,
    square_root_unit_sum,
    target_columns,
)
from peers_xrf import inner_folds

BATCH_SIZE = 16


class ConvolutionalPeer:
    """A calibration of rows of counts, all targets with one network.

    Square roots of unit-sum spectra are centred and scaled by one number, targets are standardised, both as the
    training rows have it. The number of epochs is the one with the least error over inner folds of the training rows
    (`peers_xrf.inner_folds`), each with a network of its own; the final network sees all training rows for as long.

    Args:
        target_names (`Sequence[str]`, *optional*): the names of the T targets, for error messages.
        log_target (`bool`, defaults to `True`): fit ln(concentration); labels must then be positive.
        widths (`Sequence[int]`): channels of each layer; the first layer has a quarter of the positions, every other
            one half as many as the one before.
        max_epochs (`int`): passes over the training rows, at most.
        learning_rate (`float`), weight_decay (`float`): of AdamW.
        seed (`int`): of initial weights and the order of rows.
    """

    least_labels = MIN_LABELS

    def __init__(
        self,
        target_names: Sequence[str] | None = None,
        log_target: bool = True,
        widths: Sequence[int] = (8, 16, 16, 32),
        max_epochs: int = 150,
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-2,
        seed: int = 0,
    ):
        self.target_names, self.log_target, self.widths = target_names, log_target, tuple(widths)
        self.max_epochs, self.learning_rate, self.weight_decay = max_epochs, learning_rate, weight_decay
        self.seed = seed

    def fit(self, counts, targets, groups=None) -> ConvolutionalPeer:
        """
        Args:
            counts (array-like of shape `(N, L)`): training spectra, counts per channel.
            targets (array-like of shape `(N, T)` or `(N,)`): laboratory values, NaN where missing.
            groups (array-like of shape `(N,)`, *optional*): core or sample of each spectrum.

        Raises:
            ValueError: a spectrum is empty, negative or not finite; a target has fewer than 3 labels, is constant, or
                (with `log_target`) has a label that is not positive.
        """
        roots = square_root_unit_sum(counts)
        labels = target_columns(targets, len(roots)).copy()
        groups = checked_groups(groups, len(roots))
        for column, name in enumerate(name_targets(self.target_names, labels)):
            rows = ~np.isnan(labels[:, column])
            labels[rows, column] = checked_labels(labels[rows, column], name, self.log_target)
        self.label_mean_, self.label_std_ = np.nanmean(labels, axis=0), np.nanstd(labels, axis=0)
        self.center_ = roots.mean(axis=0)
        self.scale_ = np.std(roots - self.center_)
        inputs, labels = self._inputs(roots), torch.from_numpy((labels - self.label_mean_) / self.label_std_).float()
        with torch.random.fork_rng(devices=[]):  # random numbers elsewhere in the program stay what they were
            torch.manual_seed(self.seed)
            errors = np.zeros(self.max_epochs)
            for training, held_out in inner_folds(len(roots), groups):
                epochs = self._train(inputs[training], labels[training], self.max_epochs)
                errors += [_squared_error(network, inputs[held_out], labels[held_out]).item() for network in epochs]
            self.epochs_ = int(np.argmin(errors)) + 1
            *_, self.network_ = self._train(inputs, labels, self.epochs_)
        return self

    def predict(self, counts) -> np.ndarray:
        """Predicts the `(N, T)` concentrations of spectra of shape `(N, L)`."""
        with torch.no_grad():
            outputs = self.network_(self._inputs(square_root_unit_sum(counts))).double().numpy()
        predictions = outputs * self.label_std_ + self.label_mean_
        return np.exp(predictions) if self.log_target else predictions

    def _inputs(self, roots: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((roots - self.center_) / self.scale_).float()[:, None]  # (N, 1, L)

    def _train(self, inputs: torch.Tensor, labels: torch.Tensor, num_epochs: int) -> Iterator[nn.Module]:
        """A new network, in evaluation mode, after each epoch."""
        network = _network(self.widths, inputs.shape[-1], labels.shape[1])
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        for _ in range(num_epochs):
            network.train()
            for rows in torch.randperm(len(inputs)).split(BATCH_SIZE):
                optimizer.zero_grad()
                _squared_error(network, inputs[rows], labels[rows]).backward()
                optimizer.step()
            yield network.eval()


def _network(widths: Sequence[int], num_channels: int, num_targets: int) -> nn.Sequential:
    layers = []
    for index, (width_in, width_out) in enumerate(zip((1, *widths), widths)):
        kernel, stride = (9, 4) if index == 0 else (3, 2)
        layers += [nn.Conv1d(width_in, width_out, kernel, stride, kernel // 2, bias=False)]
        layers += [nn.BatchNorm1d(width_out), nn.ReLU()]
        num_channels = (num_channels - 1) // stride + 1
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(widths[-1] * num_channels, num_targets))


def _squared_error(network: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over the labels that are there."""
    present = ~labels.isnan()
    return (network(inputs)[present] - labels[present]).square().sum() / present.sum().clamp(min=1)
