"""`scripts/run_msm.py` as a user runs it, on corpora and models small enough for seconds.

Most runs call the script's `main` in this process; those that need a launcher or an exit code start one.
"""

import dataclasses
import fcntl
import json
import os
import pty
import re
import resource
import shutil
import struct
import sys
import termios
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import load_script
from datasets.config import HF_DATASETS_CACHE
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
)

from configuration_xrf import XRFMaskedConfig
from dataset_builder import Recipe, Spectrum, spectra_to_table
from dataset_builder.simulation import TARGET_NAMES
from modeling_xrf import XRFForRegression
from streaming_xrf import held_out_rows, recipe_mixture
from training_xrf import mask_noise

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "spectrum_length": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 64,
}  # fmt: skip
STEPS = 6
LOG_LINE = re.compile(
    r"step +\d+/\d+  loss +[\d.]+  rate [\d.e+-]+  gradient norm +[\d.]+ +[\d.]+ spectra/s +[\d.]+ % of peak"
    r" +\d+:\d\d:\d\d left"
)


run_msm = load_script("run_msm.py")


def spectra(number, seed, tube_kv=10.0):
    """Two peaks of varying height on a flat background, 128 channels of 20 eV."""
    generator = np.random.default_rng(seed)
    channels = np.arange(128)
    peaks = np.stack([np.exp(-0.5 * ((channels - centre) / 4) ** 2) for centre in (40, 90)])
    heights = generator.gamma(2.0, 200.0, (number, 2))
    counts = generator.poisson(20 + heights @ peaks)
    return [
        Spectrum(row, gain_kev=0.02, offset_kev=0.0, tube_kv=tube_kv, core=f"C-{index % 5}", depth_mm=10.0 * index)
        for index, row in enumerate(counts)
    ]


def write_corpus(folder, **splits):
    (folder / "data").mkdir(parents=True)
    for name, rows in splits.items():
        pq.write_table(spectra_to_table(rows), folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora") / "peaks"
    return write_corpus(folder, train=spectra(48, 0), validation=spectra(17, 1), other=spectra(20, 2))


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("configuration") / "small.json"
    path.write_text(json.dumps(SMALL))
    return path


@pytest.fixture(scope="module")
def pretrain(corpus, config_file, tmp_path_factory):
    """`pretrain(seed=1, resume=True, ...)` runs the script and returns its folder; `None` leaves a default out."""

    def run(**options):
        options = {
            "dataset": corpus, "config_file": config_file, "batch_size": 8, "max_steps": STEPS, "learning_rate": 1e-2,
            "log_every": 1, "validate_every": 0, "trackers": "none", "mixed_precision": "no", "optimizer": "adamw",
            **options,
        }  # fmt: skip
        options.setdefault("output_dir", tmp_path_factory.mktemp("runs") / "run")
        argv = []
        for name, value in options.items():
            if value is not None:
                values = value if isinstance(value, (list, tuple)) else [value]
                argv += [f"--{name}", *map(str, values)]
        try:
            run_msm.main(argv)
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        return Path(options["output_dir"])

    return run


def records(folder, name="loss"):
    """Values of one quantity over the steps."""
    lines = (folder / "history.jsonl").read_text().splitlines()
    return [record[name] for record in map(json.loads, lines) if name in record]


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def saved_config(folder):
    return json.loads((folder / "model" / "config.json").read_text())


@pytest.fixture(scope="module")
def baseline(pretrain):
    """The run that all others differ from by one option."""
    return pretrain(validate_every=4)


# --- what a run leaves ---


def test_run_leaves_a_repository_a_history_and_figures(baseline):
    assert sorted(path.name for path in baseline.iterdir()) == [
        "checkpoints", "figures", "history.jsonl", "model", "run.json"
    ]  # fmt: skip
    losses = records(baseline)
    assert len(losses) == STEPS and losses[-1] < losses[0]
    assert records(baseline, "epoch") == [0] * 6
    model = AutoModelForPreTraining.from_pretrained(baseline / "model")
    assert model.config.spectrum_length == 128 and model.config.mask_ratio == 0.5
    assert AutoFeatureExtractor.from_pretrained(baseline / "model").scaling == "sqrt"
    for figure in ("training.png", "validation.png"):
        assert (baseline / "figures" / figure).read_bytes().startswith(b"\x89PNG")
    run = json.loads((baseline / "run.json").read_text())
    assert run["script"] == "run_msm.py" and run["arguments"]["learning_rate"] == 1e-2


def test_card_names_data_command_numbers_and_limits(baseline):
    card = ModelCard.load(baseline / "model" / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "feature-extraction"
    assert card.data.license == "apache-2.0" and "xrf" in card.data.tags and card.data.datasets is None
    validation = [records(baseline, name)[-1] for name in ("validation_loss", "validation_r2")]
    for text in (
        "48 spectra", "6 of 8 spectra", "scripts/run_msm.py", "--learning_rate 0.01", f"| {validation[0]:.5f} |",
        f"| {validation[1]:.4f} |", "## Beware", f"{records(baseline)[-1]:.5f}", "CPU cores",
    ):  # fmt: skip
        assert text in card.text, text
    assert "{{" not in card.text and "None" not in card.text


def test_card_names_a_dataset_of_the_hub(baseline):
    model = AutoModelForPreTraining.from_pretrained(baseline / "model")
    extractor = AutoFeatureExtractor.from_pretrained(baseline / "model")
    options = {**json.loads((baseline / "run.json").read_text())["arguments"], "dataset": "org/cores"}
    summary = {
        **dict.fromkeys(("num_spectra", "validation", "commit")),
        **dict.fromkeys(("command", "precision", "hardware", "date"), "text"),
        **dict.fromkeys(("processes", "steps", "global_batch_size", "warmup_steps"), 8),
        "training": {"loss": 0.5},
    }
    card = ModelCard(run_msm.render_card(model, extractor, options, None, summary))
    assert card.data.datasets == ["org/cores"]
    assert "`org/cores`, split `train`, streamed" in card.text and "No validation was made" in card.text


def test_validation_numbers_by_hand(baseline, corpus):
    model = AutoModelForPreTraining.from_pretrained(baseline / "model").eval()
    extractor = AutoFeatureExtractor.from_pretrained(baseline / "model")
    training = extractor(spectra(48, 0))["input_values"].astype(np.float64)
    inputs = extractor(spectra(17, 1), return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs, noise=mask_noise(torch.arange(17), 8, seed=0, epoch=-1))
    masked = np.repeat(outputs.mask.numpy().astype(bool), 16, axis=1)
    values = inputs["input_values"].double().numpy()
    error = np.square(outputs.reconstruction.numpy() - values)[masked]
    mean_error = np.square(training.mean(axis=0) - values)[masked]
    assert masked.sum() == 17 * 4 * 16
    assert records(baseline, "validation_loss")[-1] == pytest.approx(error.mean(), rel=1e-5)
    assert records(baseline, "validation_r2")[-1] == pytest.approx(1 - error.sum() / mean_error.sum(), rel=1e-5)


def test_log_has_one_aligned_line_every_n_steps(pretrain, capfd):
    pretrain(max_steps=10, log_every=4, validate_every=5)
    output = capfd.readouterr().out
    lines = [line for line in output.splitlines() if LOG_LINE.fullmatch(line)]
    assert [int(re.search(r"\d+", line)[0]) for line in lines] == [4, 8, 10]
    assert len(set(map(len, lines))) == 1
    assert output.count("against the corpus mean") == 2
    assert "10 steps of 8 spectra from step 0, 1 process(es) on cpu" in output
    assert f"on cpu with {torch.get_num_threads()} thread(s) each; 100 % of peak is" in output


def test_terminal_gets_a_progress_bar_in_place_of_lines(pretrain, capfd, monkeypatch):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))  # lines and columns
    shown = []

    def read():
        try:
            while chunk := os.read(master, 4096):
                shown.append(chunk)
        except OSError:  # the other end was closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        pretrain(max_steps=4, validate_every=4)
        monkeypatch.undo()
    reader.join(timeout=10)
    os.close(master)
    bar = b"".join(shown).decode()
    output = capfd.readouterr().out
    assert "pretraining" in bar and "4/4" in bar and "spectra/s" in bar
    assert not any(LOG_LINE.fullmatch(line) for line in output.splitlines())
    assert "against the corpus mean" in output


