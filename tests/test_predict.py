"""scripts/predict.py: tables of predictions from files, folders and tables of spectra."""

import csv
import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_pipeline import TARGETS, randomised, tiny_pretrained, tiny_regressor

import inference_xrf
from dataset_builder import Spectrum, spectra_to_table
from feature_extraction_xrf import XRFFeatureExtractor
from hub_xrf import save_adapter_repository, save_repository
from modeling_xrf import XRFForRegression

ROOT = Path(__file__).parent.parent
SCRIPT = "predict.py"
CALIBRATION = {"gain_kev": 0.02, "offset_kev": -0.01, "tube_kv": 10.0}
NUM_CHANNELS = 500


@pytest.fixture
def predict(call_script):
    return call_script


@pytest.fixture(scope="module", params=["mse", "gaussian"])
def repository(request, tmp_path_factory):
    model = tiny_regressor(regression_loss=request.param)
    folder = tmp_path_factory.mktemp("models") / request.param
    return save_repository(folder, model, XRFFeatureExtractor.for_config(model.config), "# A test model\n")


one_head = pytest.mark.parametrize("repository", ["gaussian"], indirect=True)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    model = tiny_pretrained()
    folder = tmp_path_factory.mktemp("models") / "pretrained"
    return save_repository(folder, model, XRFFeatureExtractor.for_config(model.config), "# A base\n")


def make_counts(num_spectra, seed=3):
    rng = np.random.default_rng(seed)
    peaks = np.exp(-0.5 * ((np.arange(NUM_CHANNELS) - rng.uniform(80, 400, (num_spectra, 1))) / 6) ** 2)
    return rng.poisson(20 + 3000 * peaks)


@pytest.fixture(scope="module")
def counts():
    return make_counts(7)


def direct(folder, counts, **calibration):
    inputs = XRFFeatureExtractor.from_pretrained(folder)(counts, return_tensors="pt", **(calibration or CALIBRATION))
    with torch.no_grad():
        outputs = XRFForRegression.from_pretrained(folder)(**inputs)
    return outputs.predictions.numpy(), outputs.standard_deviation


def check_values(table: pd.DataFrame, folder, counts, **calibration):
    predictions, sd = direct(folder, counts, **calibration)
    assert len(table) == len(predictions)
    for column, (target, unit) in enumerate(zip(TARGETS["target_names"], TARGETS["target_units"])):
        np.testing.assert_allclose(table[target], predictions[:, column], rtol=1e-5, atol=1e-4)
        assert set(table[f"{target}_unit"]) == {unit}
        assert (f"{target}_sd" in table) == (sd is not None)
        if sd is not None:
            np.testing.assert_allclose(table[f"{target}_sd"], sd[:, column], rtol=1e-5)


def read(path) -> pd.DataFrame:
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def save_npz(path, counts, **changes):
    np.savez(path, counts=counts, **{**CALIBRATION, **changes})
    return path


def save_wide_csv(path, counts, prefix="", **columns):
    table = pd.DataFrame(counts, columns=[f"{prefix}{i}" for i in range(counts.shape[1])])
    for position, (name, values) in enumerate(columns.items()):
        table.insert(position, name, values)
    table.to_csv(path, index=False)
    return path


def save_s1pxrf(path, counts, label):
    header = [
        "Bruker AXS Handheld - S1PXRF Spectrum",
        "HV ADC,10",
        "eV per channel,20",
        f"Label,{label}",
        "Operator,Kim",
    ]
    lines = [f"{channel},{int(number)}" for channel, number in enumerate(counts)]
    path.write_text("\r".join([*header, "Channel#,Intensity", *lines]) + "\r")
    return path


def corpus_table(counts, **targets):
    spectra = [
        Spectrum(c, **CALIBRATION, core="C1", sample=f"s{i}", depth_mm=10.5 * i, source="C1.spe",
                 targets={name: values[i] for name, values in targets.items()})
        for i, c in enumerate(counts)
    ]  # fmt: skip
    return spectra_to_table(spectra, list(targets), dict.fromkeys(targets, "wt%"))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_npz_with_every_identifier(predict, repository, counts, tmp_path, suffix):
    names = [f"BL-{i}" for i in range(7)]
    source = save_npz(tmp_path / "scan.npz", counts, sample=names, core=["A"] * 7, depth_mm=np.arange(7) * 2.5)
    output = tmp_path / "new" / f"out{suffix}"
    code, printed, _ = predict(repository, source, "--output", output, "--batch_size", 3)
    assert code == 0 and "7 spectra predicted" in printed and str(output) in printed
    table = read(output)
    check_values(table, repository, counts)
    assert list(table["file"]) == [str(source)] * 7 and list(table["index"]) == list(range(7))
    assert list(table["sample"]) == names and list(table["core"]) == ["A"] * 7
    np.testing.assert_allclose(table["depth_mm"], np.arange(7) * 2.5)
    np.testing.assert_allclose(table["tube_kv"], 10.0)
    assert table["live_time_s"].isna().all()
    assert sorted(path.name for path in output.parent.iterdir()) == [output.name]


