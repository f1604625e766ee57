"""`scripts/run_msm.py` in two processes on the CPU gives the losses of one process with the same global batch.

Spectra reach from one to all eight patches and half of them lack a label, so the two processes' batches differ in what
their losses are the mean of.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, prepare_multi_gpu_env
from safetensors.torch import load_file

from configuration_xrf import XRFMaskedConfig
from dataset_builder import Spectrum, spectra_to_table
from modeling_xrf import XRFForMaskedSpectrumModeling, XRFLayer
from training_xrf import set_sharded_precision

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "scripts" / "configs"
SMALL = {
    "spectrum_length": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 64,
}  # fmt: skip
SCRIPT = "run_msm.py"
STEPS = 12
GLOBAL_BATCH = 8
TARGETS = ("CaO", "Fe2O3")
OBJECTIVES = {"masked": {}, "labels": {"objective": "labels", "lowest_energy_kev": 0}}


def spectra(number, seed):
    """Two peaks on a flat background, up to another tube voltage each; every other one has no value of iron."""
    generator = np.random.default_rng(seed)
    channels = np.arange(128)
    peaks = np.stack([np.exp(-0.5 * ((channels - centre) / 4) ** 2) for centre in (40, 90)])
    heights = generator.gamma(2.0, 200.0, (number, 2))
    counts = generator.poisson(20 + heights @ peaks)
    tube_kv = generator.uniform(0.5, 2.5, number)
    return [
        Spectrum(
            row, gain_kev=0.02, offset_kev=0.0, tube_kv=tube_kv[index], core=f"C-{index % 5}", depth_mm=10.0 * index,
            targets={name: heights[index, i] / 100 for i, name in enumerate(TARGETS[: 1 + index % 2])},
        )
        for index, row in enumerate(counts)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Options that name a corpus and a small model."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "corpus" / "data").mkdir(parents=True)
    for split, number, seed in (("train", 64, 0), ("validation", 17, 1)):
        table = spectra_to_table(spectra(number, seed), list(TARGETS), dict.fromkeys(TARGETS, "wt%"))
        pq.write_table(table, folder / "corpus" / "data" / f"{split}-00000-of-00001.parquet")
    (folder / "small.json").write_text(json.dumps(SMALL))
    return {"dataset": folder / "corpus", "config_file": folder / "small.json"}


def arguments(options):
    defaults = {
        "max_steps": STEPS, "learning_rate": 1e-2, "log_every": 1, "validate_every": 8, "trackers": "none",
        "mixed_precision": "no", "optimizer": "adamw",
    }  # fmt: skip
    argv = []
    for name, value in {**defaults, **options}.items():
        argv += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return argv


@pytest.fixture(scope="module")
def one_process(script, sources, tmp_path_factory):
    """`one_process(batch_size=8)` runs the script in this process and returns its folder."""

    def run(**options):
        folder = tmp_path_factory.mktemp("runs") / "one"
        try:
            script.main(arguments({**sources, **options, "output_dir": folder}))
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        return folder

    return run


@pytest.fixture
def two_processes(sources, tmp_path):
    """`two_processes("cpu.yaml", "--multi_gpu", batch_size=4)` launches the script and returns folder and output."""

    def run(config, *launch, program="scripts/run_msm.py", **options):
        options = {**sources, "output_dir": tmp_path / "two", **options}
        launcher = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", CONFIGS / config]
        command = [sys.executable, *launcher, "--num_processes", 2, *launch, program, *arguments(options)]
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env={**os.environ, "ACCELERATE_USE_CPU": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(timeout=200)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the two processes it started
        assert process.returncode == 0, errors
        return options["output_dir"], output

    return run


def records(folder, name="loss"):
    """Values of one quantity over the steps."""
    lines = (folder / "history.jsonl").read_text().splitlines()
    return [record[name] for record in map(json.loads, lines) if name in record]


def assert_same_history(folder, expected, rtol):
    assert len(records(folder)) == STEPS and np.ptp(records(expected)) > 0.1
    np.testing.assert_allclose(records(folder), records(expected), rtol=rtol)
    np.testing.assert_allclose(records(folder, "gradient_norm"), records(expected, "gradient_norm"), rtol=100 * rtol)
    # 17 spectra do not divide by two, and each counts once
    for name in ("validation_loss", "validation_r2"):
        np.testing.assert_allclose(records(folder, name), records(expected, name), rtol=10 * rtol)


@pytest.fixture(scope="module")
def masked(one_process):
    return one_process(batch_size=GLOBAL_BATCH)


def test_two_processes_equal_one_with_the_global_batch(two_processes, masked):
    folder, output = two_processes("cpu.yaml", "--multi_gpu", batch_size=GLOBAL_BATCH // 2)
    assert "12 steps of 8 spectra from step 0, 2 process(es) on cpu" in output
    assert output.count("of peak is") == 1  # one process speaks
    progress = json.loads((folder / "checkpoints" / "step_000012" / "progress.json").read_text())
    assert progress["processes"] == 2
    assert_same_history(folder, masked, rtol=1e-5)


def test_accumulated_batches_equal_one_with_all_spectra(one_process, masked):
    assert_same_history(one_process(batch_size=GLOBAL_BATCH // 4, gradient_accumulation=4), masked, rtol=1e-5)


def test_two_processes_learn_labels_as_one_does(two_processes, one_process):
    """One process with two workers and two batches a step gets the spectra that two processes get."""
    options = {**OBJECTIVES["labels"], "batch_size": GLOBAL_BATCH // 2}
    folder, _ = two_processes("cpu.yaml", "--multi_gpu", **options)
    assert_same_history(folder, one_process(**options, gradient_accumulation=2, workers=2), rtol=1e-5)


# --- FSDP2 ---


def test_a_model_in_shares_learns_as_a_whole_one_and_resumes_in_bf16(two_processes, masked):
    options = {"program": "tests/fsdp_on_cpu.py", "batch_size": GLOBAL_BATCH // 2, "checkpoint_every": 6}
    folder, output = two_processes("fsdp2.yaml", **options)
    assert "2 process(es) on cpu" in output
    assert_same_history(folder, masked, rtol=1e-5)
    weights, expected = (load_file(run / "model" / "model.safetensors") for run in (folder, masked))
    assert weights.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(weights[name], values, rtol=1e-3, atol=1e-3, err_msg=name)

    last = folder / "checkpoints" / "step_000012"
    assert len(list((last / "pytorch_model_fsdp_0").glob("*.distcp"))) == 2  # each process writes its share
    shutil.rmtree(last)
    folder, output = two_processes("fsdp2.yaml", **{**options, "mixed_precision": "bf16"}, resume=True)
    assert "12 steps of 8 spectra from step 6, 2 process(es) on cpu" in output
    np.testing.assert_allclose(records(folder), records(masked), rtol=0.01)
    assert records(folder)[6:] != records(masked)[6:]
    assert json.loads((folder / "model" / "config.json").read_text())["dtype"] == "float32"


def test_a_model_in_shares_learns_by_muon_as_a_whole_one(two_processes, one_process):
    """Muon multiplies matrices in bfloat16, whose roundings differ when they are divided."""
    options = {"optimizer": "muon", "learning_rate": 1e-3}
    whole = one_process(**options, batch_size=GLOBAL_BATCH)
    options |= {"program": "tests/fsdp_on_cpu.py", "batch_size": GLOBAL_BATCH // 2, "checkpoint_every": 6}
    folder, _ = two_processes("fsdp2.yaml", **options)
    np.testing.assert_allclose(records(folder)[:2], records(whole)[:2], rtol=1e-5)  # the first step has rate 0
    np.testing.assert_allclose(records(folder), records(whole), rtol=0.01)
    shutil.rmtree(folder / "checkpoints" / "step_000012")
    resumed, output = two_processes("fsdp2.yaml", **options, resume=True)
    assert "12 steps of 8 spectra from step 6" in output
    np.testing.assert_allclose(records(resumed), records(whole), rtol=0.01)


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("no", None)])
def test_weights_travel_in_the_precision_of_the_run_and_inputs_keep_theirs(precision, dtype):
    plugin = SimpleNamespace(mixed_precision_policy=None)
    set_sharded_precision(
        SimpleNamespace(is_fsdp2=True, mixed_precision=precision, state=SimpleNamespace(fsdp_plugin=plugin))
    )
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (dtype, torch.float32)
    assert policy.output_dtype is None and not policy.cast_forward_inputs  # noise and loss are not rounded


def test_accelerate_reads_the_fsdp2_configuration_as_meant(monkeypatch):
    parsed = launch_command_parser().parse_args(["--config_file", str(CONFIGS / "fsdp2.yaml"), "run_msm.py"])
    environment = prepare_multi_gpu_env(_validate_launch_command(parsed)[0])
    for name, value in environment.items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT" and not plugin.cpu_ram_efficient_loading
    assert type(plugin.cpu_offload).__name__ == "OffloadPolicy"
    plugin.set_auto_wrap_policy(XRFForMaskedSpectrumModeling(XRFMaskedConfig(**SMALL)))
    assert plugin.auto_wrap_policy.keywords == {"transformer_layer_cls": {XRFLayer}}


# --- launching ---


@pytest.mark.parametrize(
    "name, kind, processes, precision, cpu",
    [
        ("cpu", "NO", 1, "no", True),
        ("one_gpu", "NO", 1, "bf16", False),
        ("eight_gpus", "MULTI_GPU", 8, "bf16", False),
        ("fsdp2", "FSDP", 8, "bf16", False),
    ],
)
def test_accelerate_reads_the_launch_configurations(script, name, kind, processes, precision, cpu):
    path = CONFIGS / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.distributed_type == DistributedType(kind)
    assert (config.num_processes, config.mixed_precision, config.use_cpu) == (processes, precision, cpu)
    assert f"scripts/configs/{path.name}" in script.__doc__
