"""`scripts/run_regression.py` from end to end, in this process, on a corpus that a small model learns in seconds."""

import ast
import csv
import dataclasses
import hashlib
import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from peaks_corpus import make_spectra, write_corpus
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, Trainer

import command_line_xrf
from configuration_xrf import XRFMaskedConfig
from evaluation_xrf import RidgeBaseline, draw_labelled, regression_metrics
from feature_extraction_xrf import XRFFeatureExtractor
from hub_xrf import push_repository, save_repository
from modeling_xrf import XRFForMaskedSpectrumModeling, XRFForRegression

SCRIPT = Path(__file__).parents[1] / "scripts" / "run_regression.py"
CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: feature-extraction
tags: [xrf]
---
# A small model
"""
QUICK = ["--method", "lora", "--epochs", "1", "--patience", "0", "--trackers", "none"]


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("run_regression", SCRIPT)
    module = sys.modules["run_regression"] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small model, briefly pretrained on unlabelled spectra of the same kind."""
    torch.manual_seed(0)
    config = XRFMaskedConfig(
        spectrum_length=128,
        channel_width_kev=0.04,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )
    model, extractor = XRFForMaskedSpectrumModeling(config), XRFFeatureExtractor.for_config(config)
    inputs = extractor(make_spectra(128, 4, seed=9), return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(40):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return save_repository(tmp_path_factory.mktemp("base") / "base", model, extractor, CARD)


@pytest.fixture(scope="module")
def splits():
    """Spectra of 8, 3 and 4 cores; a third of the TOC labels for training are missing."""
    train = make_spectra(96, 8, first_core=0, seed=0)
    for row in range(0, 96, 3):
        train[row] = dataclasses.replace(train[row], targets={"CaCO3": train[row].targets["CaCO3"]})
    return {"train": train, "validation": make_spectra(30, 3, 8, seed=1), "test": make_spectra(48, 4, 11, seed=2)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, splits):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus", **splits)


@pytest.fixture
def arguments(base, corpus, tmp_path):
    """Command line of a run with both targets."""

    def build(*options, targets=("CaCO3", "TOC"), output="run"):
        fixed = ["--model_name_or_path", base, "--dataset", corpus, "--output_dir", tmp_path / output]
        return [str(part) for part in (*fixed, "--targets", *targets, *options)]

    return build


def rows_of(folder, method, split="test"):
    results = json.loads((folder / "metrics.json").read_text())["results"]
    return {row["target"]: row for row in results if (row["method"], row["split"]) == (method, split)}


def fingerprint(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def predict(model, folder, spectra):
    inputs = XRFFeatureExtractor.from_pretrained(folder)(spectra, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs)


# --- each method learns, and what is saved is what was measured ---


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "probe"],
        ["--method", "probe", "--regression_loss", "gaussian", "--pooling", "cls"],
        ["--method", "lora", "--epochs", "5", "--lora_targets", "q_proj", "v_proj", "fc1"],
        ["--method", "lora", "--epochs", "30", "--validation_split", "none"],
        ["--method", "full", "--epochs", "12", "--regression_loss", "gaussian", "--learning_rate", "3e-3"],
        ["--method", "full", "--epochs", "5", "--layer_decay", "0.7", "--mixed_precision", "bf16"],
    ],
    ids=lambda options: " ".join(options),
)
def test_every_method_beats_the_mean_and_saves_what_it_measured(script, arguments, options, base, splits, tmp_path):
    before = fingerprint(base)
    script.main(arguments(*options, "--trackers", "none"))
    run = tmp_path / "run"
    method = options[1]
    for name in ("CaCO3", "TOC"):
        assert rows_of(run, method)[name]["r2"] > 0.6 > 0.2 > rows_of(run, "mean")[name]["r2"]
    assert fingerprint(base) == before

    loaded = XRFForRegression.from_pretrained(run / "model")
    outputs = predict(loaded, run / "model", splits["test"])
    assert (outputs.standard_deviation is not None) == ("gaussian" in options)
    for column, name in enumerate(("CaCO3", "TOC")):
        measured = regression_metrics(
            outputs.predictions[:, column], [spectrum.targets[name] for spectrum in splits["test"]]
        )
        assert measured == pytest.approx(
            {key: rows_of(run, method)[name][key] for key in measured}, rel=1e-3, abs=1e-3
        )
    config = loaded.config
    assert config.target_units == ["wt%", "wt%"] and config.target_min == [0, 0] and config.target_max == [100, 100]
    assert (run / "parity_CaCO3.png").stat().st_size > 1000 and (run / "model" / "parity_TOC.png").is_file()
    assert (run / "training.png").exists() == (method != "probe")
    assert not (run / "checkpoints").exists()