def test_corpus_parquet(predict, repository, counts, tmp_path):
    labels = np.linspace(1, 60, 7)
    pq.write_table(corpus_table(counts, CaCO3=labels), tmp_path / "corpus.parquet", row_group_size=2)
    assert predict(repository, tmp_path / "corpus.parquet", "--output", tmp_path / "out.parquet")[0] == 0
    table = read(tmp_path / "out.parquet")
    check_values(table, repository, counts)
    assert list(table["sample"]) == [f"s{i}" for i in range(7)] and set(table["source"]) == {"C1.spe"}
    np.testing.assert_allclose(table["depth_mm"], 10.5 * np.arange(7))
    reference = [json.loads(text)["CaCO3"] for text in table["reference_values"]]
    np.testing.assert_allclose(reference, labels, rtol=1e-6)


def uneven_corpus():
    """A corpus with whatever a row may hold, and the numbers of the rows that are no spectra."""
    table = corpus_table(make_counts(12), CaCO3=np.linspace(1, 60, 12), TOC=np.r_[np.nan, np.arange(11)])
    rows = table.to_pylist()
    rows[1].update(tube_kv=None, live_time_s=float("nan"), core=None)
    rows[2].update(CaCO3=None, gain_kev=0.01, counts=rows[2]["counts"][:400])
    rows[3].update(gain_kev=float("nan"), offset_kev=None, anode="Rh", filter="Å 1 µm")
    rows[4].update(metadata='{"a":1}', x_mm=2.5, CaCO3=1e-6, TOC=1e20)
    rows[5].update(CaCO3=None, TOC=float("inf"))
    return table.schema, rows


@one_head
@pytest.mark.parametrize(
    "change, rejected",
    [
        ({}, None),
        ({"counts": [0.0] * 300}, "all its channels are zero"),
        ({"counts": [1.0, -2.0]}, "counts must not be negative"),
        ({"counts": [1.0, float("nan")]}, "counts must be finite"),
        ({"counts": [1.0, 2e12]}, "counts must be plausible"),
        ({"counts": []}, "at least one channel"),
        ({"counts": None}, "must have counts"),
        ({"gain_kev": -0.02}, "gain_kev must be positive"),
        ({"offset_kev": float("inf")}, "offset_kev must be finite"),
        ({"offset_kev": 70.0}, "covers 69.99"),
        ({"metadata": "{"}, "the row is no spectrum"),
        ({"target_units": '{"TOC": "%"}'}, None),
        ({"target_units": "7"}, "the row is no spectrum"),
    ],
)
def test_a_corpus_by_columns_is_the_same_as_row_by_row(predict, repository, tmp_path, monkeypatch, change, rejected):
    """All columns of the output, and what is rejected and why, do not depend on how a corpus is read."""
    schema, rows = uneven_corpus()
    rows[6].update(change)
    rows = [*rows, *[{**row, **rows[11]} for row in rows]]
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "c.parquet", row_group_size=9)
    monkeypatch.setattr(inference_xrf, "READ_TOGETHER", 5)
    by_columns = inference_xrf.corpus_rows
    ways, outputs, rejections = [], [], []

    def columns(*arguments):
        ways.append(by_columns(*arguments))
        return ways[-1]

    options = ["--on_error", "skip", "--batch_size", 3, "--gain_kev", 0.021, "--offset_kev", 0.02, "--tube_kv", 9]
    for name, way in (("columns", columns), ("rows", lambda *arguments: None)):
        monkeypatch.setattr(inference_xrf, "corpus_rows", way)
        output = tmp_path / f"{name}.parquet"
        code, _, error = predict(repository, tmp_path / "c.parquet", "--output", output, *options)
        assert code == 0, error
        outputs.append(pq.read_table(output))
        rejections.append((tmp_path / f"{name}.rejected.csv").read_text())
    assert sum(way is not None for way in ways) >= 4
    assert len(outputs[0]) == 24 - (rejected is not None) and rejections[0] == rejections[1]
    assert rejected is None or rejected in rejections[0]
    references, others = (
        [json.loads(text) if text else {} for text in output["reference_values"].to_pylist()] for output in outputs
    )
    assert references == others
    assert references[4] == pytest.approx({"CaCO3": 1e-6, "TOC": 1e20}, rel=1e-6)
    assert references[0] == {"CaCO3": 1.0} and references[5] == {}
    exact = outputs[0].column_names[: outputs[0].column_names.index("reference_values")]
    assert outputs[0].select(exact) == outputs[1].select(exact)
    for name in ("CaCO3", "CaCO3_sd", "TOC", "TOC_sd"):
        np.testing.assert_allclose(outputs[0][name], outputs[1][name], rtol=1e-5, atol=1e-5)