# --- every option does what it says ---


def test_every_option_is_used_in_a_test():
    source = Path(__file__).read_text()
    classes = (run_msm.DataArguments, run_msm.ModelArguments, run_msm.TrainingArguments, run_msm.OutputArguments)
    for option in (field.name for group in classes for field in dataclasses.fields(group)):
        assert re.search(rf"\b{option}=", source) or f'"{option}":' in source, option


@pytest.mark.parametrize(
    "options",
    [{"seed": 1}, {"batch_size": 4}, {"mask_ratio": 0.25}, {"masked_loss_only": False}, {"scaling": "log"}],
    ids=str,
)
def test_options_that_change_the_task_change_the_first_loss(pretrain, baseline, options):
    assert records(pretrain(**options))[0] != pytest.approx(records(baseline)[0], rel=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"betas": (0.5, 0.5)},
        {"weight_decay": 5.0},
        {"gradient_clip": 1e-6},
        {"learning_rate": 1e-3},
        {"optimizer": "muon"},
    ],
    ids=str,
)
def test_options_of_the_optimiser_leave_the_first_loss_and_change_the_last(pretrain, baseline, options):
    losses = records(pretrain(**options, warmup_steps=0))
    reference = records(pretrain(warmup_steps=0))
    assert losses[0] == reference[0] == records(baseline)[0]
    assert losses[-1] != pytest.approx(reference[-1], rel=1e-3)


def test_muon_is_the_default(pretrain):
    assert records(pretrain(optimizer=None)) == records(pretrain(optimizer="muon"))


def test_gradient_clip_0_is_no_clipping_and_the_norm_is_that_before_it(pretrain):
    free = pretrain(gradient_clip=0, max_steps=2, warmup_steps=0)
    loose = pretrain(gradient_clip=1e9, max_steps=2, warmup_steps=0)
    tight = pretrain(gradient_clip=1e-3, max_steps=2, warmup_steps=0)
    assert records(free) == records(loose)
    assert records(tight, "gradient_norm")[0] == records(free, "gradient_norm")[0] > 1e-3


def test_rates(pretrain):
    def rates(**options):
        return records(pretrain(max_steps=6, learning_rate=1.0e-3, **options), "learning_rate")

    assert rates(schedule="constant", warmup_steps=2) == pytest.approx([0, 5e-4, 1e-3, 1e-3, 1e-3, 1e-3])
    half = rates(schedule="linear", warmup_ratio=0.5, warmup_start_factor=0.5, min_learning_rate=1e-4)
    assert half == pytest.approx([5e-4, 2e-3 / 3, 2.5e-3 / 3, 1e-3, 5.5e-4, 1e-4])
    cosine = rates(schedule="cosine", warmup_ratio=0, min_learning_rate=2e-4)
    assert cosine == pytest.approx([2e-4 + 4e-4 * (1 + np.cos(np.pi * step / 5)) for step in range(6)])


def test_epochs_count_whole_batches_of_the_training_split(pretrain):
    folder = pretrain(epochs=1.5, max_steps=None, batch_size=20)  # 2 batches of 20 in 48 spectra
    assert records(folder, "step") == [1, 2, 3] and records(folder, "epoch") == [0, 0, 1]
    folder = pretrain(epochs=2, max_steps=None, batch_size=4, gradient_accumulation=4)
    assert records(folder, "step") == [1, 2, 3, 4, 5, 6]


def test_accumulated_gradients_are_those_of_the_larger_batch(pretrain, baseline):
    accumulated = pretrain(batch_size=4, gradient_accumulation=2)
    np.testing.assert_allclose(records(accumulated), records(baseline), rtol=1e-4)
    assert records(accumulated, "gradient_norm") == pytest.approx(records(baseline, "gradient_norm"), rel=1e-3)


