"""`benchmarks/fine_tuned.py`: ways to fine-tune learn what there is to learn, and leave the checkpoint alone."""

import numpy as np
import pytest
import torch

from configuration_xrf import XRFMaskedConfig
from feature_extraction_xrf import XRFFeatureExtractor
from finetuning_xrf import LabelledSpectra
from modeling_xrf import XRFForRegression

BENCHMARK = "fine_tuned"


@pytest.fixture(scope="module")
def base():
    """A model of random weights that predicts CaO, about 5 wt%, from a perceptron."""
    torch.manual_seed(0)
    config = XRFMaskedConfig(
        spectrum_length=128, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        perceptron_size=32, pooling="cls", target_names=["CaO"], target_units=["wt%"], target_transform=["log"],
        target_mean=[1.6], target_std=[0.5], target_min=[0.0], target_max=[100.0],
    )  # fmt: skip
    return XRFForRegression(config).eval()


@pytest.fixture(scope="module")
def rows():
    """60 spectra with a peak as high as the root of their label, of which ten have none."""
    rng = np.random.default_rng(0)
    labels = rng.uniform(1, 20, (60, 1))
    peak = np.exp(-0.5 * ((np.arange(128) - 40) / 3) ** 2)
    values = np.sqrt(labels) * peak + 0.05 * rng.standard_normal((60, 128))
    labels[50:] = np.nan
    tensors = (
        torch.from_numpy(values).float(),
        torch.ones(60, 8, dtype=torch.uint8),
        torch.from_numpy(labels).float(),
    )
    return LabelledSpectra(*tensors, np.arange(60) // 30)


@pytest.mark.parametrize(
    "way", ["full_mixup", "full_efficiency", "full_logit", "lora", "scratch", "scratch_standardised", "max"]
)
def test_fine_tuning_learns_and_leaves_the_base_as_it_was(benchmark, base, rows, way):
    tune = benchmark.StandardisedFineTuning() if way == "max" else benchmark.WAYS[way]
    extractor = XRFFeatureExtractor(spectrum_length=128, patch_size=16, scaling="sqrt")
    before = {name: values.clone() for name, values in base.state_dict().items()}
    model = tune(base.xrf if way == "max" else base, extractor, rows, ["CaO"], seed=0)
    assert all(torch.equal(before[name], values) for name, values in base.state_dict().items())
    is_standardised = way in ("max", "scratch_standardised")
    assert model.config.target_transform == ["linear" if is_standardised else "log"]
    with torch.no_grad():
        predicted = model(rows.input_values, attention_mask=rows.attention_mask).predictions[:50, 0]
    labels = rows.labels[:50, 0]
    assert (predicted - labels).square().mean() < 0.25 * labels.var()


def test_labels_are_compared_as_logits_or_logarithms(benchmark):
    weight_percent = torch.tensor([0.5, 20.0, 80.0])
    ways = benchmark.WAYS
    assert ways["full"]._transform(weight_percent).tolist() == pytest.approx(np.log([0.5, 20, 80]), rel=1e-5)
    expected = np.log([0.5 / 99.5, 20 / 80, 80 / 20])
    assert ways["full_logit"]._transform(weight_percent).tolist() == pytest.approx(expected, rel=1e-5)
    assert ways["full_logit"]._transform(torch.tensor([0.0, 100.0])).isfinite().all()