@one_head
def test_a_corpus_that_breaks_off(predict, refuses, repository, tmp_path, monkeypatch):
    """Pages that cannot be read: what stands before them is predicted, the file rejected."""
    schema, rows = uneven_corpus()
    path = tmp_path / "c.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=4)
    metadata = pq.read_metadata(path)
    start = metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 400] = bytes(400)
    path.write_bytes(content)
    refuses(f"{path}: the Parquet file is cut off or damaged", repository, path, "--output", tmp_path / "o.csv")
    monkeypatch.setattr(inference_xrf, "READ_TOGETHER", 4)
    options = ["--on_error", "skip", "--batch_size", 2, "--gain_kev", 0.02, "--offset_kev", 0]
    assert predict(repository, path, "--output", tmp_path / "o.csv", *options)[0] == 0
    assert list(read(tmp_path / "o.csv")["index"]) == [0, 1, 2, 3]
    rejected = read(tmp_path / "o.rejected.csv")
    assert list(rejected["index"]) == [4] and "damaged" in rejected["reason"][0]


def test_wide_csv_and_wide_parquet(predict, repository, counts, tmp_path):
    columns = {name: [value] * 7 for name, value in CALIBRATION.items()}
    wide = save_wide_csv(tmp_path / "wide.csv", counts, sample=[f"s{i}" for i in range(7)], **columns)
    pd.read_csv(wide).to_parquet(tmp_path / "wide.parquet")
    for name in ("wide.csv", "wide.parquet"):
        output = tmp_path / f"from_{name}.csv"
        assert predict(repository, tmp_path / name, "--output", output)[0] == 0
        table = read(output)
        check_values(table, repository, counts)
        assert list(table["sample"]) == [f"s{i}" for i in range(7)]


def test_intervals_and_familiarity(predict, counts, tmp_path):
    model = tiny_regressor(
        regression_loss="gaussian", interval_coverages=[0.8, 0.9], interval_factors=[[0.5, 1.0], [1.5, 2.0]],
        familiarity_threshold=1.0, target_min=[None, None], target_max=[None, None],
    )  # fmt: skip
    inputs = XRFFeatureExtractor.for_config(model.config)(counts, return_tensors="pt", **CALIBRATION)
    with torch.no_grad():
        outputs = model(**inputs)
        model.config.familiarity_threshold = float(outputs.distance.sort().values[2:4].mean())  # 3 of 7 are familiar
    folder = save_repository(tmp_path / "m", model, XRFFeatureExtractor.for_config(model.config), "# A test model\n")
    source = save_npz(tmp_path / "scan.npz", counts)
    for name in ("out.csv", "out.parquet"):
        code, printed, _ = predict(folder, source, "--output", tmp_path / name, "--batch_size", 3)
        assert code == 0 and "standardless" not in printed
        table = read(tmp_path / name)
        own = [f"TOC{suffix}" for suffix in ("", "_unit", "_sd", "_lower_80", "_upper_80", "_lower_90", "_upper_90")]
        assert list(table.columns[-9:]) == [*own, "distance", "unfamiliar"]
        half = {80: 1.0, 90: 2.0}
        for coverage, factor in half.items():
            np.testing.assert_allclose(
                table[f"TOC_lower_{coverage}"], table["TOC"] - factor * table["TOC_sd"], rtol=1e-3
            )
            np.testing.assert_allclose(
                table[f"TOC_upper_{coverage}"], table["TOC"] + factor * table["TOC_sd"], rtol=1e-3
            )
        np.testing.assert_allclose(table["distance"], outputs.distance, rtol=1e-4)
        assert sorted(table["distance"][~table["unfamiliar"]]) == sorted(table["distance"])[:3]