def test_workers_load_the_same_data(pretrain, baseline):
    assert records(pretrain(workers=2)) == records(baseline)


class Readings(TorchDispatchMode):
    """Counts how often a number is read from a tensor, for which a GPU would have to finish all it was given."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_loop_reads_numbers_for_the_lines_of_its_log_only(pretrain, precision):
    numbers = []
    for options in ({"max_steps": 2, "log_every": 6}, {"log_every": 6}, {"log_every": 1}):
        with Readings() as readings:
            pretrain(**options, mixed_precision=precision)
        numbers.append(readings.number)
    assert numbers[0] == numbers[1] < numbers[2]  # after 2 and after 6 steps, all of one epoch


def test_precision_and_attention_are_the_machine_s_own(pretrain, monkeypatch, capfd):
    for units, precision, attention in (({"avx512_bf16": True}, "bfloat16", "eager"), ({}, "float32", "sdpa")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda units=units: units)
        pretrain(max_steps=1, mixed_precision=None)
        assert f"square {precision} matrix products; attention {attention}" in capfd.readouterr().out
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    pretrain(max_steps=1, mixed_precision=None)
    assert "square bfloat16 matrix products; attention eager" in capfd.readouterr().out


def test_bf16_is_close_to_fp32(pretrain, baseline):
    folder = pretrain(mixed_precision="bf16")
    assert records(folder) != records(baseline)
    np.testing.assert_allclose(records(folder), records(baseline), rtol=0.05)
    assert all(tensor.dtype == torch.float32 for tensor in weights(folder).values())
    assert "bfloat16, 0" in (folder / "model" / "README.md").read_text()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs a C++ compiler")
def test_compiled_model_gives_the_same_losses(pretrain, tmp_path):
    from torch._dynamo.utils import counters

    counters.clear()
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**SMALL, "num_hidden_layers": 1}))  # compiling takes most of the time
    folder = pretrain(compile=True, config_file=path, max_steps=3)
    assert counters["stats"]["unique_graphs"] >= 1 and not counters["graph_break"]
    np.testing.assert_allclose(records(folder), records(pretrain(config_file=path, max_steps=3)), rtol=1e-3)
    AutoModelForPreTraining.from_pretrained(folder / "model")


def test_splits(pretrain, baseline):
    other = pretrain(train_split="other")
    assert "20 spectra" in (other / "model" / "README.md").read_text()
    on_training = pretrain(validation_split="train", validate_every=4)
    assert records(on_training) == records(baseline)
    assert records(on_training, "validation_loss") != records(baseline, "validation_loss")


def test_limit_to_tube_kv(pretrain, tmp_path):
    corpus = write_corpus(tmp_path / "low", train=spectra(16, 0, tube_kv=1.6), validation=spectra(4, 1, tube_kv=1.6))
    limited, unlimited = pretrain(dataset=corpus), pretrain(dataset=corpus, limit_to_tube_kv=False)
    assert records(limited)[0] != pytest.approx(records(unlimited)[0], rel=1e-3)
    assert AutoFeatureExtractor.from_pretrained(limited / "model").limit_to_tube_kv
    assert not AutoFeatureExtractor.from_pretrained(unlimited / "model").limit_to_tube_kv


def test_channel_scaling_uses_the_statistics_of_the_training_split(pretrain):
    extractor = AutoFeatureExtractor.from_pretrained(pretrain(scaling="channel") / "model")
    counts = np.stack([spectrum.counts for spectrum in spectra(48, 0)])
    relative = counts / counts.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(extractor.channel_mean, relative.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(extractor.channel_std, relative.std(axis=0), rtol=1e-4)


def test_mask_ratio_and_loss_are_kept_in_the_configuration(pretrain, tmp_path):
    folder = pretrain(mask_ratio=0.25, masked_loss_only=False, max_steps=1)
    assert (saved_config(folder)["mask_ratio"], saved_config(folder)["masked_loss_only"]) == (0.25, False)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**SMALL, "mask_ratio": 0.75, "normalize_patch_targets": True}))
    folder = pretrain(config_file=path, max_steps=1, validate_every=1)
    assert (saved_config(folder)["mask_ratio"], saved_config(folder)["masked_loss_only"]) == (0.75, True)
    assert "each patch standardised" in (folder / "model" / "README.md").read_text()


def test_model_size_and_config_file(pretrain, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"spectrum_length": 64, "num_hidden_layers": 1}))
    config = saved_config(pretrain(config_file=path, model_size="tiny", max_steps=1))
    assert (config["spectrum_length"], config["num_hidden_layers"], config["hidden_size"]) == (64, 1, 192)
    path.write_text(XRFMaskedConfig(**SMALL).to_json_string(use_diff=False))  # a whole one, as repositories hold it
    config = saved_config(pretrain(config_file=path, model_size="tiny", max_steps=1))
    assert {name: config[name] for name in SMALL} == SMALL


def test_continues_from_a_checkpoint_with_its_scaling(pretrain, baseline):
    first = pretrain(scaling="standardize")
    second = pretrain(config_file=None, model_name_or_path=first / "model", mask_ratio=0.25, max_steps=1)
    assert AutoFeatureExtractor.from_pretrained(second / "model").scaling == "standardize"
    assert saved_config(second)["mask_ratio"] == 0.25 and saved_config(second)["hidden_size"] == 32
    assert records(second)[0] < records(first)[0]
    third = pretrain(config_file=None, model_name_or_path=first / "model", scaling="sqrt", max_steps=1)
    assert AutoFeatureExtractor.from_pretrained(third / "model").scaling == "sqrt"


def write_recipe(path, augmentation=None, **simulation):
    """A recipe of simulated cores in which every fourth spectrum comes from the file `measured.parquet`."""
    simulation = {"num_spectra": 60, "num_cores": 6, **simulation}
    parts = [
        {"name": "simulated", "weight": 3, "simulation": simulation},
        {"name": "measured", "weight": 1, "files": {"paths": "measured.parquet"}},
    ]
    path.write_text(json.dumps({"name": "both", "parts": parts, "augmentation": augmentation or []}))  # YAML too
    return path


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with the file that the recipes need."""
    folder = tmp_path_factory.mktemp("measured")
    pq.write_table(spectra_to_table(spectra(40, 3)), folder / "measured.parquet")
    return folder


