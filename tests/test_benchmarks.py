"""Benchmarks run from end to end on genuine spectra, at sizes that say nothing about accuracy."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARK = ROOT / "benchmarks" / "real_spectra.py"
READING = ROOT / "benchmarks" / "reading.py"


def test_real_spectra_from_files_to_the_table(real_data, tmp_path):
    results = tmp_path / "results.csv"
    options = ["--pretraining_steps", "3", "--epochs", "1", "--seeds", "0", "--results", results]
    environment = {**os.environ, "XRF_REAL_DATA": str(real_data)}
    command = [sys.executable, BENCHMARK, *options, "--output_dir", tmp_path / "runs"]
    output = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=True).stdout

    with open(results, newline="") as file:
        rows = list(csv.DictReader(file))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    assert methods == [
        "mean", "ridge, channels as recorded", "ridge, energy grid", "ridge of ln(wt%), energy grid", "LoRA", "full",
        "probe", "full, from random weights",
    ]  # fmt: skip
    assert len(rows) == 6 * len(methods) and {row["n"] for row in rows} == {"26"}
    rmse = {(row["method"], row["target"]): float(row["rmse"]) for row in rows}
    # one calibration of Ca must survive the change of instrument, and by far beat predicting the mean
    assert rmse["ridge, energy grid", "Ca"] < 0.2 * rmse["mean", "Ca"]
    table = output[output.rindex("| method |") :].splitlines()
    relative = [float(line.split("|")[-2].strip(" *")) for line in table[2:]]
    expected = [sum(rmse[m, t] / rmse["mean", t] for t in ("Al", "Si", "K", "Ca", "Ti", "Fe")) / 6 for m in methods]
    assert relative == pytest.approx(expected, rel=0.01)


def test_missing_spectra_are_one_sentence(tmp_path):
    environment = {**os.environ, "XRF_REAL_DATA": str(tmp_path / "nowhere")}
    command = [sys.executable, str(BENCHMARK), "--output_dir", str(tmp_path / "runs")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: There are no real spectra in ") and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_reading_speed_is_measured_and_appended(tmp_path):
    command = [
        sys.executable,
        READING,
        "--spectra",
        "512",
        "--output_dir",
        tmp_path,
        "--only",
        "features in the cache",
    ]
    command += ["--results", tmp_path / "results.csv"]
    output = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["workers"] for row in rows] == ["0", "2"]
    for row in rows:
        assert int(row["spectra"]) >= 16 * 512 and int(row["spectra_per_s"]) > 1000
        assert 100 < int(row["peak_mb"]) < 2000 and row["versions"].startswith("torch ")
    assert output.count("| features in the cache |") == 2