def test_a_standardless_model_says_so(predict, counts, tmp_path):
    model = tiny_regressor(calibration="standardless")
    folder = save_repository(tmp_path / "m", model, XRFFeatureExtractor.for_config(model.config), "# A test model\n")
    code, printed, _ = predict(folder, save_npz(tmp_path / "scan.npz", counts), "--output", tmp_path / "out.csv")
    assert code == 0
    assert printed.splitlines()[-1].startswith(
        "These values are standardless: the model learnt from simulated spectra"
    )


@one_head
def test_column_mapping(predict, repository, counts, tmp_path):
    wide = save_wide_csv(tmp_path / "wide.csv", counts, prefix="ch", id=list("abcdefg"), mm=np.arange(7) * 5)
    mapping = {"channels": "ch", "columns": {"sample": "id", "depth_mm": "mm"}, "constants": CALIBRATION}
    (tmp_path / "mapping.json").write_text(json.dumps(mapping))
    arguments = [repository, wide, "--output", tmp_path / "out.csv", "--column_mapping", tmp_path / "mapping.json"]
    assert predict(*arguments)[0] == 0
    table = read(tmp_path / "out.csv")
    check_values(table, repository, counts)
    assert list(table["sample"]) == list("abcdefg") and list(table["depth_mm"]) == [0, 5, 10, 15, 20, 25, 30]


@one_head
def test_folder_of_several_formats(predict, repository, counts, tmp_path):
    folder = tmp_path / "scans"
    (folder / "b").mkdir(parents=True)
    save_s1pxrf(folder / "b" / "2.csv", counts[2], "second")
    save_s1pxrf(folder / "b" / "1.csv", counts[1], "first")
    save_npz(folder / "a.npz", counts[3:6])
    (folder / "notes.md").write_text("not a spectrum")
    output = tmp_path / "out.csv"
    assert predict(repository, folder, folder / "b" / "1.csv", "--output", output, "--batch_size", 2)[0] == 0
    table = read(output)
    files = ["a.npz"] * 3 + ["b/1.csv", "b/2.csv", "b/1.csv"]
    assert list(table["file"]) == [str(folder / name) for name in files]
    assert list(table["index"]) == [0, 1, 2, 0, 0, 0]
    assert list(table["sample"][3:]) == ["first", "second", "first"]
    assert [json.loads(text)["Operator"] for text in table["metadata"][3:]] == ["Kim"] * 3
    check_values(table[:3], repository, counts[3:6])
    check_values(table[3:], repository, counts[[1, 2, 1]], gain_kev=0.02, offset_kev=0.0, tube_kv=10.0)


def test_adapter(predict, pretrained, counts, tmp_path):
    torch.manual_seed(0)
    unlimited = {**TARGETS, "target_min": [None, None], "target_max": [None, None]}
    base = XRFForRegression.from_pretrained(pretrained, **unlimited)
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["head"])
    model = randomised(get_peft_model(base, lora))
    model.peft_config["default"].base_model_name_or_path = str(pretrained)
    # not the extractor of the base: the adapter's own counts
    extractor = XRFFeatureExtractor.for_config(base.config, scaling="standardize")
    adapter = save_adapter_repository(tmp_path / "adapter", model, extractor, "# An adapter\n")
    with torch.no_grad():
        expected = model(**extractor(counts, return_tensors="pt", **CALIBRATION)).predictions.numpy()
    output = tmp_path / "out.csv"
    assert predict(adapter, save_npz(tmp_path / "scan.npz", counts), "--output", output)[0] == 0
    table = read(output)
    np.testing.assert_allclose(table[["CaCO3", "TOC"]], expected, rtol=1e-4, atol=1e-3)
    assert table["CaCO3"].std() > 1 and "CaCO3_sd" not in table


@one_head
def test_calibration_from_the_command_line_fills_gaps_only(predict, repository, counts, tmp_path):
    bare, own = tmp_path / "bare.npz", tmp_path / "own.npz"
    np.savez(bare, counts=counts)
    save_npz(own, counts)
    options = ["--gain_kev", 0.019, "--offset_kev", 0.01, "--tube_kv", 15]
    assert predict(repository, bare, own, "--output", tmp_path / "out.csv", *options)[0] == 0
    table = read(tmp_path / "out.csv")
    check_values(table[:7], repository, counts, gain_kev=0.019, offset_kev=0.01, tube_kv=15.0)
    check_values(table[7:], repository, counts)


