"""inference_xrf: the predictor as a function of arrays, its copies in other processes, and measured patches alone."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from test_pipeline import tiny_config, tiny_pretrained, tiny_regressor
from tiny_repositories import save_adapter, save_base

import inference_xrf
from feature_extraction_xrf import XRFFeatureExtractor
from hub_xrf import save_repository
from inference_xrf import XRFPredictor, load_encoder, measured_patches_only, predict, target_columns
from modeling_xrf import XRFForRegression, XRFModel

ROOT = Path(__file__).parent.parent
CALIBRATION = {"gain_kev": 0.02, "offset_kev": -0.01, "tube_kv": 10.0}
ADAPTED = {
    "interval_coverages": [0.8, 0.9],
    "interval_factors": [[0.5, 1.0], [1.5, 2.0]],
    "familiarity_threshold": 5.65,
}


def adapted_regressor(**changes) -> XRFForRegression:
    """A model with everything a prediction can have; open ranges, so that nothing is clamped."""
    settings = {"regression_loss": "gaussian", "target_min": [None, None], "target_max": [None, None], **ADAPTED}
    model = tiny_regressor(**{**settings, **changes})
    generator = torch.Generator().manual_seed(5)
    for parameter in [model.head.weight, *([model.spectrum_head.weight] if model.config.spectrum_skip else [])]:
        torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return model


def save(folder, model):
    return save_repository(folder, model, XRFFeatureExtractor.for_config(model.config), "# A test model\n")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models") / "adapted", adapted_regressor())


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(3)
    peaks = np.exp(-0.5 * ((np.arange(500) - rng.uniform(80, 400, (6, 1))) / 6) ** 2)
    return rng.poisson(20 + 3000 * peaks)


def full_outputs(folder, counts, **calibration):
    """What the model says with every patch in the encoder, the unmeasured ones masked."""
    features = XRFFeatureExtractor.from_pretrained(folder)(counts, return_tensors="pt", **calibration)
    with torch.no_grad():
        return XRFForRegression.from_pretrained(folder)(**features)


def test_columns_are_the_outputs_of_the_model(repository, counts):
    outputs = full_outputs(repository, counts, **CALIBRATION)
    result = XRFPredictor(repository)({"counts": counts, "sample": list("abcdef"), **CALIBRATION})
    expected = {"distance": outputs.distance, "unfamiliar": outputs.distance > 5.65}
    for index, target in enumerate(["CaCO3", "TOC"]):
        expected[target] = outputs.predictions[:, index]
        expected[f"{target}_sd"] = outputs.standard_deviation[:, index]
        for position, name in enumerate(["80", "90"]):
            expected[f"{target}_lower_{name}"] = outputs.lower[:, index, position]
            expected[f"{target}_upper_{name}"] = outputs.upper[:, index, position]
    assert set(result) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(result[name], values.numpy(), rtol=1e-4, err_msg=name)
    assert result["unfamiliar"].dtype == bool and 0 < result["unfamiliar"].sum() < 6 and np.std(result["CaCO3"]) > 0.1
    # the 90 % interval of the second target: 2 sd to either side of the prediction
    np.testing.assert_allclose(result["TOC_upper_90"] - result["TOC"], 2 * result["TOC_sd"], rtol=1e-3)


def test_columns_of_a_plain_model(counts, tmp_path):
    model = tiny_regressor()
    assert set(XRFPredictor(save(tmp_path / "plain", model))({"counts": counts, **CALIBRATION})) == {"CaCO3", "TOC"}
    assert target_columns(model.config, "TOC") == ["TOC"]


def test_a_list_of_different_lengths_and_an_object_array(repository, counts):
    predictor = XRFPredictor(repository)
    together = predictor({"counts": counts, **CALIBRATION})
    rows = [*counts[:3], *[np.append(row, np.zeros(40, dtype=int)) for row in counts[3:]]]
    objects = np.empty(6, dtype=object)
    objects[:] = rows
    tube_kv = np.array([10.0, 10.0, np.nan, 10.0, 10.0, 10.0])
    for counts_like in (rows, objects):
        result = predictor({"counts": counts_like, **CALIBRATION, "tube_kv": tube_kv})
        np.testing.assert_allclose(result["CaCO3"][:2], together["CaCO3"][:2], rtol=1e-4)
        assert len(result["CaCO3"]) == 6


def test_columns_to_keep_come_back_beside_the_predictions(repository, counts):
    batch = {"counts": counts, "sample": np.array(list("fedcba")), "TOC": np.zeros(6), **CALIBRATION}
    result = XRFPredictor(repository, keep=["sample"])(batch)
    assert result["sample"].tolist() == list("fedcba")
    np.testing.assert_array_equal(result["TOC"], XRFPredictor(repository)(batch)["TOC"])
    with pytest.raises(ValueError, match="The column 'TOC' to keep is also a prediction"):
        XRFPredictor(repository, keep=["TOC"])(batch)


def test_without_calibration_it_refuses(repository, counts):
    with pytest.raises(ValueError, match="Spectrum 0 has no energy calibration"):
        XRFPredictor(repository)({"counts": counts})


def test_it_maps_over_a_dataset(repository, counts):
    rows = Dataset.from_dict({"counts": counts.tolist(), **{name: [x] * 6 for name, x in CALIBRATION.items()}})
    predictor = XRFPredictor(repository)
    mapped = rows.map(predictor, batched=True, batch_size=4)
    expected = predictor({"counts": counts, **CALIBRATION})
    np.testing.assert_allclose(mapped["TOC"], expected["TOC"], rtol=1e-4)
    assert mapped["unfamiliar"] == expected["unfamiliar"].tolist()


def test_copies_pickle_small_and_share_one_model(repository, counts, monkeypatch):
    loads = []
    load_model = inference_xrf.load_model
    monkeypatch.setattr(inference_xrf, "load_model", lambda *a: loads.append(a) or load_model(*a))
    predictor = XRFPredictor(repository, device="cpu")
    assert loads == []
    expected = predictor({"counts": counts, **CALIBRATION})
    message = pickle.dumps(predictor)
    assert len(message) < 1000
    for _ in range(2):
        copy = pickle.loads(message)
        np.testing.assert_array_equal(copy({"counts": counts, **CALIBRATION})["TOC"], expected["TOC"])
    assert loads == [(str(repository), "cpu")]
    XRFPredictor(repository, device="cpu").predict(
        predictor.feature_extractor(counts, **CALIBRATION, return_tensors="pt")
    )
    assert len(loads) == 2, "a new predictor sees what the folder holds now"


def test_another_process_gives_the_same(repository, counts, tmp_path):
    predictor = XRFPredictor(repository)
    (tmp_path / "predictor").write_bytes(pickle.dumps(predictor))
    np.save(tmp_path / "counts.npy", counts)
    code = (
        "import pickle, sys, numpy as np; p = pickle.load(open('predictor', 'rb'));"
        f"r = p({{'counts': np.load('counts.npy'), **{CALIBRATION}}}); np.save('toc.npy', r['TOC'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, env=environment)
    here = predictor({"counts": counts, **CALIBRATION})["TOC"]
    np.testing.assert_allclose(np.load(tmp_path / "toc.npy"), here, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("spectrum_skip", [False, True])
def test_measured_patches_alone_give_the_same_numbers(counts, pooling, spectrum_skip):
    """Instruments of different ranges in one batch; each prediction as with all patches, the unmeasured masked."""
    model = adapted_regressor(spectrum_skip=spectrum_skip)
    model.config.pooling = pooling
    extractor = XRFFeatureExtractor.for_config(model.config)
    features = extractor(
        counts, gain_kev=[0.02, 0.02, 0.01, 0.01, 0.005, 0.02], offset_kev=0.5, tube_kv=[6.0, 4.0, 10, 3, 2, 5],
        return_tensors="pt",
    )  # fmt: skip
    number = int(features["attention_mask"].sum(1).max())
    assert 2 < number < model.config.num_patches and len(features["attention_mask"].sum(1).unique()) > 2
    seen = []
    model.xrf.embeddings.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    with torch.no_grad():
        expected = model(**features)
        trimmed = model(**measured_patches_only(features))
    assert seen == [1 + model.config.num_patches, 1 + number]
    for name in ("predictions", "standard_deviation", "lower", "upper", "distance"):
        torch.testing.assert_close(getattr(trimmed, name), getattr(expected, name), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(predict(model, features)["TOC"], expected.predictions[:, 1], rtol=1e-5, atol=1e-5)


def test_spectra_with_equally_many_measured_patches_go_together(counts, monkeypatch):
    """Whatever the order and the limits, every spectrum gets its own numbers, and no batch is larger or padded."""
    model = adapted_regressor()
    extractor = XRFFeatureExtractor.for_config(model.config)
    counts = np.pad(np.concatenate([counts, counts]), ((0, 0), (0, 100)), constant_values=1)
    features = extractor(
        counts, gain_kev=0.02, offset_kev=-0.5, tube_kv=[6, 4, 6, 2, 6, 4, 6, 2, 2, 6, 50, 6],
        return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        expected = model(**features)
    shapes = []
    model.xrf.embeddings.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[:2])))
    numbers = {"few": features["attention_mask"].sum(1)[3].item(), "all": features["attention_mask"].shape[1]}
    for batch_size, tokens in ((2, 4096), (None, 60), (None, 4096), (None, 1)):  # tokens of 64 numbers
        monkeypatch.setitem(inference_xrf.ACTIVATIONS_TOGETHER, "cpu", 64 * tokens)
        shapes.clear()
        columns = predict(model, features, batch_size)
        np.testing.assert_allclose(columns["TOC"], expected.predictions[:, 1], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(columns["distance"], expected.distance, rtol=1e-5, atol=1e-5)
        assert sum(rows for rows, _ in shapes) == 12 and len({tokens for _, tokens in shapes}) == 4
        assert min(shapes, key=lambda shape: shape[1])[1] == 1 + numbers["few"]
        assert max(shapes, key=lambda shape: shape[1])[1] == 1 + numbers["all"]
        assert all(rows <= (batch_size or max(tokens // length, 1)) for rows, length in shapes)
    assert len(shapes) == 12


def test_working_ahead_keeps_order_and_errors():
    taken = []

    def numbers():
        for number in range(6):
            taken.append(number)
            yield number
        raise ValueError("the seventh")

    ahead = inference_xrf.ahead(numbers(), 2)
    assert taken == []
    given = [next(ahead)]
    assert len(taken) <= 4
    with pytest.raises(ValueError, match="the seventh"):
        for number in ahead:
            given.append(number)
    assert given == taken == list(range(6))
    abandoned = inference_xrf.ahead(iter(range(1000)), 2)
    assert next(abandoned) == 0
    abandoned.close()
    assert list(inference_xrf.ahead(iter(range(5)), 3)) == list(range(5))


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_tables_are_written_in_order_and_in_large_groups(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(inference_xrf, "ROWS_IN_A_GROUP", 10)
    schema = pa.schema([("name", pa.string()), ("value", pa.float32())])
    path = tmp_path / f"table{suffix}"
    rows = [{"name": str(number), "value": number / 2} for number in range(27)]
    with inference_xrf.table_writer(path, schema) as write:
        for start in range(0, 27, 4):
            write(pa.Table.from_pylist(rows[start : start + 4], schema))
        assert not path.exists()
    written = pq.read_table(path) if suffix == ".parquet" else pyarrow.csv.read_csv(path)
    assert [float(value) for value in written["value"].to_pylist()] == [row["value"] for row in rows]
    if suffix == ".parquet":
        metadata = pq.read_metadata(path)
        assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [12, 12, 3]


def test_whole_spectra_pass_unchanged(counts):
    extractor = XRFFeatureExtractor.for_config(tiny_config())
    features = extractor(np.ones((2, 600)), gain_kev=0.02, offset_kev=-0.5, return_tensors="pt")
    assert measured_patches_only(features) is features


def test_encoder_of_every_kind_of_repository(counts, tmp_path):
    """A pretrained model, a regression model with the CLS token, an adapter: always the mean over measured patches."""
    regressor = tiny_regressor()
    regressor.config.pooling = "cls"
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base).merge_and_unload()
    encoders = {
        save(tmp_path / "pretrained", tiny_pretrained()): tiny_pretrained().xrf,
        save(tmp_path / "regression", regressor): regressor.xrf,
        tmp_path / "adapter": adapter.xrf,
    }
    for folder, encoder in encoders.items():
        loaded, extractor = load_encoder(str(folder), "cpu")
        features = extractor(counts, return_tensors="pt", **{**CALIBRATION, "tube_kv": 1.5})
        with torch.no_grad():
            hidden = encoder.eval()(**features).last_hidden_state[:, 1:]
        measured = features["attention_mask"].bool()
        assert not measured.all() and isinstance(loaded, XRFModel)
        expected = torch.stack([states[mask].mean(0) for states, mask in zip(hidden, measured)])
        np.testing.assert_allclose(inference_xrf.embed(loaded, features), expected, rtol=1e-4, atol=1e-5)
