"""The report of a calibration: one HTML page that needs nothing else, for the screen and for paper.

`Report` is what a page says, whatever it is about; the functions at the end make one of a person's table.

N = spectra, T = targets.
"""

from __future__ import annotations

import base64
import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from figures_xrf import DPI, plot_parity, plot_profile, plot_residuals, plot_samples
from files_xrf import atomic_file, write_text
from laboratory_xrf import LaboratoryTable, describe, doubtful_predictions

WORTH_TELLING = 0.02  # a difference of RMSE, as a share, that the words of a report take notice of
CSS_PIXELS_PER_INCH = 96
LEAST_COVERAGE = 0.8  # of intervals of 90 %, below which a report warns of them
MOST_PROFILES = 6  # cores that a figure has room for
MOST_COLOURED_GROUPS = 10


@dataclass(frozen=True)
class Figure:
    """A PNG file and what it shows."""

    path: str | Path
    title: str
    caption: str

    @property
    def data_uri(self) -> str:
        """The image itself, as text that stands in a page."""
        return "data:image/png;base64," + base64.b64encode(Path(self.path).read_bytes()).decode("ascii")

    @property
    def width(self) -> int:
        """On the page, in CSS pixels, such that its text has the size that it was drawn for."""
        pixels = int.from_bytes(Path(self.path).read_bytes()[16:20], "big")  # of the PNG header
        return round(pixels / DPI * CSS_PIXELS_PER_INCH)


@dataclass(frozen=True)
class TargetReport:
    """What there is to say of one target.

    Args:
        name, unit (`str`): of the target.
        results (`Sequence[dict]`): rows of `finetuning_xrf.result_rows`, the method's own first; `coverage_90` and
            `width_90` where there are intervals.
        figures (`Sequence[Figure]`): in the order they are shown.
        flags (`Sequence[str]`): sentences on predictions to be careful with.
    """

    name: str
    unit: str
    results: Sequence[dict]
    figures: Sequence[Figure]
    flags: Sequence[str] = ()

    @property
    def verdict(self) -> str:
        """One sentence: how the method stands beside the best other one."""
        method, *others = self.results
        rival = min(others, key=lambda row: row["rmse"], default=None)
        if rival is None or not rival["rmse"]:
            return ""
        share = 1 - method["rmse"] / rival["rmse"]
        rmse = f"its RMSE is {quantity(rival['rmse'], self.unit)}"
        if abs(share) <= WORTH_TELLING:
            return f"As good as the best of the others, {rival['method']} ({rmse})."
        if share > 0:
            return f"{100 * share:.0f} % less error than the best of the others, {rival['method']} ({rmse})."
        return f"The simpler {rival['method']} does better here ({rmse}): prefer it, or give more labels."


@dataclass(frozen=True)
class Report:
    """All that a report says.

    Args:
        title, subtitle (`str`): headings.
        validation (`str`): how the numbers were obtained, one line.
        targets (`Sequence[TargetReport]`): a chapter each.
        facts (`Sequence[tuple[str, str]]`): of the data, name and value.
        warnings (`Sequence[str]`): why the numbers may flatter, and what else a reader must know.
        commands (`Sequence[tuple[str, str]]`): what to do next: a sentence and the command.
        provenance (`Sequence[tuple[str, str]]`): what made the numbers, name and value.
    """

    title: str
    subtitle: str
    validation: str
    targets: Sequence[TargetReport]
    facts: Sequence[tuple[str, str]]
    warnings: Sequence[str] = field(default=())
    commands: Sequence[tuple[str, str]] = field(default=())
    provenance: Sequence[tuple[str, str]] = field(default=())


def number(value: float | None, digits: int = 3) -> str:
    """Three digits, as people write them; a dash for what is not known."""
    if value is None or value != value:
        return "\N{EN DASH}"
    text = f"{value:.{digits}g}" if abs(value) > 1e-12 else "0"
    if "e" in text:
        text = f"{value:.0f}" if abs(value) >= 1 else f"{value:.1e}"
    return text.replace("-", "\N{MINUS SIGN}", 1) if value < 0 else text


def quantity(value: float | None, unit: str, digits: int = 3) -> str:
    """A number with its unit."""
    return f"{number(value, digits)} {unit}".strip()


def share(value: float | None) -> str:
    """A share as a percentage."""
    return "\N{EN DASH}" if value is None or value != value else f"{100 * value:.0f} %"