def test_corpus_of_a_recipe_is_built_once(pretrain, measured, tmp_path):
    recipe = write_recipe(tmp_path / "both.yaml")
    options = {"dataset": recipe, "data_root": measured, "max_steps": None, "epochs": 0.5}
    first = pretrain(**options, validate_every=2)
    assert records(first, "validation_r2")
    card = (first / "model" / "README.md").read_text()
    assert re.search(r"`both`, split `train`, 6\d spectra", card) and "no measured spectrum" not in card
    before = {path: path.stat().st_mtime_ns for path in Path(HF_DATASETS_CACHE).glob("xrf_corpora/both-*/corpus.json")}
    assert records(pretrain(**options)) == records(first)
    assert before == {path: path.stat().st_mtime_ns for path in before} and len(before) == 1


def test_recipe_is_streamed_without_end_and_measured_on_other_spectra(pretrain, measured, tmp_path):
    recipe = write_recipe(tmp_path / "both.yaml")
    options = {"dataset": recipe, "data_root": measured, "streaming": True, "validate_every": 4}
    first = pretrain(**options, max_steps=None, epochs=1.5, batch_size=10)
    assert len(records(first)) == 12  # the 60 simulated spectra are three quarters of 80
    assert records(first, "epoch") == [0] * 8 + [1] * 4
    assert len(records(first, "validation_r2")) == 3 and records(first)[-1] < records(first)[0]
    assert "`both`, split `train`, streamed" in (first / "model" / "README.md").read_text()
    again = pretrain(**options, max_steps=None, epochs=1.5, batch_size=10)
    for name in ("loss", "validation_loss"):
        assert records(again, name) == records(first, name)
    assert len(records(pretrain(**options, workers=2, max_steps=3))) == 3


def test_augmentation_of_a_recipe_changes_what_is_seen_in_every_epoch(pretrain, measured, tmp_path):
    plain, thinned = {"dataset": write_recipe(tmp_path / "plain.yaml")}, {}
    thinned["dataset"] = write_recipe(tmp_path / "thin.yaml", [{"name": "thinning", "fraction": [0.01, 0.02]}])
    for options in (plain, thinned):
        options |= {"data_root": measured, "max_steps": None, "epochs": 2, "batch_size": 16, "scaling": "log"}
    folder = pretrain(**thinned)
    assert len(records(folder)) == 8 and records(folder, "epoch")[::7] == [0, 1]
    assert records(folder)[0] < 0.5 * records(pretrain(**plain))[0]  # ln(1 + counts) of fewer counts
    assert records(pretrain(**thinned)) == records(folder)


def test_card_of_simulations_alone_says_so(pretrain, config_file):
    folder = pretrain(dataset="simulated_marine", streaming=True, max_steps=1)
    assert "It has seen no measured spectrum" in (folder / "model" / "README.md").read_text()


def test_streaming(pretrain):
    first = pretrain(streaming=True, max_steps=8, validate_every=8)
    assert records(first, "epoch") == [0] * 6 + [1] * 2
    assert records(first)[-1] < records(first)[0]
    assert records(pretrain(streaming=True, max_steps=8)) == records(first)
    assert len(records(pretrain(streaming=True, workers=1, max_steps=8))) == 8


