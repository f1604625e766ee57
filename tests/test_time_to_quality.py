"""`benchmarks/time_to_quality.py`: both forms are asked the same, and what its table says."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from configuration_xrf import XRFMaskedConfig
from dataset_builder import Spectrum, spectra_to_table

BENCHMARK = "time_to_quality"
SMALL = {
    "spectrum_length": 128, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 64, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 48,
}  # fmt: skip


def features(measured):
    torch.manual_seed(0)
    mask = (torch.arange(8) < measured).to(torch.uint8).expand(6, -1)
    values = torch.randn(6, 128) * mask.repeat_interleave(16, dim=1)
    return {"input_values": values, "attention_mask": mask, "sample_id": torch.arange(6)}


@pytest.fixture
def learners(benchmark):
    """The library's form and the classic one, with the same weights."""
    from classic import copy_weights

    config = XRFMaskedConfig(**SMALL)
    library = benchmark.Learner(benchmark.RECIPES["measured patches"], config)
    classic = benchmark.ClassicLearner(benchmark.RECIPES["classic"], config)
    copy_weights(library.model, classic.model)
    return library, classic


def test_both_forms_reconstruct_the_same_hidden_patches(learners):
    spectra, mean = features(8), torch.randn(128)
    of_library, of_classic = (learner.errors(spectra, mean, seed=3) for learner in learners)
    np.testing.assert_allclose(of_classic, of_library, rtol=1e-5)
    assert of_library[0] != pytest.approx(of_library[1])
    embeddings = [learner.embeddings(spectra) for learner in learners]
    np.testing.assert_allclose(*embeddings, rtol=1e-4, atol=1e-5)


def test_of_measured_patches_both_forms_hide_the_same(learners):
    """The mean spectrum's error depends on nothing but what is hidden."""
    spectra, mean = features(5), torch.randn(128)
    of_library, of_classic = (learner.errors(spectra, mean, seed=3)[1] for learner in learners)
    assert of_classic == pytest.approx(of_library, rel=1e-6)


def test_later_half_leaves_out_the_whole_part_of_half(benchmark):
    among = torch.tensor([[True, True, False, True, True, True], [False] * 5 + [True]])
    noise = torch.tensor([[0.5, 0.1, 0.0, 0.9, 0.3, 0.7]]).expand(2, -1)
    assert benchmark.later_half(noise, among).tolist() == [
        [True, False, False, True, False, True],
        [False] * 5 + [True],
    ]


def test_cross_attention_reconstructs_hidden_patches_only_and_learns(benchmark):
    learner = benchmark.Learner(benchmark.RECIPES["decoder with cross-attention"], XRFMaskedConfig(**SMALL))
    spectra = features(8)
    outputs = learner.model(spectra["input_values"], patch_ids=torch.arange(8).expand(6, -1))
    shown = outputs.reconstruction.view(6, 8, 16).abs().sum(-1) > 0
    assert torch.equal(shown, outputs.mask.bool())
    before = learner.errors(spectra, torch.zeros(128), seed=0)[0]
    for _ in range(30):
        learner.step(dict(spectra), 0, 0)
    assert learner.errors(spectra, torch.zeros(128), seed=0)[0] < before


def test_a_recipe_is_measured_along_the_clock(benchmark, tmp_path):
    rng, channels = np.random.default_rng(0), np.arange(512)
    for split in ("train", "validation"):
        height = rng.uniform(10, 1000, 300)
        peaks = height[:, None] * np.exp(-0.5 * ((channels - 185) / 4) ** 2)
        spectra = [
            Spectrum(rng.poisson(20 + peak), gain_kev=0.02, offset_kev=0.0, tube_kv=10.0, targets={"CaCO3": h / 20})
            for peak, h in zip(peaks, height)
        ]
        pq.write_table(spectra_to_table(spectra, ["CaCO3"], {"CaCO3": "wt%"}), tmp_path / f"{split}.parquet")
    rows = benchmark.measure("measured patches", str(tmp_path), Path("nowhere"), 3.0, seed=0)
    seconds = [row["seconds"] for row in rows]
    assert 1 <= len(rows) <= benchmark.VALIDATIONS and seconds == sorted(seconds) and seconds[-1] >= 1  # a third of 3
    assert all(row["spectra"] == 64 * row["steps"] for row in rows)
    assert "rocks" not in rows[-1] and float(rows[-1]["caco3"]) < 14.3  # that of the mean


def test_the_table_says_when_the_classic_form_was_reached(benchmark, tmp_path):
    path = tmp_path / "results.csv"
    runs = [
        ("library", [(1, 0.9), (2, 0.8)]),  # an earlier run
        ("classic", [(3, 0.7), (6, 0.5)]),
        ("library", [(1, 0.6), (2, 0.4), (3, 0.3)]),
        ("slow", [(1, 0.6), (2, 0.55)]),
    ]
    for recipe, values in runs:
        rows = [{"recipe": recipe, "seconds": seconds, "error": error} for seconds, error in values]
        benchmark.append_rows(path, benchmark.COLUMNS, rows)
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in benchmark.table(path).splitlines()[2:]]
    assert [(cells[0], cells[1], cells[-1]) for cells in found] == [
        ("library", "3", "2"),
        ("classic", "6", "6"),
        ("slow", "2", ""),
    ]
