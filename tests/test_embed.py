"""scripts/embed.py: tables of embeddings and their maps."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_pipeline import tiny_pretrained, tiny_regressor

import figures_xrf
from dataset_builder import Spectrum, spectra_to_table
from feature_extraction_xrf import XRFFeatureExtractor
from hub_xrf import save_repository

ROOT = Path(__file__).parent.parent
SCRIPT = "embed.py"
CALIBRATION = {"gain_kev": 0.02, "offset_kev": -0.01, "tube_kv": 6.0}


@pytest.fixture
def embed(call_script):
    return call_script


@pytest.fixture
def drawn(monkeypatch):
    """Arguments with which `plot_embeddings` was called."""
    calls = []
    plot = figures_xrf.plot_embeddings
    monkeypatch.setattr(figures_xrf, "plot_embeddings", lambda *a: calls.append(a) or plot(*a))
    return calls


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    model = tiny_pretrained()
    folder = tmp_path_factory.mktemp("models") / "pretrained"
    return save_repository(folder, model, XRFFeatureExtractor.for_config(model.config), "# A base\n")


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(3)
    peaks = np.exp(-0.5 * ((np.arange(500) - np.linspace(80, 280, 12)[:, None]) / 6) ** 2)
    return rng.poisson(20 + 3000 * peaks)


def save_table(path, counts, **spectrum_fields):
    """A corpus table in which the first spectrum has no label."""
    spectra = [
        Spectrum(c, **CALIBRATION, core="AB"[i % 2], sample=f"s{i}", targets={"CaCO3": 2.5 * i} if i else {},
                 target_units={"CaCO3": "wt%"}, **spectrum_fields)
        for i, c in enumerate(counts)
    ]  # fmt: skip
    pq.write_table(spectra_to_table(spectra, ["CaCO3"], {"CaCO3": "wt%"}), path)
    return path


def expected_embeddings(model, counts):
    features = XRFFeatureExtractor.for_config(model.config)(counts, return_tensors="pt", **CALIBRATION)
    with torch.no_grad():
        hidden = model.xrf(**features).last_hidden_state[:, 1:]
    measured = features["attention_mask"].bool()
    assert not measured.all()
    return torch.stack([states[mask].mean(0) for states, mask in zip(hidden, measured)]).numpy()


def test_the_table_holds_identifiers_and_mean_embeddings(embed, repository, counts, tmp_path):
    source = save_table(tmp_path / "corpus.parquet", counts)
    output = tmp_path / "new" / "embeddings.parquet"
    code, printed, _ = embed(repository, source, "--output", output, "--batch_size", 5)
    assert code == 0 and "12 spectra embedded in 32 numbers each" in printed
    table = pq.read_table(output)
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 32)
    expected = expected_embeddings(tiny_pretrained(), counts)
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), expected, rtol=1e-4, atol=1e-5)
    assert table["file"].to_pylist() == [str(source)] * 12 and table["index"].to_pylist() == list(range(12))
    assert table["sample"].to_pylist() == [f"s{i}" for i in range(12)]
    labels = [json.loads(text)["CaCO3"] if text else None for text in table["reference_values"].to_pylist()]
    assert labels == [None, *(2.5 * i for i in range(1, 12))]
    assert sorted(path.name for path in output.parent.iterdir()) == ["embeddings.parquet"]


def test_a_fine_tuned_model_embeds_by_the_mean_too(embed, counts, tmp_path):
    model = tiny_regressor()
    model.config.pooling = "cls"
    folder = save_repository(tmp_path / "m", model, XRFFeatureExtractor.for_config(model.config), "# A test model\n")
    np.savez(tmp_path / "scan.npz", counts=counts, **CALIBRATION)
    assert embed(folder, tmp_path / "scan.npz", "--output", tmp_path / "e.parquet")[0] == 0
    values = np.stack(pd.read_parquet(tmp_path / "e.parquet")["embedding"])
    np.testing.assert_allclose(values, expected_embeddings(model, counts), rtol=1e-4, atol=1e-5)


def test_a_corpus_folder_and_a_rejected_spectrum(embed, repository, counts, tmp_path):
    corpus = tmp_path / "corpus"
    (corpus / "data").mkdir(parents=True)
    save_table(corpus / "data" / "train.parquet", counts[:3])
    save_table(corpus / "data" / "test.parquet", counts[3:5])
    bad = tmp_path / "bad.npz"
    np.savez(bad, counts=np.ones((2, 500)), gain_kev=0.02, offset_kev=[0.0, 90.0])
    options = ["--output", tmp_path / "e.parquet", "--on_error", "skip"]
    code, printed, _ = embed(repository, corpus, bad, *options)
    assert code == 0 and "1 rejected" in printed
    rejected = pd.read_csv(tmp_path / "e.rejected.csv")
    assert list(rejected["index"]) == [1] and "covers 89.99" in rejected["reason"][0]
    table = pd.read_parquet(tmp_path / "e.parquet")
    assert len(table) == 6 and set(table["file"]) == {str(p) for p in [bad, *(corpus / "data").iterdir()]}


def test_map_of_principal_components_coloured_by_a_reference_value(embed, repository, counts, tmp_path, drawn):
    source = save_table(tmp_path / "corpus.parquet", counts)
    figure = tmp_path / "map.png"
    options = ["--output", tmp_path / "e.parquet", "--map", figure, "--color_by", "CaCO3", "--batch_size", 5]
    code, printed, _ = embed(repository, source, *options)
    assert code == 0 and f"map: {figure}" in printed and figure.read_bytes()[:4] == b"\x89PNG"
    ((path, points, axis_names, values, name, title),) = drawn
    assert path == str(figure) and name == "CaCO3 (wt%)" and title == "12 spectra"
    np.testing.assert_allclose(values, [np.nan, *(2.5 * np.arange(1, 12))])
    centred = np.stack(pd.read_parquet(tmp_path / "e.parquet")["embedding"]).astype(float)
    centred -= centred.mean(0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(points), np.abs(left[:, :2] * singular[:2]), rtol=1e-3, atol=1e-4)
    share = singular**2 / (singular**2).sum()
    assert axis_names[0] == f"PC 1 ({100 * share[0]:.0f} % of the variance)"


def test_map_coloured_by_columns_and_metadata(embed, repository, counts, tmp_path, drawn):
    source = save_table(tmp_path / "corpus.parquet", counts, metadata={"Operator": "Kim", "Run": "7"})
    expected = {"core": ["A", "B"] * 6, "tube_kv": [6.0] * 12, "Operator": ["Kim"] * 12, "Run": [7.0] * 12}
    for color_by, values in expected.items():
        options = ["--output", tmp_path / "e.parquet", "--map", tmp_path / "map.png", "--overwrite"]
        assert embed(repository, source, *options, "--color_by", color_by)[0] == 0
        assert list(drawn[-1][3]) == values and drawn[-1][4] == color_by


def test_neighbour_map_keeps_groups_together(embed, repository, tmp_path, drawn):
    rng = np.random.default_rng(0)
    centre = np.repeat([100, 250], 20)
    peaks = np.exp(-0.5 * ((np.arange(500) - centre[:, None]) / 6) ** 2)
    np.savez(tmp_path / "scan.npz", counts=rng.poisson(20 + 3000 * peaks), **CALIBRATION)
    options = ["--output", tmp_path / "e.parquet", "--map", tmp_path / "map.png", "--projection", "tsne"]
    assert embed(repository, tmp_path / "scan.npz", *options)[0] == 0
    ((_, points, axis_names, values, name, _),) = drawn
    assert axis_names == ("t-SNE 1", "t-SNE 2") and values is None and name == ""
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(40)
    assert (centre[distances.argmin(axis=1)] == centre).all()


def test_a_large_table_is_sampled_for_the_map(embed, repository, counts, tmp_path, drawn):
    source = save_table(tmp_path / "corpus.parquet", counts)
    options = ["--output", tmp_path / "e.parquet", "--map", tmp_path / "map.png", "--color_by", "index"]
    assert embed(repository, source, *options, "--map_spectra", 7, "--batch_size", 4)[0] == 0
    ((_, points, _, values, _, title),) = drawn
    assert title == "7 of 12 spectra" and len(points) == 7
    assert list(values) == sorted(set(values)) and set(values) <= set(range(12)) and len(values) == 7


def test_refusals(embed, repository, counts, tmp_path):
    source = save_table(tmp_path / "corpus.parquet", counts)

    def refuses(message, *arguments):
        code, _, error = embed(repository, source, *arguments)
        assert code == 2 and error.count("\n") == 1 and message in error

    output = ["--output", tmp_path / "e.parquet"]
    refuses("must be named .parquet, but is", "--output", tmp_path / "e.csv")
    refuses("color_by core colours a map; add --map", *output, "--color_by", "core")
    refuses("The map must be named .png", *output, "--map", tmp_path / "map.jpg")
    refuses("map_spectra must be at least 4", *output, "--map", tmp_path / "map.png", "--map_spectra", 3)
    assert not (tmp_path / "e.parquet").exists()
    (tmp_path / "map.png").write_text("earlier work")
    refuses("The map", *output, "--map", tmp_path / "map.png")
    assert not (tmp_path / "e.parquet").exists()
    # what colours the map may lie in the last file, so that only the end can tell; the table is not lost
    refuses("none of its spectra has a value of TOC", *output, "--map", tmp_path / "new.png", "--color_by", "TOC")
    assert len(pd.read_parquet(tmp_path / "e.parquet")) == 12 and not (tmp_path / "new.png").exists()
    refuses(
        "choose one of CaCO3, anode, core,", *output, "--map", tmp_path / "new.png", "--color_by", "T", "--overwrite"
    )


MEASURE_PEAKS = """
import resource, runpy, sys
model, *inputs = sys.argv[1:]
for source in inputs:
    sys.argv = ["embed.py", model, source, "--output", source + ".parquet"]
    runpy.run_path("scripts/embed.py", run_name="__main__")
    print("PEAK_KIB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_input(repository, counts, tmp_path):
    """3,000 spectra of 2,000 channels (46 MiB as the reader holds them) need no more than 300."""
    spectra = [Spectrum(np.tile(c, 4), **CALIBRATION) for c in counts]
    table = spectra_to_table([*spectra * 9][:100], [], {})
    for copies in (3, 30):
        with pq.ParquetWriter(tmp_path / f"{copies}.parquet", table.schema) as writer:
            for _ in range(copies):
                writer.write_table(table, row_group_size=100)
    command = [sys.executable, "-c", MEASURE_PEAKS, repository, tmp_path / "3.parquet", tmp_path / "30.parquet"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert pq.ParquetFile(tmp_path / "30.parquet.parquet").metadata.num_rows == 3000
    small, large = [int(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("PEAK_KIB")]
    assert (large - small) / 1024 < 20, f"{small / 1024:.0f} MiB for 300 spectra, {large / 1024:.0f} MiB for 3,000"


def test_a_real_map(embed, repository, real_data, tmp_path, drawn):
    source = real_data / "unlabelled" / "pixl_beaujeu.npz"
    options = ["--output", tmp_path / "e.parquet", "--map", tmp_path / "map.png", "--color_by", "TiO2"]
    assert embed(repository, source, *options)[0] == 0
    assert len(drawn[0][1]) == 450 and np.isfinite(drawn[0][3]).sum() > 200
