"""scripts/explain.py: tables and a figure of what drives a prediction, whole or not at all."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_attribution import linear_model, simulated_spectra

from dataset_builder import spectra_to_table
from feature_extraction_xrf import XRFFeatureExtractor
from hub_xrf import save_repository

SCRIPT = "explain.py"
FILES = ["attribution.csv", "attribution.png", "lines.csv"]


@pytest.fixture
def explain(call_script):
    return call_script


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A model whose CaCO3 is the height of the Ca K-alpha peak and whose TOC is minus that of Fe K-alpha."""
    energy_kev = 0.02 * np.arange(512)
    weights = np.stack([np.abs(energy_kev - 3.69) < 0.1, -1.0 * (np.abs(energy_kev - 6.40) < 0.1)])
    model = linear_model(weights, target_transform=["linear", "log"])
    folder = tmp_path_factory.mktemp("models") / "linear"
    return save_repository(folder, model, XRFFeatureExtractor.for_config(model.config), "# A test model\n")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "test.parquet"
    pq.write_table(spectra_to_table(simulated_spectra(), [], {}), path)
    return path


def test_tables_and_figure_of_a_corpus_split(explain, repository, corpus, tmp_path):
    output = tmp_path / "explained"
    code, printed, _ = explain(repository, corpus, "--target", "CaCO3", "--output_dir", output, "--steps", 2)
    assert code == 0
    assert sorted(path.name for path in output.iterdir()) == FILES
    lines, channels = pd.read_csv(output / "lines.csv"), pd.read_csv(output / "attribution.csv")
    assert tuple(lines.loc[0, ["element", "line"]]) == ("Ca", "Kα") and lines["share"][0] > 0.8
    assert lines["attribution"][0] > 0
    drives = channels["attribution"].abs() > 1e-6
    assert channels["energy_kev"][drives].between(3.58, 3.80).all() and drives.sum() > 5
    mean_counts = np.mean([spectrum.counts for spectrum in simulated_spectra()], axis=0)
    np.testing.assert_allclose(channels["mean_counts"], mean_counts[: len(channels)])
    assert "CaCO3 of 20 spectra against the continuum, in units of 10 wt%" in printed
    assert "| Ca Kα | 3.690 |" in printed
    with Image.open(output / "attribution.png") as image:
        assert image.format == "PNG"


def test_another_target_fewer_spectra_and_a_logarithmic_unit(explain, repository, corpus, tmp_path):
    options = ["--max_spectra", 7, "--steps", 1, "--batch_size", 3]
    code, printed, _ = explain(repository, corpus, "--target", "TOC", "--output_dir", tmp_path / "out", *options)
    lines = pd.read_csv(tmp_path / "out" / "lines.csv")
    assert code == 0 and "TOC of 7 spectra" in printed and "in units of a factor of 4.48" in printed  # exp(1.5)
    assert tuple(lines.loc[0, ["element", "line"]]) == ("Fe", "Kα") and lines["attribution"][0] < 0


def test_baseline_of_the_mean(explain, repository, corpus, tmp_path):
    options = ["--baseline", "mean", "--steps", 1]
    code, printed, _ = explain(repository, corpus, "--target", "CaCO3", "--output_dir", tmp_path / "out", *options)
    lines = pd.read_csv(tmp_path / "out" / "lines.csv")
    assert code == 0 and "against the mean" in printed
    assert lines["element"][0] == "Ca" and lines["attribution"].abs().max() < 1e-4


@pytest.mark.parametrize("number, total", [(5, 3), (5, 5), (5, 11), (4, 100), (1, 9), (256, 1000)])
def test_spectra_are_spread_evenly(script, number, total):
    kept = script.spread_evenly(iter(range(total)), number)
    assert len(kept) == len(set(kept)) == min(number, total) and kept == sorted(kept) and kept[0] == 0
    if number > 1:
        assert np.diff(kept).max() <= 2 * np.ceil(total / number) and kept[-1] >= total * (1 - 1 / number) - 1


def test_unusable_spectra_end_the_run_or_are_listed(explain, repository, tmp_path):
    counts = np.stack([spectrum.counts for spectrum in simulated_spectra()])
    counts[3] = 0
    source = tmp_path / "scan.npz"
    np.savez(source, counts=counts, gain_kev=0.02, offset_kev=0.0, tube_kv=10.0)
    arguments = [repository, source, "--target", "TOC", "--output_dir", tmp_path / "out", "--steps", 1]
    code, _, error = explain(*arguments)
    assert code == 2 and "row 3" in error and not (tmp_path / "out").exists()
    code, printed, _ = explain(*arguments, "--on_error", "skip")
    assert code == 0 and "TOC of 19 spectra" in printed and "1 rejected" in printed
    assert list(pd.read_csv(tmp_path / "out" / "rejected.csv")["index"]) == [3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scan.npz"]


def test_what_cannot_be_done_is_said_in_a_sentence(explain, repository, corpus, tmp_path):
    def refuses(message, *options, source=corpus, target="CaCO3", folder="out"):
        arguments = [repository, source, "--target", target, "--output_dir", tmp_path / folder, "--steps", 1]
        before = sorted(tmp_path.rglob("*"))
        code, _, error = explain(*arguments, *options)
        assert code == 2 and error.count("\n") == 1 and message in error
        assert sorted(tmp_path.rglob("*")) == before

    refuses("The model has no target 'CaO'; it has CaCO3, TOC.", target="CaO")
    refuses("no such file or folder", source=tmp_path / "absent")
    refuses("max_spectra must be at least 1, but is 0", "--max_spectra", 0)
    refuses("batch_size must be at least 1, but is 0", "--batch_size", 0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("keep me")
    refuses("holds other files", "--overwrite")
    refuses("is a file", folder="out/notes.txt")


def test_results_are_replaced_only_when_told(explain, repository, corpus, tmp_path):
    arguments = [repository, corpus, "--output_dir", tmp_path / "out", "--steps", 1]
    assert explain(*arguments, "--target", "CaCO3")[0] == 0
    code, _, error = explain(*arguments, "--target", "TOC")
    assert code == 2 and "add --overwrite" in error
    assert pd.read_csv(tmp_path / "out" / "lines.csv")["element"][0] == "Ca"
    assert explain(*arguments, "--target", "TOC", "--overwrite")[0] == 0
    assert pd.read_csv(tmp_path / "out" / "lines.csv")["element"][0] == "Fe"


def test_calibration_from_the_command_line(explain, repository, tmp_path):
    np.savez(tmp_path / "bare.npz", counts=np.stack([spectrum.counts for spectrum in simulated_spectra()]))
    arguments = [repository, tmp_path / "bare.npz", "--target", "CaCO3", "--output_dir", tmp_path / "out"]
    options = ["--gain_kev", 0.02, "--offset_kev", 0.0, "--tube_kv", 10, "--steps", 1]
    assert explain(*arguments, *options)[0] == 0
    assert pd.read_csv(tmp_path / "out" / "lines.csv")["element"][0] == "Ca"
