"""`benchmarks/pretraining.py`: what its recipes learn, and its table."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import poisson

from configuration_xrf import XRFMaskedConfig
from corpus_xrf import measured_patches
from dataset_builder import Spectrum, spectra_to_table
from finetuning_xrf import load_pretrained
from modeling_xrf import XRFForMaskedSpectrumModeling, XRFModel
from training_xrf import build_extractor, mask_noise

BENCHMARK = "pretraining"
SMALL = {
    "spectrum_length": 128, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 64, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 48,
}  # fmt: skip


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Two corpora with one target."""
    folder, rng, channels = tmp_path_factory.mktemp("corpora"), np.random.default_rng(0), np.arange(256)
    for name in ("any", "handheld"):
        height = rng.uniform(10, 1000, 600)
        peaks = height[:, None] * np.exp(-0.5 * ((channels - 100) / 4) ** 2)
        spectra = [
            Spectrum(rng.poisson(20 + peak), gain_kev=0.02, offset_kev=0.0, tube_kv=10.0, targets={"CaO": h / 20})
            for peak, h in zip(peaks, height, strict=True)
        ]
        (folder / name).mkdir()
        pq.write_table(spectra_to_table(spectra, ["CaO"], {"CaO": "wt%"}), folder / name / "train.parquet")
    return folder


@pytest.fixture
def pretrain(benchmark, corpora, tmp_path, monkeypatch):
    """`pretrain("masked", seconds)` returns what a recipe took and the model it left."""
    monkeypatch.setattr(benchmark, "BASE", {**SMALL, "pooling": "cls"})

    def run(name, seconds):
        row = benchmark.pretrain(benchmark.RECIPES[name], corpora, seconds, 0, str(tmp_path / name))
        return row, load_pretrained(str(tmp_path / name))

    return run


def test_the_poisson_loss_is_that_of_counts(benchmark):
    torch.manual_seed(0)
    config = XRFMaskedConfig(**SMALL)
    model = XRFForMaskedSpectrumModeling(config).eval()
    counts = torch.randint(0, 9, (4, 128))
    batch = {
        "input_values": counts.float().sqrt(),
        "attention_mask": torch.ones(4, 8, dtype=torch.uint8),
        "sample_id": torch.arange(4),
    }
    batch = measured_patches(batch)
    loss = benchmark.poisson_loss(model, batch, 0, config, seed=3)
    loss.backward()  # of counts of 0, too
    assert all(values.grad.isfinite().all() for values in model.parameters() if values.grad is not None)
    with torch.no_grad():
        outputs = model(batch["input_values"], noise=mask_noise(batch["sample_id"], 8, seed=3, epoch=0))
    hidden = outputs.mask.repeat_interleave(16, dim=1).bool().numpy()
    rates = torch.nn.functional.softplus(outputs.reconstruction).numpy()[hidden] + 1e-3
    counts = counts.numpy()[hidden]
    expected = np.mean(poisson.logpmf(counts, np.maximum(counts, 1e-300)) - poisson.logpmf(counts, rates))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_random_weights_are_measured_as_they_are(pretrain):
    row, model = pretrain("random weights", 5.0)
    assert (row["steps"], row["spectra"]) == (0, 0) and isinstance(model, XRFModel)


def test_stages_share_the_time_and_hand_on_the_encoder(pretrain):
    first, masked = pretrain("masked", 1.0)
    row, model = pretrain("masked, then labels", 4.0)
    assert isinstance(masked, XRFModel) and model.config.target_names == ["CaO"]
    assert 4 <= row["seconds"] <= 6 and row["steps"] > first["steps"] > 0
    both, together = pretrain("masked and labels", 2.0)
    assert both["spectra"] == 64 * both["steps"] and together.config.target_names == ["CaO"]


def test_labels_are_learnt_from_all_corpora(pretrain, benchmark, corpora):
    rows = benchmark.training_rows(benchmark.RECIPES["labels"], corpora)
    assert len(rows) == 1200
    _, model = pretrain("labels", 6.0)
    values = np.array(rows["CaO"])
    extractor = build_extractor(model.config, rows, "train")
    spectra = np.array(rows["counts"][:200])
    features = extractor(spectra, gain_kev=0.02, offset_kev=0.0, tube_kv=10.0, return_tensors="pt")
    found = model(**features).predictions[:, 0]
    assert np.corrcoef(np.log(values[:200]), found.detach().log())[0, 1] > 0.8


def test_the_table_has_the_last_run_of_every_recipe_and_seed(benchmark, tmp_path):
    rows = [
        {"recipe": recipe, "seed": seed, "spectra": 1000, "light": light}
        for recipe, seed, light in (("masked", 0, 0.7), ("labels", 0, 0.5), ("masked", 1, 0.6), ("masked", 0, 0.8))
    ]
    benchmark.append_rows(tmp_path / "results.csv", benchmark.COLUMNS, rows)
    lines = benchmark.table(tmp_path / "results.csv").splitlines()[2:]
    assert [line.split(" | ")[1:4:2] for line in lines] == [["0", "0.8"], ["0", "0.5"], ["1", "0.6"]]