def test_an_adapter_holds_its_updates_and_head_only_and_loads_through_the_auto_class(
    script, arguments, tmp_path, splits
):
    script.main(arguments(*QUICK, "--lora_rank", "2", "--lora_alpha", "6", "--lora_dropout", "0.1"))
    adapter = tmp_path / "run" / "model"
    names = set(load_file(adapter / "adapter_model.safetensors"))
    assert names and all("lora_" in name or name.endswith(("head.weight", "head.bias")) for name in names)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 6, 0.1)
    ours = predict(XRFForRegression.from_pretrained(adapter), adapter, splits["test"])
    auto = predict(AutoModelForSequenceClassification.from_pretrained(adapter), adapter, splits["test"])
    torch.testing.assert_close(auto.predictions, ours.predictions)


# --- what training may see ---


@pytest.mark.parametrize("method", ["probe", "lora"])
def test_labels_of_the_test_split_change_nothing_but_the_metrics(script, arguments, splits, tmp_path, method):
    options = ["--method", method, "--epochs", "3", "--trackers", "none", "--num_labels", "40"]
    script.main(arguments(*options))
    rng = np.random.default_rng(5)
    labels = [splits["test"][row].targets for row in rng.permutation(48)]
    permuted = [dataclasses.replace(spectrum, targets=new) for spectrum, new in zip(splits["test"], labels)]
    other = write_corpus(tmp_path / "other", **{**splits, "test": permuted})
    script.main([*arguments(*options, output="run_2"), "--dataset", str(other)])
    weights = "model.safetensors" if method == "probe" else "adapter_model.safetensors"
    first, second = (load_file(tmp_path / name / "model" / weights) for name in ("run", "run_2"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert rows_of(tmp_path / "run", method, "validation") == rows_of(tmp_path / "run_2", method, "validation")
    assert rows_of(tmp_path / "run", method)["CaCO3"]["r2"] > 0.5 > rows_of(tmp_path / "run_2", method)["CaCO3"]["r2"]


def load(script, corpus, base, early_stopping=True, **options):
    data = script.DataArguments(dataset=str(corpus), targets=["CaCO3", "TOC"], **options)
    return script.load_spectra(data, early_stopping, XRFFeatureExtractor.from_pretrained(base))[0]


def test_few_labels_are_part_of_more_labels_of_the_same_seed(script, corpus, base):
    small, large = (load(script, corpus, base, num_labels=number).drawn for number in (12, 40))
    assert (len(small), len(large)) == (12, 40)
    assert torch.equal(large.input_values[:12], small.input_values)
    other = load(script, corpus, base, num_labels=12, seed=1).drawn
    assert not torch.equal(other.input_values, small.input_values)


def test_the_validation_split_stops_training_where_there_is_one(script, corpus, base, splits):
    spectra = load(script, corpus, base, num_labels=40)
    assert spectra.fitted is spectra.drawn and len(spectra.stopping) == 30
    assert list(spectra.measured) == ["validation", "test"]
    assert set(spectra.stopping.groups) == {spectrum.core for spectrum in splits["validation"]}


@pytest.mark.parametrize("present", [True, False])
def test_without_a_validation_split_whole_cores_of_the_draw_are_set_aside(
    script, corpus, base, splits, tmp_path, present
):
    options = {"validation_split": "none"} if present else {}
    if not present:
        corpus = write_corpus(tmp_path / "two_splits", train=splits["train"], test=splits["test"])
    spectra = load(script, corpus, base, num_labels=40, validation_fraction=0.25, **options)
    fitted, stopping = set(spectra.fitted.groups), set(spectra.stopping.groups)
    assert (len(spectra.drawn), len(spectra.stopping), len(spectra.fitted)) == (40, 10, 30)
    assert not fitted & stopping and fitted | stopping == set(spectra.drawn.groups)
    assert list(spectra.measured) == ["test"]
    assert load(script, corpus, base, early_stopping=False, num_labels=40, **options).stopping is None


def test_a_run_without_a_validation_split_says_where_its_stopping_labels_came_from(script, arguments, tmp_path):
    options = ["--method", "lora", "--epochs", "2", "--trackers", "none"]
    script.main(arguments("--validation_split", "none", "--num_labels", "40", *options))
    summary = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert summary["stopping_labels"] == {"number": 10, "set_aside": True} and summary["num_labels"] == 40
    assert {row["split"] for row in summary["results"]} == {"test"}
    config = json.loads((tmp_path / "run" / "model" / "task" / "config.json").read_text())
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "set aside from these" in card and "wt%" in config["target_units"]


@pytest.mark.parametrize("learning_rate, patience", [(1e-3, 30), (0.3, 3)])
def test_the_weights_of_the_lowest_validation_loss_are_kept(script, corpus, base, tmp_path, learning_rate, patience):
    import finetuning_xrf

    spectra = load(script, corpus, base)
    options = script.MethodArguments(method="lora", learning_rate=learning_rate, epochs=30, patience=patience)
    names = ["CaCO3", "TOC"]
    encoder, settings = finetuning_xrf.load_encoder(str(base)), script.ModelArguments(str(base))
    model = script.start_model(encoder, spectra, ["wt%", "wt%"], settings, names, options)
    history, step = script.fine_tune(model, spectra, options, 0, tmp_path / "checkpoints", None)
    validation = {record["step"]: record["eval_loss"] for record in history if "eval_loss" in record}
    assert step == min(validation, key=validation.get)
    best_trained = min(list(validation)[1:], key=validation.get)
    if patience == 30:
        assert step > 0 and len(validation) == 31
    else:  # the rate is so high that the start is best; training ends when patience runs out
        assert step == 0 and len([later for later in validation if later > best_trained]) == patience
    with torch.no_grad():
        loss = model.eval()(**spectra.stopping[slice(None)]).loss.item()
    assert loss == pytest.approx(validation[step], rel=1e-3)


# --- a table of one's own ---


def write_table(path, spectra, labels=None, **columns):
    """A wide table of spectra with their places, CaCO3 and more columns."""
    labels = [spectrum.targets["CaCO3"] for spectrum in spectra] if labels is None else labels
    header = ["core", "depth_mm", "gain_kev", "offset_kev", "CaCO3 (wt%)", *columns, *range(len(spectra[0].counts))]
    lines = [",".join(map(str, header))]
    for row, (spectrum, label) in enumerate(zip(spectra, labels)):
        entries = [spectrum.core, spectrum.depth_mm, spectrum.gain_kev, 0, "" if label is None else f"{label:.4f}"]
        entries += [column[row] for column in columns.values()]
        lines.append(",".join(map(str, [*entries, *spectrum.counts])))
    path.write_text("\n".join(lines))
    return path


def predictions_of(folder):
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_becomes_a_model_with_honest_numbers_and_a_report(script, base, splits, tmp_path, monkeypatch, capsys):
    spectra = splits["train"][:48]
    labels = [None if row % 6 == 5 else spectrum.targets["CaCO3"] for row, spectrum in enumerate(spectra)]
    table = write_table(tmp_path / "my cores.csv", spectra, labels)
    monkeypatch.chdir(tmp_path)
    script.main([str(table), "--target", "CaCO3", "--model_name_or_path", str(base)])
    run = tmp_path / "runs" / "my-cores-CaCO3"
    rows = predictions_of(run)
    assert [row["core"] for row in rows] == [spectrum.core for spectrum in spectra]
    tested = [row for row in rows if row["out_of_group"] == "True"]
    assert len(rows) == 48 and len(tested) == 40
    # the numbers are those of the table of predictions
    metrics = regression_metrics(
        [float(row["CaCO3"]) for row in tested], [float(row["CaCO3_laboratory"]) for row in tested]
    )
    measured = rows_of(run, "auto", "out of group")["CaCO3"]
    assert {key: measured[key] for key in metrics} == pytest.approx(metrics, rel=1e-3, abs=1e-3)
    assert measured["r2"] > 0.6 and measured["unit"] == "wt%"
    inside = [
        float(row["CaCO3_lower_90"]) <= float(row["CaCO3_laboratory"]) <= float(row["CaCO3_upper_90"])
        for row in tested
    ]
    assert measured["coverage_90"] == pytest.approx(np.mean(inside), abs=0.03) and np.mean(inside) > 0.6
    # spectra without a value are predicted by the model that was saved
    others = [row for row, label in enumerate(labels) if label is None]
    outputs = predict(
        XRFForRegression.from_pretrained(run / "model"),
        run / "model",
        [dataclasses.replace(spectra[row], tube_kv=None) for row in others],  # the table does not tell the voltage
    )
    np.testing.assert_allclose([float(rows[row]["CaCO3"]) for row in others], outputs.predictions[:, 0], rtol=1e-3)
    report = (run / "report.html").read_text()
    for text in (
        "each core predicted from the others",
        f"{measured['r2']:.3f}",
        "partial least squares",
        "predict.py",
    ):
        assert text.casefold() in report.casefold()
    assert report.count("data:image/png;base64,") == 3
    assert "Validation: each core predicted from the others" in capsys.readouterr().out
    names = {row["method"] for row in json.loads((run / "metrics.json").read_text())["results"]}
    assert names == {"auto", "ridge", "partial least squares", "mean"}


@pytest.mark.parametrize("method", ["auto", "full"])
def test_labels_that_are_held_out_change_no_prediction(script, base, splits, tmp_path, method):
    spectra = splits["train"][:32]
    labels = [spectrum.targets["CaCO3"] for spectrum in spectra]
    sides = ["train"] * 20 + ["test"] * 12
    permuted = labels[:20] + [labels[row] for row in np.random.default_rng(3).permutation(np.arange(20, 32))]
    options = ["--model_name_or_path", str(base), "--method", method, "--epochs", "2"]
    answers = []
    for name, values in (("one", labels), ("two", permuted)):
        table = write_table(tmp_path / f"{name}.csv", spectra, values, split=sides)
        script.main([str(table), "--target", "CaCO3", "--output_dir", str(tmp_path / name), *options])
        answers.append([row["CaCO3"] for row in predictions_of(tmp_path / name)])
    assert answers[0] == answers[1]
    first, second = (rows_of(tmp_path / name, method, "out of group")["CaCO3"]["rmse"] for name in ("one", "two"))
    assert first != second


def test_labels_of_a_core_change_no_prediction_of_that_core(splits, base):
    import finetuning_xrf
    from adaptation_xrf import adapt
    from evaluation_xrf import MeanBaseline
    from peers_xrf import ChannelPeer, OnChannels
    from protocols_xrf import CalibrationSet, leave_one_group_out, run_protocol

    spectra = splits["train"][:24]
    labels = np.array([[spectrum.targets["CaCO3"]] for spectrum in spectra])
    cores = np.array([spectrum.core for spectrum in spectra])
    encoder, extractor = finetuning_xrf.load_encoder(str(base)), XRFFeatureExtractor.from_pretrained(base)
    methods = [
        finetuning_xrf.AdaptedModel(lambda drawn: adapt(encoder, drawn, ["x"], ["wt%"]), extractor),
        finetuning_xrf.LnWherePositive(lambda names, log: OnChannels(RidgeBaseline(names, log)), ["x"]),
        finetuning_xrf.LnWherePositive(lambda names, log: OnChannels(ChannelPeer("pls", names, log)), ["x"]),
        MeanBaseline(["x"]),
    ]
    held_out = cores == cores[0]
    changed = labels.copy()
    changed[held_out] = np.random.default_rng(0).uniform(5, 95, (held_out.sum(), 1))
    for method in methods:
        before, after = (
            run_protocol(method, leave_one_group_out(cores)[:1], CalibrationSet(spectra, values, ["x"], cores, cores))
            for values in (labels, changed)
        )
        np.testing.assert_array_equal(before.values, after.values)


def test_a_table_of_numbers_needs_no_model(script, tmp_path):
    rng = np.random.default_rng(0)
    inputs = rng.uniform(0.1, 1, (14, 3))
    lines = ["site,a,b,c,Ti (wt%)", *(f"s{i},{x},{y},{z},{x * y + 1:.4f}" for i, (x, y, z) in enumerate(inputs))]
    lines.append("new,0.5,0.5,0.5,")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    script.main(["--dataset", str(tmp_path / "t.csv"), "--target", "Ti", "--output_dir", str(tmp_path / "run")])
    ours, ridge = (rows_of(tmp_path / "run", name, "out of group")["Ti"] for name in ("gaussian process", "ridge"))
    assert ours["r2"] > 0.9 and ours["rmse"] < ridge["rmse"] and ours["n"] == 14
    new = predictions_of(tmp_path / "run")[-1]
    assert float(new["Ti"]) == pytest.approx(1.25, abs=0.1) and new["out_of_group"] == "False"
    assert not (tmp_path / "run" / "model").exists() and (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["nowhere.csv"], "no table nowhere.csv"),
        (["t.csv", "--target", "Ti"], "no column 'Ti'; its columns are core, depth_mm"),
        (["t.csv", "--num_labels", "3"], "num_labels draws from a corpus"),
        (["t.csv", "--validation", "leave_group_out", "--group_column", "gain_kev"], "names 1"),
        (["t.csv", "--features", "depth_mm", "offset_kev", "gain_kev", "--method", "lora"], "needs spectra"),
        (["--method", "lora"], "Name a table"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_tables(script, base, splits, capsys, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "t.csv", splits["train"][:8])
    target = [] if "--target" in options else ["--target", "CaCO3"]
    assert message in fail(script, capsys, [*options, *target, "--model_name_or_path", str(base)])
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_without_a_pretrained_model_one_must_be_named(script, splits, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "DEFAULT_MODEL", tmp_path / "none")
    write_table(tmp_path / "t.csv", splits["train"][:8])
    assert "--model_name_or_path" in fail(script, capsys, ["t.csv", "--target", "CaCO3"])


# --- the baselines ---


def test_baselines_are_fitted_to_the_same_draw(script, arguments, splits, tmp_path):
    script.main(arguments("--method", "probe", "--num_labels", "20", "--seed", "3"))
    labels = np.array(
        [[spectrum.targets.get(name, np.nan) for name in ("CaCO3", "TOC")] for spectrum in splits["train"]]
    )
    cores = np.array([spectrum.core for spectrum in splits["train"]])
    drawn = draw_labelled(labels, 20, 3, cores)
    references = np.array([[s.targets["CaCO3"], s.targets["TOC"]] for s in splits["test"]])
    for column, name in enumerate(("CaCO3", "TOC")):
        difference = np.nanmean(labels[drawn, column]) - references[:, column]
        assert rows_of(tmp_path / "run", "mean")[name]["rmse"] == pytest.approx(
            np.sqrt(np.mean(difference**2)), rel=1e-5
        )
    # the corpus lies on the model's grid already
    ridge = RidgeBaseline().fit(
        np.array([splits["train"][row].counts for row in drawn], float), labels[drawn], cores[drawn]
    )
    predictions = ridge.predict(np.array([spectrum.counts for spectrum in splits["test"]], float)).clip(0, 100)
    for column, name in enumerate(("CaCO3", "TOC")):
        expected = regression_metrics(predictions[:, column], references[:, column])
        measured = rows_of(tmp_path / "run", "ridge")[name]
        assert {key: measured[key] for key in expected} == pytest.approx(expected, rel=1e-3, abs=1e-3)


# --- options ---


def test_every_argument_is_used(script):
    declared = [
        field.name
        for part in (
            script.ModelArguments,
            script.DataArguments,
            script.TableArguments,
            script.MethodArguments,
            script.OutputArguments,
        )
        for field in dataclasses.fields(part)
    ]
    read = {node.attr for node in ast.walk(ast.parse(SCRIPT.read_text())) if isinstance(node, ast.Attribute)}
    assert len(declared) == len(set(declared)) and set(declared) <= read


def test_training_options_reach_the_trainer(script, arguments, tmp_path, monkeypatch):
    trainers, train = [], Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self: trainers.append(self) or train(self))
    options = "--learning_rate 2e-4 --weight_decay 0.2 --layer_decay 0.5 --warmup_ratio 0.25 --gradient_clip 0.3"
    more = f"--batch_size 7 --max_steps 4 --patience 0 --seed 5 --method full --logging_dir {tmp_path}/tensorboard"
    script.main(arguments(*options.split(), *more.split(), targets=["CaCO3"]))
    (trainer,) = trainers
    assert trainer.state.global_step == 4
    assert (trainer.args.per_device_train_batch_size, trainer.args.max_grad_norm) == (7, 0.3)
    assert (trainer.args.warmup_steps, trainer.args.seed) == (0.25, 5)
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {2e-4, 1e-4, 5e-5, 2.5e-5}
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.2, 0.0}
    assert any(path.name.startswith("events.out") for path in (tmp_path / "tensorboard").iterdir())
    assert not (tmp_path / "run" / "logs").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["arguments"]["seed"] == 5


def test_units_and_limits_can_be_given(script, arguments, tmp_path):
    options = [
        "--method",
        "probe",
        "--target_units",
        "ppm",
        "--train_split",
        "validation",
        "--validation_split",
        "none",
    ]
    script.main(arguments(*options, targets=["CaCO3"]))
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert (config["target_units"], config["target_max"]) == (["ppm"], [1e6])
    assert (tmp_path / "run" / "parity.png").is_file()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["num_labels"] == 30


def test_the_same_seed_gives_the_same_adapter(script, arguments, tmp_path):
    for name in ("run", "again"):
        script.main(arguments(*QUICK, "--num_labels", "20", output=name))
    first, second = (load_file(tmp_path / name / "model" / "adapter_model.safetensors") for name in ("run", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- the card and the Hub ---


def test_the_card_tells_the_measured_results(script, arguments, tmp_path):
    script.main(arguments(*QUICK, "--base_model_id", "org/xrf-small", "--license", "mit", "--num_labels", "30"))
    run = tmp_path / "run"
    adapter_config = json.loads((run / "model" / "adapter_config.json").read_text())
    assert adapter_config["base_model_name_or_path"] == "org/xrf-small"
    card = ModelCard.load(run / "model" / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "peft" and data["pipeline_tag"] == "tabular-regression" and data["license"] == "mit"
    assert data["base_model"] == "org/xrf-small" and data["base_model_relation"] == "adapter"
    assert {"xrf", "lora"} <= set(data["tags"])
    assert "datasets" not in data  # a local folder is no dataset of the Hub
    assert (run / "results.md").read_text().strip() in card.text
    measured = {(result.dataset_split, result.metric_name): result.metric_value for result in card.data.eval_results}
    for split in ("validation", "test"):
        for target, row in rows_of(run, "lora", split).items():
            for metric, name in (("r2", "R2"), ("rmse", "RMSE (wt%)"), ("mae", "MAE (wt%)")):
                assert measured[split, f"{target} {name}"] == row[metric]
    for row in (*rows_of(run, "lora").values(), *rows_of(run, "mean").values(), *rows_of(run, "ridge").values()):
        assert f"{row['rmse']:.3f}" in card.text
    assert "## Beware" in card.text and "30 spectra" in card.text and str(tmp_path) not in card.content
    assert "{{" not in card.content and "None" not in card.content and "\n\n\n" not in card.text


def test_from_the_hub_to_the_hub_by_name_alone(script, base, corpus, splits, hub_org, tmp_path):
    push_repository(base, f"{hub_org}/small")
    script.main(
        [
            *("--model_name_or_path", f"{hub_org}/small", "--model_revision", "main", "--dataset", str(corpus)),
            *("--targets", "CaCO3", "--output_dir", str(tmp_path / "run"), *QUICK),
            *("--push_to_hub", "--hub_private", "--hub_model_id", f"{hub_org}/small-caco3"),
        ]
    )
    loaded = XRFForRegression.from_pretrained(f"{hub_org}/small-caco3")
    outputs = predict(loaded, tmp_path / "run" / "model", splits["test"])
    measured = regression_metrics(
        outputs.predictions[:, 0], [spectrum.targets["CaCO3"] for spectrum in splits["test"]]
    )
    assert measured["rmse"] == pytest.approx(rows_of(tmp_path / "run", "lora")["CaCO3"]["rmse"], rel=1e-3)
    card = ModelCard.load(f"{hub_org}/small-caco3")
    assert card.data.base_model == f"{hub_org}/small"


# --- bad input: one sentence, exit code 2, nothing half-written ---


def fail(script, capsys, argv):
    with pytest.raises(SystemExit) as stopped:
        command_line_xrf.run(lambda: script.main(argv))
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2 and message.startswith("error: ")
    return message


@pytest.mark.parametrize(
    "options, message",
    [
        (["--targets", "Fe2O3"], "no target 'Fe2O3'; it has CaCO3, TOC."),
        (["--test_split", "holdout"], "holdout"),
        (["--validation_split", "dev"], "dev"),
        (["--num_labels", "97"], "97 were asked for and there are 96"),
        (["--num_labels", "2", "--patience", "0"], "Training needs at least 3 labels"),
        (["--num_labels", "0"], "num_labels must be between 1"),
        (["--target_units", "wt%"], "one unit per target (2)"),
        (["--test_split", "train"], "must differ"),
        (["--method", "lora", "--lora_targets", "query"], "no linear layer 'query'"),
        (["--lora_rank", "0"], "lora_rank must be at least 1"),
        (["--layer_decay", "0"], "layer_decay must lie in (0, 1]"),
        (["--warmup_ratio", "1"], "warmup_ratio must lie in [0, 1)"),
        (["--learning_rate", "-1"], "learning_rate must be positive"),
        (["--patience", "-1"], "patience must not be negative"),
        (["--validation_fraction", "1"], "validation_fraction must lie between 0 and 1"),
        (["--push_to_hub"], "needs --hub_model_id"),
        (["--push_to_hub", "--hub_model_id", "not a name"], "not a name"),
        (["--method", "lora", "--push_to_hub", "--hub_model_id", "org/x"], "--base_model_id org/name"),
        (["--model_name_or_path", "org/nowhere"], "org/nowhere"),
        (["--dataset", "org/nowhere"], "org/nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options(script, arguments, capsys, tmp_path, options, message):
    assert message in fail(script, capsys, [*arguments(), *options])
    assert list(tmp_path.iterdir()) == []


def test_bad_corpora(script, arguments, splits, capsys, tmp_path):
    constant = [dataclasses.replace(s, targets={"CaCO3": 5.0, "TOC": i}) for i, s in enumerate(splits["train"])]
    unlabelled = [dataclasses.replace(spectrum, targets={"CaCO3": 5.0}) for spectrum in splits["test"]]
    elsewhere = [dataclasses.replace(spectrum, offset_kev=50.0) for spectrum in splits["test"]]
    one_core = [dataclasses.replace(spectrum, core="core-0") for spectrum in splits["train"]]
    truncated = write_corpus(tmp_path / "truncated", **splits)
    file = next(truncated.rglob("train*.parquet"))
    file.write_bytes(file.read_bytes()[:-100])
    (tmp_path / "empty").mkdir()
    cases = {
        write_corpus(tmp_path / "constant", **{**splits, "train": constant}): "CaCO3 is constant (5) in the 96 labels",
        write_corpus(
            tmp_path / "no_toc", **{**splits, "test": unlabelled}
        ): "Split 'test' needs at least 1 label of TOC",
        write_corpus(tmp_path / "grid", **{**splits, "test": elsewhere}): "pectrum 0 of split 'test' covers 49.98",
        write_corpus(tmp_path / "one", train=one_core, test=splits["test"]): "two cores or samples, but there is 1",
        write_corpus(tmp_path / "no_rows", **{**splits, "test": []}): "",
        truncated: str(file),
        tmp_path / "empty": str(tmp_path / "empty"),
    }
    for folder, message in cases.items():
        assert message in fail(script, capsys, [*arguments("--method", "lora"), "--dataset", str(folder)])
    assert not (tmp_path / "run").exists()


def test_another_architecture_and_a_folder_that_is_taken(script, arguments, capsys, tmp_path):
    transformers.ViTConfig().save_pretrained(tmp_path / "vit")
    assert "model of type 'vit'" in fail(script, capsys, [*arguments(), "--model_name_or_path", str(tmp_path / "vit")])
    assert not (tmp_path / "run").exists()
    script.main(arguments("--method", "probe"))
    before = fingerprint(tmp_path / "run")
    assert "holds another run of run_regression.py" in fail(script, capsys, arguments("--method", "probe"))
    assert fingerprint(tmp_path / "run") == before


def test_a_diverging_run_is_reported(script, arguments, capsys):
    options = ["--learning_rate", "1e30", "--gradient_clip", "0", "--epochs", "3", "--method", "full"]
    assert "lower the learning rate" in fail(script, capsys, arguments(*options, "--trackers", "none"))


def test_several_processes_are_refused(script, arguments, capsys, monkeypatch):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    assert "trains in one process" in fail(script, capsys, arguments())