def damaged_inputs(folder, counts):
    """Files with 7 + 7 spectra of which 4 cannot be used, and the (file, index, part of the reason) of these."""
    zero_and_negative = counts.copy()
    zero_and_negative[1] = 0
    zero_and_negative[4, 17] = -3
    columns = {name: [value] * 7 for name, value in CALIBRATION.items()}
    columns["gain_kev"] = [0.02, 0.02, 0.02, -0.02, 0.02, 0.02, 0.02]
    columns["offset_kev"] = [0.0] * 6 + [90.0]
    wide = save_wide_csv(folder / "wide.csv", counts, **columns)
    scan = save_npz(folder / "scan.npz", zero_and_negative)
    return [scan, wide], [(scan, 1, "zero"), (scan, 4, "-3"), (wide, 3, "gain_kev"), (wide, 6, "covers 89.99")]


@one_head
@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_skip_lists_what_was_rejected(predict, repository, counts, tmp_path, batch_size):
    inputs, bad = damaged_inputs(tmp_path, counts)
    output = tmp_path / "out.csv"
    options = ["--on-error", "skip", "--batch_size", batch_size]
    code, printed, _ = predict(repository, *inputs, "--output", output, *options)
    assert code == 0
    assert "10 spectra predicted" in printed and f"4 rejected: {tmp_path / 'out.rejected.csv'}" in printed
    table = read(output)
    kept = [(str(inputs[0]), i) for i in (0, 2, 3, 5, 6)] + [(str(inputs[1]), i) for i in (0, 1, 2, 4, 5)]
    assert list(zip(table["file"], table["index"])) == kept
    check_values(table[:5], repository, counts[[0, 2, 3, 5, 6]])
    with open(tmp_path / "out.rejected.csv", newline="") as file:
        rejected = list(csv.DictReader(file))
    assert sorted((row["file"], int(row["index"])) for row in rejected) == sorted((str(f), i) for f, i, _ in bad)
    reasons = {(row["file"], int(row["index"])): row["reason"] for row in rejected}
    for file, index, part in bad:
        assert part in reasons[str(file), index]
    assert "Spectrum 6 covers" in reasons[str(inputs[1]), 6]


@one_head
def test_stop_names_file_and_spectrum_and_leaves_nothing(refuses, repository, counts, tmp_path):
    inputs, _ = damaged_inputs(tmp_path, counts)
    refuses(f"{inputs[0]}, row 1", repository, *inputs, "--output", tmp_path / "out.csv")
    refuses(f"{inputs[1]}, row 3", repository, inputs[1], "--output", tmp_path / "out.parquet", "--batch_size", 2)
    far = save_npz(tmp_path / "far.npz", counts, offset_kev=[0, 0, 0, 0, 0, 55.0, 0])
    message = f"{far}: Spectrum 5 covers 54.99 to"
    refuses(message, repository, far, "--output", tmp_path / "out.csv", "--batch_size", 2)


@one_head
def test_skip_goes_on_after_an_unreadable_file(predict, repository, counts, tmp_path):
    good = save_npz(tmp_path / "b.npz", counts)
    (tmp_path / "a.npz").write_bytes(good.read_bytes()[:400])
    code, printed, _ = predict(repository, tmp_path, "--output", tmp_path / "out.csv", "--on_error", "skip")
    assert code == 0 and "7 spectra predicted" in printed and "1 rejected" in printed
    rejected = read(tmp_path / "out.rejected.csv")
    assert list(rejected["file"]) == [str(tmp_path / "a.npz")] and "complete" in rejected["reason"][0]


@one_head
def test_nothing_usable_is_an_error_also_when_skipping(refuses, repository, counts, tmp_path):
    source = save_npz(tmp_path / "scan.npz", counts, offset_kev=70.0)
    message = "None of 7 spectra could be used; the first:"
    refuses(message, repository, source, "--output", tmp_path / "out.csv", "--on_error", "skip")


@one_head
def test_spectra_without_calibration(refuses, repository, counts, tmp_path):
    np.savez(tmp_path / "bare.npz", counts=counts)
    message = "Spectrum 0 has no energy calibration; supply gain_kev"
    refuses(message, repository, tmp_path / "bare.npz", "--output", tmp_path / "out.csv")