def decimals(value: float | None) -> str:
    """A ratio such as R2, with three decimals."""
    return "\N{EN DASH}" if value is None or value != value else f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def render_report(report: Report) -> str:
    """The page as HTML; texts are escaped and images embedded."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "quantity": quantity, "share": share, "decimals": decimals}
    return environment.from_string(TEMPLATE).render(report=report)


def write_report(path: str | Path, report: Report) -> None:
    """Write the page, whole or not at all."""
    write_text(path, render_report(report))


# --- of a table ---


def draw_table(table: LaboratoryTable, tested, learnt, values, bounds, folder: Path) -> list[list[Figure]]:
    """The figures of each target: parity, down the cores or sample by sample, errors; PNG files in `folder`.

    Args:
        tested (`np.ndarray`): rows that were predicted by a model that had not seen them.
        learnt (`np.ndarray`): rows that the final model, which predicted the others, learnt from.
        values (`np.ndarray` of shape `(N, T)`): predictions.
        bounds (pair of `np.ndarray` of shape `(N, T)`, *optional*): ends of the 90 % intervals.
    """
    data, figures = table.data, []
    several_groups = data.groups is not None and 2 <= len(set(data.groups[tested])) <= MOST_COLOURED_GROUPS
    band = " Bars are the intervals meant to hold 90 % of the truth." if bounds else ""
    for column, (name, unit) in enumerate(zip(data.target_names, table.target_units)):
        known = tested[~np.isnan(data.targets[tested, column])]
        references, predicted = data.targets[known, column], values[known, column]
        lower, upper = (end[:, column] for end in bounds) if bounds else (None, None)
        ends = {"lower": lower[known], "upper": upper[known]} if bounds else {}
        groups = data.groups[known] if several_groups else None
        parity, profile, samples, residuals = (
            folder / f"{kind}_{re.sub(r'[^A-Za-z0-9]+', '_', name)}.png"
            for kind in ("parity", "profile", "samples", "residuals")
        )
        intervals = (ends["lower"], ends["upper"]) if bounds else None
        plot_parity(parity, references, predicted, name, unit, groups=groups, intervals=intervals)
        drawn = [Figure(parity, "Predicted and measured", f"No point was seen by the model that predicted it.{band}")]
        unlabelled = np.setdiff1d(np.arange(len(data)), np.union1d(learnt, known))
        profiles = core_profiles(table, np.union1d(known, unlabelled), known, column, values, lower, upper)
        if profiles:
            plot_profile(profile, profiles, name, unit)
            text = "What a model says that had no label of this core, or of this block of depths, in its training."
            if not several_groups and data.groups is None:
                text = "Predictions and laboratory values."
            drawn.append(Figure(profile, "Down the core", text))
        else:
            plot_samples(samples, references, predicted, data.samples[known], name, unit, **ends)
            drawn.append(Figure(samples, "Sample by sample", f"In the order of the laboratory values.{band}"))
        plot_residuals(residuals, references, predicted, name, unit, groups)
        drawn.append(
            Figure(residuals, "Errors", "Predictions less laboratory values; the band is one RMSE wide each way.")
        )
        figures.append(drawn)
    return figures


def core_profiles(table: LaboratoryTable, rows, known, column: int, values, lower, upper) -> list[dict]:
    """For `figures_xrf.plot_profile`: of the cores that have depths, those with the most laboratory values.

    Args:
        rows, known (`np.ndarray`): spectra to draw, and those among them with a laboratory value to draw.
    """
    cores, depths_mm = np.array([spectrum.core or "" for spectrum in table.data.spectra]), table.depths_mm
    rows = rows[~np.isnan(depths_mm[rows])]
    profiles = []
    for core in np.unique(cores[known]):
        of_core = rows[cores[rows] == core]
        measured = np.isin(of_core, known)
        if len(np.unique(depths_mm[of_core])) < 3 or not measured.any():
            continue
        profile = {"core": core, "depth_mm": depths_mm[of_core], "values": values[of_core, column]}
        profile["references"] = np.where(measured, table.data.targets[of_core, column], np.nan)
        if lower is not None:
            profile |= {"lower": lower[of_core], "upper": upper[of_core]}
        profiles.append((int(measured.sum()), profile))
    most = sorted(profiles, key=lambda pair: -pair[0])[:MOST_PROFILES]
    return sorted((profile for _, profile in most), key=lambda profile: profile["core"])


def table_report(
    table: LaboratoryTable, validation: str, summary: dict, values, unfamiliar, tested, learnt, figures, commands
) -> Report:
    """The report of a calibration of a table.

    Args:
        validation (`str`): how the numbers were obtained.
        summary (`dict`): what `metrics.json` holds.
        values, unfamiliar, tested, learnt: as `laboratory_xrf.doubtful_predictions` takes them.
        figures (`list[list[Figure]]`): of each target.
        commands (`list[tuple[str, str]]`): what to do next.
    """
    targets = []
    for column, (name, unit) in enumerate(zip(table.data.target_names, table.target_units)):
        own, *others = (row for row in summary["results"] if row["target"] == name)
        if summary["model"]:
            own = {**own, "method": f"this model ({own['method']})"}
        flags = doubtful_predictions(table, values, unfamiliar, tested, learnt, column)
        if (own.get("coverage_90") or 1) < LEAST_COVERAGE:
            flags.insert(0, f"Only {share(own['coverage_90'])} of the laboratory values lie in their 90 % interval.")
        targets.append(TargetReport(name, unit, [own, *others], figures[column], flags))
    made_by = {"script": "run_regression.py", "pretrained model": summary["model"]}
    made_by |= {name: summary[name] for name in ("method", "commit", "date", "hardware", "seed")}
    return Report(
        title=f"{' and '.join(table.data.target_names)} from {Path(summary['dataset']).name}",
        subtitle=f"A calibration with {len(learnt)} laboratory values, tested on what it had not seen.",
        validation=f"{validation[0].upper()}{validation[1:]}.",
        targets=targets,
        facts=describe(table),
        warnings=summary["warnings"],
        commands=commands,
        provenance=[(name, str(value)) for name, value in made_by.items() if value is not None],
    )


def write_predictions(path: str | Path, table: LaboratoryTable, tested, values, intervals, unfamiliar) -> None:
    """A CSV row for every spectrum; `out_of_group` says whether the model that predicted it had seen nothing of its
    group.

    Args:
        intervals (`dict[float, tuple]`): coverage -> (lower, upper), each `(N, T)`.
        values, unfamiliar, tested: as `laboratory_xrf.doubtful_predictions` takes them.
    """
    data = table.data
    out_of_group = np.isin(np.arange(len(data)), tested)
    columns = {
        "file": table.files,
        "sample": data.samples,
        "core": [spectrum.core or "" for spectrum in data.spectra],
        "depth_mm": _texts(table.depths_mm),
        "out_of_group": out_of_group,
    }
    for column, name in enumerate(data.target_names):
        columns[f"{name}_laboratory"] = _texts(data.targets[:, column])
        columns[name] = _texts(values[:, column])
        for coverage, ends in intervals.items():
            for end, bound in zip(("lower", "upper"), ends):
                columns[f"{name}_{end}_{round(100 * coverage)}"] = _texts(bound[:, column])
    if unfamiliar is not None:
        columns["unfamiliar"] = unfamiliar
    with atomic_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))


def _texts(values) -> list[str]:
    return ["" if np.isnan(value) else f"{value:.6g}" for value in values]


TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ report.title }}</title>
<style>
:root { --ink: #1d2733; --soft: #5b6877; --line: #e3e8ee; --paper: #ffffff; --ground: #f5f7f9; --blue: #0072b2;
        --amber: #b26a00; --amber-ground: #fff8ec; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.55; font-size: 16px;
       font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 940px; margin: 0 auto; padding: 48px 24px 72px; }
header { margin-bottom: 32px; }
h1 { font-size: 32px; line-height: 1.2; margin: 0 0 8px; font-weight: 650; letter-spacing: -0.01em; }
h2 { font-size: 21px; margin: 0 0 6px; font-weight: 620; }
h3 { font-size: 16px; margin: 32px 0 4px; font-weight: 620; }
p { margin: 0 0 12px; }
.soft { color: var(--soft); }
.note { font-size: 14px; margin-top: 14px; }
.lead { color: var(--soft); font-size: 17px; margin: 0; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 28px 32px;
          margin: 0 0 20px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 1px; margin: 18px 0 14px;
         background: var(--line); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.card { background: var(--paper); padding: 14px 18px; }
.card b { display: block; font-size: 23px; font-weight: 620; white-space: nowrap;
          line-height: 1.25; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 13.5px; }
.verdict { border-left: 3px solid var(--blue); padding: 2px 0 2px 14px; margin: 0 0 8px; }
.warnings { background: var(--amber-ground); border-color: #f0dfc0; }
.warnings h2 { color: var(--amber); }
ul { margin: 8px 0 0; padding-left: 20px; }
li { margin: 0 0 6px; }
.scroll { overflow-x: auto; margin-top: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th { text-align: right; color: var(--soft); font-weight: 500; padding: 7px 8px; border-bottom: 1px solid var(--line);
     white-space: nowrap; }
td { text-align: right; padding: 8px 8px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr:last-child td { border-bottom: 0; }
tr.own td { font-weight: 620; }
.facts td:last-child { text-align: left; white-space: normal; width: 100%; }
.facts td:first-child { color: var(--soft); vertical-align: top; padding-right: 24px; }
figure { margin: 12px 0 0; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; max-height: 780px; }
figcaption { color: var(--soft); font-size: 14px; }
pre { background: var(--ground); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px;
      margin: 6px 0 18px; overflow-x: auto;
      font: 13.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
footer { color: var(--soft); font-size: 13.5px; padding: 4px 32px; }
@media (max-width: 600px) { main { padding: 24px 12px; } section { padding: 20px 18px; } h1 { font-size: 26px; } }
@media print {
  body { background: #fff; font-size: 11pt; }
  main { max-width: none; padding: 0; }
  section { border: 0; border-radius: 0; padding: 0; margin: 0 0 18pt; }
  .warnings { padding: 10pt; border: 1px solid #f0dfc0; }
  figure, .cards, tr, pre, .warnings { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  figure img { max-height: 15cm; }
  pre { white-space: pre-wrap; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
</style>
</head>
<body>
<main>
<header>
<h1>{{ report.title }}</h1>
<p class="lead">{{ report.subtitle }}</p>
</header>
{% for target in report.targets %}
{% set own = target.results[0] %}
<section>
<h2>{{ target.name }}</h2>
<p class="soft">{{ report.validation }}</p>
<div class="cards">
<div class="card"><b>{{ own.r2 | decimals }}</b><span>R² of {{ own.n }} spectra</span></div>
<div class="card"><b>{{ own.rmse | quantity(target.unit) }}</b><span>RMSE, the typical error</span></div>
<div class="card"><b>{{ own.bias | quantity(target.unit, 2) }}</b><span>bias</span></div>
{% if own.coverage_90 is defined %}
<div class="card"><b>{{ own.coverage_90 | share }}</b><span>within the 90 % interval</span></div>
{% endif %}
</div>
{% if target.verdict %}
<p class="verdict">{{ target.verdict }}</p>
{% endif %}
{% if target.flags %}
<ul>
{% for flag in target.flags %}
<li>{{ flag }}</li>
{% endfor %}
</ul>
{% endif %}
{% for figure in target.figures %}
<h3>{{ figure.title }}</h3>
<figure>
<figcaption>{{ figure.caption }}</figcaption>
<img src="{{ figure.data_uri }}" width="{{ figure.width }}" alt="{{ figure.title }} of {{ target.name }}">
</figure>
{% endfor %}
<h3>Beside other methods</h3>
<p class="soft">All were fitted to the same rows and asked for the same others.</p>
<div class="scroll">
<table>
<tr><th>method</th><th>R²</th><th>RMSE</th><th>MAE</th><th>bias</th><th>RPD</th><th>RPIQ</th>
<th>in 90 % interval</th><th>width</th></tr>
{% for row in target.results %}
<tr{% if loop.first %} class="own"{% endif %}><td>{{ row.method }}</td><td>{{ row.r2 | decimals }}</td>
<td>{{ row.rmse | number }}</td><td>{{ row.mae | number }}</td><td>{{ row.bias | number }}</td>
<td>{{ row.rpd | number }}</td><td>{{ row.rpiq | number }}</td>
<td>{{ row.coverage_90 | default(none) | share }}</td><td>{{ row.width_90 | default(none) | number }}</td></tr>
{% endfor %}
</table>
</div>
{% if target.unit %}
<p class="soft note">RMSE, MAE, bias and width in {{ target.unit }}. RPD and RPIQ are the standard deviation and the
interquartile range of the laboratory values over the RMSE: how many times the spread exceeds the error.</p>
{% endif %}
</section>
{% endfor %}
{% if report.warnings %}
<section class="warnings">
<h2>Before you rely on these numbers</h2>
<ul>
{% for warning in report.warnings %}
<li>{{ warning }}</li>
{% endfor %}
</ul>
</section>
{% endif %}
<section>
<h2>The data</h2>
<table class="facts">
{% for name, value in report.facts %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}
</table>
</section>
{% if report.commands %}
<section>
<h2>What to do next</h2>
{% for text, command in report.commands %}
<p>{{ text }}</p>
<pre>{{ command }}</pre>
{% endfor %}
</section>
{% endif %}
<section>
<h2>How these numbers were made</h2>
<table class="facts">
{% for name, value in report.provenance %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}
</table>
</section>
</main>
</body>
</html>
"""

__all__ = ["Figure", "Report", "TargetReport", "render_report", "write_report"]