# --- the objective labels ---


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A recipe of rocks under one instrument."""
    part = {"name": "rocks", "simulation": {"samples": "rock", "num_spectra": 60, "num_cores": 6}}
    path = tmp_path_factory.mktemp("recipes") / "rocks.yaml"
    path.write_text(json.dumps({"name": "rocks", "parts": [part]}))
    return path


@pytest.fixture(scope="module")
def learn(pretrain, simulated):
    """`pretrain` with the labels of a stream of simulated spectra."""

    def run(**options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_msm, "VALIDATION_SPECTRA", 40)
            return pretrain(**{"objective": "labels", "dataset": simulated, "streaming": True, **options})

    return run


@pytest.fixture(scope="module")
def learnt(learn):
    return learn(validate_every=3, max_steps=12)


def test_labels_of_simulated_spectra_make_a_regression_model(learnt, simulated):
    losses = records(learnt)
    assert len(losses) == 12 and min(losses[-3:]) < losses[0]
    config = saved_config(learnt)
    assert config["architectures"] == ["XRFForRegression"] and config["calibration"] == "standardless"
    assert (config["pooling"], config["regression_loss"]) == ("mean", "gaussian")
    names = config["target_names"]
    assert {"SiO2", "CaCO3", "Fe", "Pb", "gain_drift", "count_rate"} <= set(names) <= set(TARGET_NAMES)
    mixture = recipe_mixture(Recipe.from_yaml(simulated), "train", 0, None, ["Fe", "zero_drift"])
    iron, drift = mixture.labels(60).T
    for name, values, transform, limits in (
        ("Fe", np.log(np.maximum(iron, 1e-4)), "log", (0, 100)),
        ("zero_drift", drift, "linear", (None, None)),
    ):
        place = names.index(name)
        assert config["target_transform"][place] == transform
        assert (config["target_min"][place], config["target_max"][place]) == limits
        assert config["target_mean"][place] == pytest.approx(values.mean(), rel=1e-5)
        assert config["target_std"][place] == pytest.approx(values.std(), rel=1e-5)
    extractor = AutoFeatureExtractor.from_pretrained(learnt / "model")
    assert (extractor.scaling, extractor.lowest_energy_kev) == ("sqrt", 0.85)
    assert (learnt / "figures" / "training.png").is_file() and not (learnt / "figures" / "validation.png").exists()


def test_validation_on_labels_by_hand(learnt, simulated):
    model = AutoModelForSequenceClassification.from_pretrained(learnt / "model").eval()
    extractor = AutoFeatureExtractor.from_pretrained(learnt / "model")
    config = model.config
    rows = held_out_rows(Recipe.from_yaml(simulated), "validation", 40, None, config.target_names)
    inputs = extractor(
        np.asarray(rows["counts"]), np.asarray(rows["gain_kev"]), np.asarray(rows["offset_kev"]),
        np.asarray(rows["tube_kv"]), return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        predictions = model(**inputs).predictions.numpy()
    found = records(learnt, "r")[-1]
    log = np.array(config.target_transform) == "log"
    for place, name in enumerate(config.target_names):
        labels, predicted = np.array(rows[name]), predictions[:, place].astype(float)
        if log[place]:
            labels, predicted = np.log(np.maximum(labels, 1e-4)), np.log(predicted)
        if np.ptp(labels) > 0:
            assert found[name] == pytest.approx(np.corrcoef(labels, predicted)[0, 1], abs=1e-3), name
    oxides = [found[name] for name in ("SiO2", "Al2O3", "Fe2O3", "CaO", "K2O", "MgO", "Na2O", "TiO2", "MnO", "P2O5")]
    assert records(learnt, "validation_r")[-1] == pytest.approx(np.mean(oxides))
    assert len(records(learnt, "validation_r2")) == 4


def test_card_of_labels_tells_targets_r_and_that_nothing_was_calibrated(learnt):
    card = ModelCard.load(learnt / "model" / "README.md")
    assert card.data.pipeline_tag == "tabular-regression" and "simulated-labels" in card.data.tags
    r = records(learnt, "r")[-1]
    for text in (
        "standardless", f"| Fe | wt% | log | {r['Fe']:.4f} |", "--objective labels", "streamed", "0.0001 wt%",
        "nothing below 0.85 keV", "## Beware", f"{records(learnt, 'validation_r2')[-1]:.4f}", f"{len(r)} targets",
    ):  # fmt: skip
        assert text in card.text, text
    assert "{{" not in card.text and "None" not in card.text


def test_targets_pooling_loss_and_lowest_energy(learn, learnt):
    options = {"targets": ["Fe", "SiO2"], "pooling": "cls", "regression_loss": "mse", "lowest_energy_kev": 1.2}
    folder = learn(**options, max_steps=1)
    config = saved_config(folder)
    assert (config["target_names"], config["pooling"]) == (["Fe", "SiO2"], "cls")
    assert config["regression_loss"] == "mse" and weights(folder)["head.weight"].shape == (2, 32)
    assert AutoFeatureExtractor.from_pretrained(folder / "model").lowest_energy_kev == 1.2
    one = learn(targets="Fe", max_steps=1)
    for name, value in {"pooling": "cls", "regression_loss": "mse", "lowest_energy_kev": 1.2}.items():
        assert records(learn(targets="Fe", max_steps=1, **{name: value})) != records(one), name


def test_lowest_energy_of_masked_pretraining(pretrain, baseline):
    higher = pretrain(lowest_energy_kev=0.6)
    assert records(higher)[0] != pytest.approx(records(baseline)[0], rel=1e-3)
    assert AutoFeatureExtractor.from_pretrained(higher / "model").lowest_energy_kev == 0.6
    assert AutoFeatureExtractor.from_pretrained(baseline / "model").lowest_energy_kev == 0
    again = pretrain(config_file=None, model_name_or_path=higher / "model", max_steps=1)
    assert AutoFeatureExtractor.from_pretrained(again / "model").lowest_energy_kev == 0.6


def test_labels_keep_the_encoder_of_a_masked_checkpoint_and_its_features(pretrain, learn):
    masked = pretrain(scaling="log")
    folder = learn(config_file=None, model_name_or_path=masked / "model", max_steps=1, learning_rate=1e-30)
    before, after = weights(masked), weights(folder)
    assert {name for name in after if name not in before} == {"head.weight", "head.bias"}
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items() if name in before)
    extractor = AutoFeatureExtractor.from_pretrained(folder / "model")
    assert (extractor.scaling, extractor.lowest_energy_kev) == ("log", 0)
    assert saved_config(folder)["pooling"] == "mean"


def test_labels_continue_a_regression_checkpoint_with_its_targets(learn, learnt, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(learnt / "model")
    model.config.interval_coverages, model.config.interval_factors = [0.9], [[1.6] * len(model.config.target_names)]
    model.save_pretrained(tmp_path / "model")
    AutoFeatureExtractor.from_pretrained(learnt / "model").save_pretrained(tmp_path / "model")
    options = {"config_file": None, "model_name_or_path": tmp_path / "model"}
    folder = learn(**options, max_steps=1, learning_rate=1e-30)
    assert all(torch.equal(tensor, weights(learnt)[name]) for name, tensor in weights(folder).items())
    before, after = saved_config(learnt), saved_config(folder)
    for name in ("target_names", "target_mean", "target_std", "target_transform", "calibration", "regression_loss"):
        assert after[name] == before[name]
    assert not after.get("interval_coverages")  # they were those of other weights
    with pytest.raises(ValueError, match="predicts .*, count_rate; leave --targets out to continue"):
        learn(**options, targets="Fe")
    with pytest.raises(ValueError, match="has regression_loss 'gaussian', not 'mse'; leave the option out"):
        learn(**options, regression_loss="mse")


@pytest.fixture(scope="module")
def stored_labels(tmp_path_factory):
    """A corpus whose labels tell the height of the first peak, so that they can be learnt."""
    folder = tmp_path_factory.mktemp("corpora")
    rows = [
        dataclasses.replace(spectrum, targets={"Fe": float(spectrum.counts[36:45].sum()) / 500}, source="a laboratory")
        for spectrum in spectra(64, 0)
    ]
    for name, split in (("train", rows[:48]), ("validation", rows[48:])):
        pq.write_table(spectra_to_table(split, ["Fe", "Si"], {"Fe": "wt%", "Si": "wt%"}), folder / f"{name}.parquet")
    return folder


def test_labels_of_a_stored_corpus(learn, stored_labels):
    options = {"dataset": stored_labels, "lowest_energy_kev": 0.0}
    stored = learn(**options, streaming=False, max_steps=100, validate_every=100, log_every=25)
    assert records(stored, "epoch") == [4, 8, 12, 16]
    assert records(stored, "r")[-1]["Fe"] > 0.6  # of 16 spectra; without learning it would be 0 +- 0.25
    for folder in (stored, learn(**options, max_steps=2)):
        assert saved_config(folder)["target_names"] == ["Fe"] and saved_config(folder).get("calibration") is None
        assert "no laboratory value" not in (folder / "model" / "README.md").read_text()
    with pytest.raises(ValueError, match="The target 'Si' has no labels that vary"):
        learn(**options, targets="Si")


def test_a_perceptron_alone_learns_labels_and_a_configuration_file_adds_an_encoder(learn, stored_labels, tmp_path):
    paths = {}
    for name, fields in (("alone", {**SMALL, "num_hidden_layers": 0, "perceptron_size": 16}),
                         ("encoder", {"num_hidden_layers": 1, "initializer_range": 0.01})):  # fmt: skip
        paths[name] = tmp_path / f"{name}.json"
        paths[name].write_text(json.dumps(fields))
    options = {"dataset": stored_labels, "streaming": False, "lowest_energy_kev": 0.0}
    alone = learn(**options, config_file=paths["alone"], max_steps=100, validate_every=100, log_every=25)
    assert records(alone, "epoch") == [4, 8, 12, 16] and records(alone, "r")[-1]["Fe"] > 0.6
    assert saved_config(alone)["pooling"] == "cls"
    options |= {"model_name_or_path": alone / "model", "learning_rate": 1e-30, "max_steps": 1}
    grown = learn(**options, config_file=paths["encoder"])
    before, after = weights(alone), weights(grown)
    for name in before.keys() & after.keys():
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-20)
    new = after.keys() - before.keys()
    assert new and all(name.startswith("xrf.layers.0.") for name in new)
    assert saved_config(grown)["target_mean"] == saved_config(alone)["target_mean"]


def test_augmentation_takes_away_the_states_of_the_instrument(learn, simulated, tmp_path):
    recipe = json.loads(simulated.read_text()) | {"augmentation": [{"name": "thinning", "fraction": [0.5, 1]}]}
    (tmp_path / "rocks.yaml").write_text(json.dumps(recipe))
    options = {"dataset": tmp_path / "rocks.yaml", "max_steps": 1}
    names = saved_config(learn(**options))["target_names"]
    assert "Fe" in names and "zero_drift" in names and "count_rate" not in names
    with pytest.raises(ValueError, match="The target 'count_rate' cannot be learnt: the augmentation of the recipe"):
        learn(**options, targets="count_rate")


def test_intervals_are_those_of_spectra_such_as_were_learnt_from(learn, stored_labels, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "reliability_xrf.calibrate",
        lambda model, batches: seen.append(torch.cat([batch["input_values"] for batch in batches])),
    )
    stored = {
        "dataset": stored_labels,
        "streaming": False,
        "lowest_energy_kev": 0.0,
        "max_steps": 1,
        "validate_every": 1,
    }
    learn(**stored)
    folder = learn(**stored, efficiency_sd=0.5)
    assert "| uncertain efficiency |" in (folder / "model" / "README.md").read_text()
    plain, changed = seen
    assert len(plain) == len(changed) == 16 and not torch.allclose(plain, changed, rtol=0.1)
    torch.testing.assert_close(changed.square().mean(1), plain.square().mean(1), rtol=1e-4, atol=0)

    part = {"name": "measured", "files": {"paths": str(stored_labels / "*.parquet")}}
    for name, steps in (("plain", []), ("thin", [{"name": "thinning", "fraction": [0.1, 0.1], "least_counts": 0}])):
        recipe = {"name": name, "parts": [part], "augmentation": steps, "validation_fraction": 0.3}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(recipe))
        learn(**stored | {"dataset": tmp_path / f"{name}.yaml"}, scaling="log")
    plain, thinned = seen[2:]
    assert len(plain) == len(thinned) > 0
    assert 0 < thinned.sum() < 0.7 * plain.sum()  # ln(1 + counts) of a tenth of them


def test_bf16_learns_labels_too(learn, learnt):
    folder = learn(mixed_precision="bf16", max_steps=12)
    np.testing.assert_allclose(records(folder), records(learnt), rtol=0.1)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"mask_ratio": 0.5}, "mask_ratio has no meaning for the objective 'labels'; leave it out"),
        ({"masked_loss_only": True}, "masked_loss_only has no meaning for the objective 'labels'"),
        ({"objective": "masked", "targets": "Fe"}, "targets has no meaning for the objective 'masked'"),
        ({"objective": "masked", "pooling": "mean"}, "pooling has no meaning for the objective 'masked'"),
        ({"objective": "masked", "regression_loss": "mse"}, "regression_loss has no meaning for the objective"),
        ({"objective": "masked", "efficiency_sd": 0.1}, "efficiency_sd has no meaning for the objective 'masked'"),
        ({"efficiency_sd": 0.0}, "efficiency_sd must be positive and at most 1, but is 0.0; 0.1 means about 10 %"),
        (
            {"efficiency_sd": 0.1, "scaling": "log"},
            "An uncertain efficiency needs the scaling sqrt, but this is 'log'",
        ),
        ({"targets": "LOI"}, "The target 'LOI' cannot be learnt: simulations know none; choose from CaCO3, TOC"),
        ({"lowest_energy_kev": 99.0}, "lowest_energy_kev must lie between 0"),
        ({"dataset": "the corpus", "streaming": False}, "has no labels that vary; the objective labels needs"),
    ],
    ids=str,
)
def test_bad_options_of_labels_are_one_sentence_and_nothing_is_written(learn, corpus, tmp_path, options, sentence):
    options = {**options, "dataset": corpus} if "dataset" in options else options
    with pytest.raises(ValueError, match=sentence) as caught:
        learn(**options, output_dir=tmp_path / "run")
    assert "\n" not in str(caught.value).strip()
    assert not list(tmp_path.iterdir())


def test_pinned_batches_give_the_same_losses(pretrain, gpu):
    np.testing.assert_allclose(records(pretrain(pin_memory=True)), records(pretrain(pin_memory=False)), rtol=1e-5)


def test_checkpoints_and_validations_come_every_n_steps(pretrain):
    folder = pretrain(max_steps=11, checkpoint_every=2, keep_last=3, validate_every=4)
    names = ["step_000008", "step_000010", "step_000011"]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == names
    lines = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
    assert [record["step"] for record in lines if "validation_loss" in record] == [4, 8, 11]


def test_trackers(pretrain, tmp_path):
    folder = pretrain(trackers="tensorboard", max_steps=3, validate_every=3)
    assert not list(tmp_path.iterdir())
    events = EventAccumulator(str(folder / "logs" / "pretraining")).Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(records(folder))
    assert events.Scalars("validation_r2")[0].step == 3
    folder = pretrain(trackers="tensorboard", max_steps=1, logging_dir=tmp_path / "events")
    assert list((tmp_path / "events").rglob("events.out*")) and not (folder / "logs").exists()


def test_push_to_hub(pretrain, hub_org):
    for name, private in (("open", False), ("closed", True)):
        repo_id = f"{hub_org}/{name}"
        folder = pretrain(max_steps=1, push_to_hub=True, hub_model_id=repo_id, hub_private=private)
        assert HfApi().model_info(repo_id).private == private
        pulled = AutoModel.from_pretrained(repo_id).state_dict()
        for key, value in AutoModel.from_pretrained(folder / "model").state_dict().items():
            assert torch.equal(pulled[key], value)


# --- resuming ---


@pytest.mark.parametrize(
    "kind, log_every, workers",
    [
        ("stored", 1, 0), ("streamed", 1, 0), ("stored", 4, 0), ("augmented recipe", 1, 0), ("streamed recipe", 1, 2),
        ("streamed labels", 1, 1), ("stored, muon", 1, 0), ("streamed labels, efficiency", 1, 0),
    ],
)  # fmt: skip
def test_resumed_run_equals_the_uninterrupted_one(pretrain, learn, measured, kind, log_every, workers, tmp_path):
    options = {"max_steps": 10, "batch_size": 4, "gradient_accumulation": 2, "checkpoint_every": 3, "keep_last": 9}
    options |= {"optimizer": "muon" if "muon" in kind else "adamw"}
    options |= {"efficiency_sd": 0.1} if "efficiency" in kind else {}
    options |= {"streaming": "streamed" in kind, "validate_every": 5, "log_every": log_every, "workers": workers}
    if "recipe" in kind:
        augmentation = [{"name": "thinning", "fraction": [0.5, 1]}, {"name": "drift", "zero_sd_ev": 5}]
        (tmp_path / "recipe").mkdir()
        options |= {"dataset": write_recipe(tmp_path / "recipe" / "both.yaml", augmentation), "data_root": measured}
    pretrain = learn if "labels" in kind else pretrain
    whole = pretrain(**options)
    # as a run that was killed in step 8 leaves its folder
    killed = tmp_path / "killed"
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "model")
    shutil.rmtree(killed / "figures")
    for name in ("step_000009", "step_000010"):
        shutil.rmtree(killed / "checkpoints" / name)
    lines = (killed / "history.jsonl").read_text().splitlines()
    (killed / "history.jsonl").write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= 8))
    pretrain(**options, output_dir=killed, resume=True)
    for name in ("step", "loss", "gradient_norm", "learning_rate", "validation_loss", "validation_r2"):
        assert records(killed, name) == records(whole, name)
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in weights(killed).items())


def test_resume_starts_where_there_is_nothing_and_rests_where_all_is_done(pretrain, capfd):
    folder = pretrain(max_steps=2, resume=True)
    first = (folder / "history.jsonl").read_text()
    pretrain(max_steps=2, resume=True, output_dir=folder)
    assert (folder / "history.jsonl").read_text() == first
    pretrain(max_steps=3, resume=True, output_dir=folder)
    assert records(folder, "step") == [1, 2, 3]


def test_resume_with_another_recipe_or_number_of_workers_is_refused(pretrain, measured, tmp_path):
    options = {"data_root": measured, "streaming": True, "output_dir": tmp_path / "run"}
    pretrain(**options, dataset=write_recipe(tmp_path / "both.yaml"), max_steps=1)
    options |= {"resume": True, "max_steps": 2}
    with pytest.raises(ValueError, match="was written with workers 0, but the run to resume has 1"):
        pretrain(**options, dataset=tmp_path / "both.yaml", workers=1)
    with pytest.raises(ValueError, match="was written with recipe '.*', but the run to resume has '.*'"):
        pretrain(**options, dataset=write_recipe(tmp_path / "both.yaml", num_spectra=70))
    pretrain(**options, dataset=write_recipe(tmp_path / "both.yaml"))


@pytest.mark.parametrize(
    "options",
    [{"seed": 5}, {"batch_size": 4}, {"mask_ratio": 0.3}, {"scaling": "log"}, {"optimizer": "muon"}],
    ids=str,
)
def test_resume_with_another_task_is_refused(pretrain, options, tmp_path, baseline):
    shutil.copytree(baseline, tmp_path / "run")
    name, value = next(iter(options.items()))
    before = (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(ValueError, match=f"was written with {name} .*, but the run to resume has {value!r}"):
        pretrain(**options, output_dir=tmp_path / "run", resume=True, max_steps=20)
    assert (tmp_path / "run" / "run.json").read_text() == before


# --- several processes ---


def test_more_processes_than_accelerate_sees_are_refused(pretrain, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "-1")
    with pytest.raises(ValueError, match="2 processes were launched, but accelerate sees 1"):
        pretrain()


# --- bad input ---


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"mask_ratio": 1.0}, "mask_ratio must lie between 0 and 1, but is 1.0"),
        ({"mask_ratio": 0.95}, "mask_ratio 0.95 leaves none of 8 patches"),
        ({"batch_size": 0}, "batch_size must be at least 1, but is 0"),
        ({"batch_size": 49}, "The split 'train' has 48 spectra, fewer than one batch"),
        ({"learning_rate": -1.0}, "learning_rate must be positive, but is -1.0"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative, but is -1.0"),
        ({"warmup_ratio": 2.0}, r"warmup_ratio must lie in \[0, 1\], but is 2.0"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\)"),
        ({"mixed_precision": "int8"}, "mixed_precision must be no, bf16 or fp16, but is 'int8'"),
        ({"scaling": "cubic"}, "scaling must be one of .*, but is 'cubic'"),
        ({"trackers": "notebook"}, "The tracker 'notebook' is not installed"),
        ({"streaming": True, "max_steps": None}, "The length of a stream is not known beforehand; give --max_steps"),
        ({"data_root": "here"}, "data_root belongs to a recipe, and the dataset .* is none; leave it out"),
        ({"dataset": "none.yaml"}, "There is no recipe none.yaml; give a YAML file or one of"),
        ({"dataset": "simulated_marine", "train_split": "dev", "streaming": True}, 'Unknown split "dev" of a recipe'),
        ({"dataset": "mixed", "data_root": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"push_to_hub": True}, "push_to_hub needs --hub_model_id"),
        ({"push_to_hub": True, "hub_model_id": "a/b/c"}, "Repo id must be"),
        ({"dataset": "nowhere/at-all"}, "There is no corpus 'nowhere/at-all'"),
        ({"dataset": "/nowhere/at/all"}, "There is no corpus in '/nowhere/at/all'"),
        ({"train_split": "training"}, 'Unknown split "training". Should be one of'),
        ({"train_split": "training", "streaming": True}, "Bad split: training"),
        ({"validation_split": "dev", "validate_every": 1}, 'Unknown split "dev"'),
    ],
    ids=str,
)
def test_bad_options_are_one_sentence_and_nothing_is_written(pretrain, tmp_path, options, sentence):
    with pytest.raises((ValueError, OSError), match=sentence) as caught:
        pretrain(**options, output_dir=tmp_path / "run")
    assert "\n" not in str(caught.value).strip()
    assert not list(tmp_path.iterdir())


def test_bad_corpora(pretrain, corpus, tmp_path):
    output = tmp_path / "run"

    def refused(folder, sentence):
        with pytest.raises((ValueError, OSError), match=sentence):
            pretrain(dataset=folder, output_dir=output)
        assert not output.exists()

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "There is no corpus in .*empty.*")

    shutil.copytree(corpus, tmp_path / "cut")
    file = tmp_path / "cut" / "data" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    refused(tmp_path / "cut", "train-00000-of-00001.parquet is not a complete Parquet file")

    table = spectra_to_table(spectra(12, 0))
    counts = table["counts"].to_pylist()
    counts[9][3] = float("nan")
    column = table.column_names.index("counts")
    for name, content, sentence in (
        (
            "nan",
            table.set_column(column, "counts", pa.array(counts, table["counts"].type)),
            "spectrum 9 of split 'train'",
        ),
        ("bare", table.drop_columns("gain_kev"), "has no column 'gain_kev'"),
    ):
        (tmp_path / name).mkdir()
        pq.write_table(content, tmp_path / name / "train.parquet")
        refused(tmp_path / name, sentence)

    refused(write_corpus(tmp_path / "hollow", train=[]), "train-00000-of-00001.parquet holds no spectrum")
    shifted = [dataclasses.replace(spectrum, offset_kev=50.0) for spectrum in spectra(12, 0)]
    refused(write_corpus(tmp_path / "far", train=shifted), "Spectrum 0 of split 'train' covers 49.99 to 52.55 keV")


def test_config_files_that_are_none(pretrain, tmp_path):
    path = tmp_path / "config.json"
    for text, sentence in (
        ("{", "config.json is not valid JSON"),
        ("[1]", "must hold an object of fields"),
        ('{"spectrum_lenght": 512}', "has the field 'spectrum_lenght'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=sentence):
            pretrain(config_file=path, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_checkpoints_that_cannot_be_continued(pretrain, tmp_path):
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text("{}")
    regressor = XRFForRegression(XRFMaskedConfig(**SMALL, target_names=["CaCO3"]))
    regressor.save_pretrained(tmp_path / "regressor")
    for name, sentence in (
        ("vit", "is of the architecture 'vit'; give one of the XRF family"),
        ("none", "is of another architecture; give one of the XRF family"),
        ("regressor", "has no decoder to continue with"),
    ):
        with pytest.raises(ValueError, match=sentence):
            pretrain(config_file=None, model_name_or_path=tmp_path / name, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_folder_of_another_run_is_left_alone(pretrain, tmp_path, baseline):
    before = {path: path.stat().st_mtime_ns for path in baseline.rglob("*")}
    with pytest.raises(ValueError, match="holds another run of run_msm.py"):
        pretrain(output_dir=baseline)
    assert {path: path.stat().st_mtime_ns for path in baseline.rglob("*")} == before
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="holds other files"):
        pretrain(output_dir=tmp_path)


def test_full_disk_leaves_no_half_checkpoint(pretrain, tmp_path, baseline):
    """A file size limit makes writes fail in the middle, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match="step_000002 could not be written .*; free some disk space and resume"):
            pretrain(checkpoint_every=2, output_dir=tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    pretrain(checkpoint_every=2, output_dir=tmp_path / "run", resume=True)
    assert records(tmp_path / "run") == records(baseline)


def test_loss_that_is_no_number_ends_the_run(pretrain, tmp_path):
    with pytest.raises(ValueError, match="The loss is (nan|inf) at step .*use a learning_rate below 1e\\+30"):
        pretrain(learning_rate=1e30, gradient_clip=0, output_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_exit_code(run_script, corpus, tmp_path):
    result = run_script(
        "run_msm.py", "--dataset", corpus, "--train_split", "nope", "--output_dir", tmp_path / "run", check=False
    )
    assert result.returncode == 2
    assert result.stderr.strip().startswith('error: Unknown split "nope"') and "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