@one_head
def test_truncated_parquet(refuses, predict, repository, counts, tmp_path):
    whole = tmp_path / "whole.parquet"
    pq.write_table(corpus_table(counts), whole)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(whole.read_bytes()[:-200])
    refuses(f"{cut}: the Parquet file is cut off", repository, cut, "--output", tmp_path / "out.csv")
    arguments = [repository, whole, cut, "--output", tmp_path / "out.csv"]
    refuses(f"{cut}: the Parquet file is cut off", *arguments)  # after the first file's rows
    assert predict(*arguments, "--on_error", "skip")[0] == 0
    check_values(read(tmp_path / "out.csv"), repository, counts)


@one_head
def test_bad_inputs(refuses, repository, counts, tmp_path):
    output = ["--output", tmp_path / "out.csv"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "unknown.bin").write_bytes(b"\x00\x01")
    refuses(f"{tmp_path / 'empty'}: the folder must hold spectra", repository, tmp_path / "empty", *output)
    refuses("there is no such file or folder", repository, tmp_path / "absent.npz", *output)
    refuses("the format is not known", repository, tmp_path / "unknown.bin", *output)
    wide = save_wide_csv(tmp_path / "wide.csv", counts, prefix="ch")
    refuses("give a column mapping", repository, wide, *output)
    (tmp_path / "mapping.json").write_text('{"chanels": "ch"}')
    refuses("chanels", repository, wide, *output, "--column_mapping", tmp_path / "mapping.json")


def test_bad_models(refuses, pretrained, counts, tmp_path):
    source = save_npz(tmp_path / "scan.npz", counts)
    output = ["--output", tmp_path / "out.csv"]
    refuses("There is no model folder", tmp_path / "absent", source, *output)
    refuses("has no repository absent-org/absent-model", "absent-org/absent-model", source, *output)
    refuses("pretrained only and has no targets; fine-tune it", pretrained, source, *output)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    refuses("another architecture (bert)", other, source, *output)


@one_head
def test_damaged_models(refuses, repository, counts, tmp_path):
    source = save_npz(tmp_path / "scan.npz", counts)
    folder = shutil.copytree(repository, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refuses(f"The model {folder}", folder, source, "--output", tmp_path / "out.csv")
    (folder / "preprocessor_config.json").unlink()
    shutil.copy(repository / "model.safetensors", weights)
    refuses("preprocessor_config.json", folder, source, "--output", tmp_path / "out.csv")
    refuses("nodevice", repository, source, "--output", tmp_path / "out.csv", "--device", "nodevice")


@one_head
def test_adapter_whose_base_is_missing(refuses, pretrained, repository, counts, tmp_path):
    base = XRFForRegression.from_pretrained(pretrained, **TARGETS)
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], modules_to_save=["head"])
    model = get_peft_model(base, lora)
    model.peft_config["default"].base_model_name_or_path = "absent-org/absent-base"
    extractor = XRFFeatureExtractor.from_pretrained(pretrained)
    adapter = save_adapter_repository(tmp_path / "adapter", model, extractor, "# An adapter\n")
    source = save_npz(tmp_path / "scan.npz", counts)
    refuses("absent-org/absent-base", adapter, source, "--output", tmp_path / "out.csv")


@one_head
def test_output_names(refuses, predict, repository, counts, tmp_path):
    source = save_npz(tmp_path / "scan.npz", counts)
    refuses("must be named .csv or .parquet", repository, source, "--output", tmp_path / "out.xlsx")
    refuses("batch_size must be at least 1", repository, source, "--output", tmp_path / "out.csv", "--batch_size", 0)
    output = tmp_path / "out.csv"
    output.write_text("earlier work")
    (tmp_path / "out.rejected.csv").write_text("file,index,reason\n")
    refuses(f"The output {output} exists", repository, source, "--output", output)
    assert output.read_text() == "earlier work"
    assert predict(repository, source, "--output", output, "--overwrite")[0] == 0
    check_values(read(output), repository, counts)
    assert not (tmp_path / "out.rejected.csv").exists()  # it would speak of the earlier run
    wide = save_wide_csv(tmp_path / "wide.csv", counts)  # a table of spectra, unlike the predictions beside it
    refuses("lies among the inputs", repository, tmp_path, "--output", wide, "--overwrite")


