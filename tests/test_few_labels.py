"""The few-label benchmark: its CSV, its tables, and what it leaves out."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "few_labels.py"


def run_benchmark(*options, data=None, check=True):
    environment = os.environ if data is None else {**os.environ, "XRF_REAL_DATA": str(data)}
    command = [sys.executable, BENCHMARK, *options]
    return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=check)


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_mudrocks_from_files_to_the_tables(real_data, tmp_path):
    results = tmp_path / "results.csv"
    options = ["--methods", "mean", "ridge", "ridge_recorded", "ridge_pds", "--seeds", "0", "1", "--results", results]
    run_benchmark("--sets", "mudrock_light_a", *options, data=real_data)
    rows = read_rows(results)
    assert [row["method"] for row in rows] == ["mean"] * 12 + ["ridge"] * 12 + ["ridge_recorded"] * 12  # no transfer
    assert {(row["protocol"], row["seed"], row["n"]) for row in rows} == {("leave_group_out", "0", "26")}
    assert all(row["commit"] and row["hardware"] and row["date"] for row in rows)
    relative = {(row["method"], row["target"]): float(row["relative_ln_rmse"]) for row in rows}
    assert relative["ridge", "Si"] < 0.35 and relative["ridge", "Fe"] < 0.5
    assert all(relative["mean", row["target"]] > 1 for row in rows)  # a mean of other formations
    assert {row["coverage_90"] for row in rows} == {""}  # no intervals, no coverage

    options = [*options, "--protocols", "instruments", "--num_transfer", "0", "5"]
    run_benchmark("--sets", "mudrock_light_ab", *options, data=real_data)
    moved = [row for row in read_rows(results) if row["set"] == "mudrock_light_ab"]
    cases = {(row["method"], row["num_labels"], row["seed"], row["n"]) for row in moved}
    plain = {(method, "0", seed, "21") for method in ("mean", "ridge", "ridge_recorded") for seed in "01"}
    assert cases == plain | {("ridge_pds", "5", seed, "21") for seed in "01"}

    table = run_benchmark("--tables", "--results", results).stdout
    assert "### mudrock_light_a, leave_group_out" in table and "### mudrock_light_ab, instruments" in table
    ridge = next(line for line in table.splitlines() if line.startswith("| ridge | "))
    mean = sum(relative["ridge", row["target"]] for row in rows if row["method"] == "ridge") / 12
    assert float(ridge.split("|")[2]) == pytest.approx(mean, abs=6e-4)
    transferred = next(line for line in table.splitlines() if line.startswith("| ridge_pds | "))
    assert transferred.split("|")[2].strip() == "" and "±" in transferred.split("|")[3]


def test_the_last_row_of_a_kind_counts(tmp_path):
    results = tmp_path / "results.csv"
    header = "date,commit,hardware,set,protocol,num_labels,seed,method,target,relative_ln_rmse\n"
    common = "2026-01-01,abc,cpu,some_set,few_labels"
    results.write_text(
        header
        + "".join(
            f"{common},{number},{seed},ridge,{target},{value}\n"
            for number, seed, target, value in [
                ("10", 0, "Al", 9.0), ("10", 0, "Al", 0.2), ("10", 0, "Fe", 0.4),
                ("10", 1, "Al", 0.4), ("10", 1, "Fe", 0.6), ("", 0, "Al", 0.1), ("", 0, "Fe", 0.1),
            ]
        )
    )  # fmt: skip
    table = run_benchmark("--tables", "--results", results).stdout
    assert "| method | 10 | all |" in table
    assert "| ridge | 0.400 ± 0.100 | 0.100 |" in table  # seeds: (0.2 + 0.4) / 2 and (0.4 + 0.6) / 2


def test_missing_spectra_are_one_sentence(tmp_path):
    options = ["--sets", "obsidian", "--results", tmp_path / "results.csv"]
    result = run_benchmark(*options, data=tmp_path / "nowhere", check=False)
    assert result.returncode == 2 and list(tmp_path.iterdir()) == []
    assert result.stderr.startswith("error: There are no real spectra in ") and result.stderr.count("\n") == 1


def test_the_checkpoint_with_no_label_and_with_those_of_other_formations(real_data, tmp_path):
    results = tmp_path / "results.csv"
    options = ["--sets", "mudrock_light_b", "--protocols", "zero_labels", "leave_group_out", "--results", results]
    run_benchmark(*options, "--methods", "pretrained", "pretrained_closed", "ridge", data=real_data)
    rows = {(row["protocol"], row["method"], row["target"]): row for row in read_rows(results)}
    cases = {key[:2] for key in rows}
    without = {("zero_labels", "pretrained"), ("zero_labels", "pretrained_closed")}
    assert cases == without | {("leave_group_out", "pretrained"), ("leave_group_out", "ridge")}
    for target in ("Al", "Si", "K", "Ca"):
        assert float(rows["zero_labels", "pretrained", target]["ln_r"]) > 0.97, target
        assert 0.75 < float(rows["zero_labels", "pretrained", target]["scale"]) < 1.25, target
    targets = [key[2] for key in rows if key[:2] == ("leave_group_out", "ridge")]

    def mean(method, column):
        return sum(float(rows["leave_group_out", method, target][column]) for target in targets) / len(targets)

    assert mean("pretrained", "relative_ln_rmse") < 0.9 * mean("ridge", "relative_ln_rmse")
    assert 0.87 < mean("pretrained", "coverage_90") < 0.95
