"""`benchmarks/few_labels_figure.py`: what it draws is what the table says."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

BENCHMARK = "few_labels_figure"


def row(method, num_labels, seed, target, error, set_name="obsidian", protocol="few_labels"):
    return {
        "set": set_name, "protocol": protocol, "num_labels": num_labels, "seed": seed, "method": method,
        "target": target, "relative_ln_rmse": error, "rmse": "9",
    }  # fmt: skip


def test_errors_are_means_over_targets_for_each_draw(benchmark):
    rows = [
        row("ridge", "5", "0", "Fe", "0.2"), row("ridge", "5", "0", "Ca", "0.4"), row("ridge", "5", "1", "Fe", "0.5"),
        row("ridge", "5", "1", "Ca", ""), row("ridge", "", "0", "Fe", "0.1"), row("pls", "5", "0", "Fe", "0.7"),
        row("ridge", "5", "0", "Fe", "0.9", protocol="leave_one_out"),
    ]  # fmt: skip
    found = benchmark.errors(rows, "obsidian", "few_labels", "relative_ln_rmse")
    assert {key: values.tolist() for key, values in found.items()} == {
        ("ridge", 5.0): [pytest.approx(0.3), 0.5], ("ridge", np.inf): [0.1], ("pls", 5.0): [0.7],
    }  # fmt: skip
    of_iron = benchmark.errors(rows, "obsidian", "few_labels", "relative_ln_rmse", "Fe")
    assert of_iron["ridge", 5.0].tolist() == [0.2, 0.5]


def test_lines_go_through_the_means(benchmark):
    axes = Figure().subplots()
    found = {("pretrained", 0.0): np.array([1.0]), ("pretrained", 5.0): np.array([0.4, 0.6])}
    found |= {("ridge", 5.0): np.array([0.7]), ("ridge", np.inf): np.array([0.2])}
    benchmark.draw_numbers(axes, found, ("pretrained", "ridge"))
    assert [line.get_ydata().tolist() for line in axes.lines] == [[1.0, 0.5], [0.7]]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "5"]


def test_the_figure_of_the_table_is_written(benchmark, tmp_path):
    benchmark.draw(benchmark.latest_rows(benchmark.RESULTS, benchmark.KEY), tmp_path / "few_labels.png")
    assert Image.open(tmp_path / "few_labels.png").size == (1950, 690)