@one_head
def test_a_failed_overwrite_keeps_the_earlier_output(refuses, repository, counts, tmp_path):
    output = tmp_path / "out.csv"
    output.write_text("earlier work")
    inputs, _ = damaged_inputs(tmp_path, counts)
    refuses("row 1", repository, *inputs, "--output", output, "--overwrite")
    assert output.read_text() == "earlier work"


@one_head
def test_target_that_takes_the_name_of_a_column(refuses, repository, counts, tmp_path):
    folder = shutil.copytree(repository, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["target_names"] = ["sample", "TOC"]
    (folder / "config.json").write_text(json.dumps(config))
    source = save_npz(tmp_path / "scan.npz", counts)
    refuses("two columns sample", folder, source, "--output", tmp_path / "out.csv")


@one_head
def test_spectra_are_read_as_they_are_needed(predict, repository, counts, tmp_path, monkeypatch):
    """What is held does not grow: when the model sees batch n, no more than n + 2 have been read."""
    import dataset_builder.readers as readers

    monkeypatch.setattr(inference_xrf, "READ_TOGETHER", 8)
    events = []
    read_source = readers.read_source
    monkeypatch.setattr(
        readers, "read_source", lambda *a: (events.append("read") or spectrum for spectrum in read_source(*a))
    )
    model_call = inference_xrf.predict
    monkeypatch.setattr(inference_xrf, "predict", lambda *a: events.append("predict") or model_call(*a))
    source = save_npz(tmp_path / "scan.npz", make_counts(60))
    assert predict(repository, source, "--output", tmp_path / "out.csv", "--batch_size", 8)[0] == 0
    calls = [place for place, event in enumerate(events) if event == "predict"]
    assert len(calls) == 8 and len(events) == 68
    for number, place in enumerate(calls):
        assert 8 * (number + 1) - 4 <= place - number <= 8 * (number + 3)


MEASURE_PEAKS = """
import resource, runpy, sys
import inference_xrf
inference_xrf.READ_TOGETHER = 64
model, *inputs = sys.argv[1:]
for source in inputs:
    sys.argv = ["predict.py", model, source, "--output", source + ".csv"]
    runpy.run_path("scripts/predict.py", run_name="__main__")
    print("PEAK_KIB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@one_head
def test_memory_does_not_grow_with_the_input(repository, tmp_path):
    """3,000 spectra of 2,000 channels (46 MiB as the reader holds them) need no more than 300."""
    table = corpus_table(np.tile(make_counts(100), (3, 4)))
    for copies in (1, 10):
        with pq.ParquetWriter(tmp_path / f"{copies}.parquet", table.schema) as writer:
            for _ in range(copies):
                writer.write_table(table, row_group_size=100)
    command = [sys.executable, "-c", MEASURE_PEAKS, repository, tmp_path / "1.parquet", tmp_path / "10.parquet"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(read(tmp_path / "10.parquet.csv")) == 3000
    small, large = [int(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("PEAK_KIB")]
    assert (large - small) / 1024 < 20, f"{small / 1024:.0f} MiB for 300 spectra, {large / 1024:.0f} MiB for 3,000"


@one_head
def test_a_full_disk_leaves_nothing(refuses, repository, counts, tmp_path, monkeypatch):
    class FullDisk(pyarrow.csv.CSVWriter):
        def write_table(self, table):
            raise OSError(errno.ENOSPC, "No space left on device", "out.csv")

    monkeypatch.setattr(pyarrow.csv, "CSVWriter", FullDisk)
    source = save_npz(tmp_path / "scan.npz", counts)
    refuses("No space left on device: out.csv", repository, source, "--output", tmp_path / "out.csv")


def test_help(run_script):
    text = run_script("predict.py", "--help").stdout
    assert "--on_error {stop,skip}" in text and "--column_mapping" in text


def test_s1pxrf_files_of_an_instrument(predict, real_data, tmp_path):
    folder = real_data / "formats" / "bruker_s1pxrf_csv"
    model = tiny_regressor()
    extractor = XRFFeatureExtractor.for_config(model.config)
    repository = save_repository(tmp_path / "model", model, extractor, "# A model\n")
    output = tmp_path / "out.csv"
    assert predict(repository, folder, "--output", output)[0] == 0
    table = read(output)
    assert sorted(table["file"]) == sorted(map(str, folder.iterdir())) and table["sample"].notna().all()
    assert np.isfinite(table["CaCO3"]).all()
