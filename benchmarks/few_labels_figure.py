"""Draws `benchmarks/figures/few_labels.png` from `benchmarks/few_labels.csv`: how much a few labels are worth.

    python benchmarks/few_labels_figure.py

Left, every method on every measured set with whole formations (of obsidians: single ones) left out; in the middle and
on the right, errors against the number of labels, means of the draws with the range of these.
"""

import argparse
from pathlib import Path

import numpy as np
from few_labels import KEY, RESULTS, errors_of_draws
from results import latest_rows

from command_line_xrf import run
from figures_xrf import BLACK, BLUE, DPI, GREEN, GREY, ORANGE, PURPLE, SKY_BLUE, STYLE, VERMILION
from files_xrf import atomic_file

FIGURE = RESULTS.parent / "figures" / "few_labels.png"
SETS = {
    ("mudrock_light_a", "leave_group_out"): "mudrocks, light\nelements, A",
    ("mudrock_light_b", "leave_group_out"): "mudrocks, light\nelements, B",
    ("mudrock_trace_a", "leave_group_out"): "mudrocks, trace\nelements, A",
    ("mudrock_trace_b", "leave_group_out"): "mudrocks, trace\nelements, B",
    ("obsidian", "leave_one_out"): "obsidians",
}
LOOKS = {  # method -> name, colour, marker
    "pretrained": ("xrf-tiny, auto", VERMILION, "o"),
    "ridge_by_row": ("ridge, ln(wt%)", BLUE, "s"),
    "ridge_linear": ("ridge, wt%", BLUE, "D"),
    "net_areas": ("net areas, ln(wt%)", GREEN, "^"),
    "net_areas_linear": ("net areas, wt%", GREEN, "<"),
    "pls": ("PLS", PURPLE, "v"),
    "svr": ("SVR", ORANGE, "P"),
    "nmf_svr": ("NMF, SVR", ORANGE, "X"),
    "cnn": ("CNN", GREY, "d"),
    "max": ("MAX's recipe", SKY_BLUE, ">"),
    "random_encoder": ("auto on random weights", BLACK, "*"),
}
WITHOUT_LABELS = ("xrf-tiny, no label", VERMILION, "o")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="CSV of few_labels.py")
    parser.add_argument("--output", type=Path, default=FIGURE, help="PNG to write")
    options = parser.parse_args()
    draw(latest_rows(options.results, KEY), options.output)
    print(options.output)


def errors(rows: list[dict], set_name: str, protocol: str, column: str, target: str | None = None) -> dict:
    """`few_labels.errors_of_draws` of one set, the mean over the targets or of one target."""
    chosen = [row for row in rows if (row["set"], row["protocol"]) == (set_name, protocol)]
    return errors_of_draws([row for row in chosen if target in (None, row["target"])], column)


def draw(rows: list[dict], path: Path) -> None:
    """Write the figure."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(13, 4.6), dpi=DPI, layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
        marks = draw_sets(left, rows)
        figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=6)
        of_obsidians = errors(rows, "obsidian", "few_labels", "relative_ln_rmse")
        draw_numbers(middle, of_obsidians, ("pretrained", "net_areas", "ridge"))
        middle.set(title="obsidians, 13 elements", ylabel="RMSE / standard deviation of ln(wt%)", ylim=(0, None))
        of_cores = errors(rows, "simulated_cores", "few_labels", "rmse", "CaCO3")
        draw_numbers(right, of_cores, ("pretrained", "ridge_linear", "random_encoder"))
        right.set(title="CaCO3, simulated cores", ylabel="RMSE (wt%)", yscale="log", yticks=[1, 2, 5, 10, 20])
        right.yaxis.set_major_formatter("{x:g}")
        right.yaxis.set_minor_formatter("")
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png")


def draw_sets(axes, rows: list[dict]) -> dict:
    """A line for each measured set, a marker for each method; the markers by their names."""
    marks = {}
    for height, (set_name, protocol) in enumerate(SETS):
        found = errors(rows, set_name, protocol, "relative_ln_rmse")
        found[WITHOUT_LABELS[0], np.inf] = errors(rows, set_name, "zero_labels", "relative_ln_rmse")["pretrained", 0.0]
        axes.axhline(height, color=GREY, linewidth=0.5, zorder=0)
        for method, (name, colour, marker) in (LOOKS | {WITHOUT_LABELS[0]: WITHOUT_LABELS}).items():
            if (method, np.inf) not in found:
                continue
            is_open = method == WITHOUT_LABELS[0]
            fill = "white" if is_open else colour
            size = 80 if method == "pretrained" else 40
            at = found[method, np.inf].mean()
            marks[name] = axes.scatter(at, height, size, fill, marker=marker, edgecolors=colour, zorder=2)
    axes.axvline(1, color=GREY, linestyle=":", linewidth=1)
    axes.text(1.01, 1.3, "predicting the mean", color=GREY, fontsize=8, rotation=90, va="top")
    axes.set(xlabel="RMSE / standard deviation of ln(wt%)", xlim=(0, 1.12), ylim=(len(SETS) - 0.5, -0.5))
    axes.set(title="whole formations left out", yticks=range(len(SETS)), yticklabels=SETS.values())
    return marks


def draw_numbers(axes, found: dict, methods: tuple[str, ...]) -> None:
    """Errors against the number of labels, for each method a line and the range of its draws."""
    numbers = sorted({number for _, number in found if np.isfinite(number)})
    places = {number: place for place, number in enumerate(numbers)}
    for method in methods:
        name, colour, marker = LOOKS["ridge_by_row" if method == "ridge" else method]
        given = [number for number in numbers if (method, number) in found]
        errs = [found[method, number] for number in given]
        x = [places[number] for number in given]
        axes.fill_between(x, [e.min() for e in errs], [e.max() for e in errs], color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, [e.mean() for e in errs], color=colour, marker=marker, label=name)
    axes.set(xlabel="labels", xticks=list(places.values()), xticklabels=[f"{number:g}" for number in numbers])
    axes.legend()


if __name__ == "__main__":
    run(main)
