"""The dataset card of a corpus, made from its Parquet files and, where it is there, its summary."""

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .features import FIXED_COLUMNS
from .splits import group_names

SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
SUMMARY_FILE = "corpus.json"
ROWS_AT_A_TIME = 1000
MOST_CONDITIONS = 40

COLUMN_NOTES = {
    "counts": "counts per native channel",
    "gain_kev": "channel width, keV",
    "offset_kev": "energy of channel 0, keV; the centre of channel i lies at offset_kev + gain_kev * i",
    "live_time_s": "live time, s",
    "real_time_s": "real time, s",
    "tube_kv": "tube voltage, kV",
    "tube_ua": "tube current, microampere",
    "anode": "element of the tube's anode",
    "filter": "beam filter as the instrument names it",
    "instrument": "instrument",
    "detector": "detector",
    "sample": "sample",
    "core": "core; no core, and no sample without a core, is in two splits",
    "depth_mm": "depth in the core, mm",
    "x_mm": "position on the sample or of the stage, mm",
    "y_mm": "position on the sample or of the stage, mm",
    "source": "file the spectrum comes from",
    "metadata": "other fields of the file, JSON",
    "target_units": "unit by target, JSON",
}

SIMULATION_NOTE = """\
Simulated spectra come from a physical model of tube, sample, detector and electronics with cross sections from xraylib
and Poisson counting. Samples are flat, thick and homogeneous and their minerals idealised. Results on them say nothing
about measured spectra until they are checked there.
"""

CONDITION_COLUMNS = ("instrument", "tube_kv", "anode", "filter")
SURVEYED_COLUMNS = (*CONDITION_COLUMNS, "gain_kev", "offset_kev", "live_time_s", "core", "sample", "source")


@dataclass
class ConditionSurvey:
    """What the card says of all spectra of one instrument, tube voltage, anode and filter."""

    spectra: int = 0
    channels: set = field(default_factory=set)
    energy_kev: tuple = (np.inf, -np.inf)
    live_time_s: list = field(default_factory=list)
    total_counts: list = field(default_factory=list)


@dataclass
class Survey:
    """What the card says of a corpus; `splits` holds the number of spectra and the groups of each."""

    splits: dict = field(default_factory=dict)
    conditions: dict = field(default_factory=lambda: defaultdict(ConditionSurvey))
    sources: Counter = field(default_factory=Counter)
    target_units: dict = field(default_factory=dict)
    target_values: dict = field(default_factory=lambda: defaultdict(list))


def render_card(folder, license: str | None = None) -> str:
    """Text of the corpus's `README.md`.

    Args:
        folder (path): a corpus, `data/<split>-*.parquet`.
        license (`str`, *optional*): Hub identifier of the licence; that of the summary if not given, or `other`.

    Raises:
        ValueError: the folder holds no Parquet files of spectra.
    """
    import yaml

    folder = Path(folder)
    summary = _summary(folder)
    survey = survey_corpus(folder)
    num_spectra = sum(number for number, _ in survey.splits.values())
    recipe = summary.get("recipe", {})
    simulated = [part["name"] for part in recipe.get("parts", []) if "simulation" in part]
    metadata = {
        "license": license or summary.get("license") or "other",
        "pretty_name": f"XRF spectra: {recipe['name'].replace('_', ' ')}" if "name" in recipe else "XRF spectra",
        "task_categories": ["tabular-regression"] if survey.target_units else ["other"],
        "tags": ["xrf", "x-ray-fluorescence", "spectroscopy", *(["simulation"] if simulated else [])],
        "size_categories": [next((name for limit, name in SIZE_CATEGORIES if num_spectra < limit), "n>1M")],
        "configs": [
            {
                "config_name": "default",
                # datasets keys its cache on this metadata and the folder's name alone: without what tells one corpus
                # from another, a second folder of the same name would silently be read as the first
                "description": f"corpus {summary.get('fingerprint', _files_hash(folder))[:16]}",
                "data_files": [{"split": name, "path": f"data/{name}-*.parquet"} for name in survey.splits],
            }
        ],
    }
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---",
        f"# {metadata['pretty_name']}",
        f"{num_spectra:,} energy-dispersive X-ray fluorescence spectra with native channels and energy calibration."
        + (f" {recipe['description']}" if recipe.get("description") else ""),
        "```python\nfrom datasets import load_dataset\n\n"
        'dataset = load_dataset("path/or/repository")\ndataset["train"][0]["counts"]\n```',
        "## Origin",
        *([SIMULATION_NOTE.strip()] if simulated else []),
        f"Spectra come from {_listed(survey.sources)}.",
        *_counted_out(summary),
        "## Splits\n\nBy core, or by sample where there is no core; never by row.",
        _table(
            ["split", "spectra", "cores or samples"],
            [[name, f"{number:,}", f"{len(groups):,}"] for name, (number, groups) in survey.splits.items()],
        ),
        "## Instruments and conditions",
        _conditions_table(survey.conditions),
        "## Columns",
        _table(["column", "type", "meaning"], [[n, t, COLUMN_NOTES[n]] for n, t in FIXED_COLUMNS.items()]),
    ]
    if survey.target_units:
        parts += ["## Targets\n\nNull where a target was not determined.", _targets_table(survey)]
    return "\n\n".join(parts) + "\n"


def survey_corpus(folder) -> Survey:
    """One pass over the Parquet files of a corpus.

    Raises:
        ValueError: there are none, or they are not of our schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = {path: path.name.rsplit("-", 3)[0] for path in Path(folder, "data").glob("*-?????-of-?????.parquet")}
    if not found:
        raise ValueError(f"{folder} holds no corpus; there must be files such as data/train-00000-of-00001.parquet.")
    order = ("train", "validation", "test")
    survey = Survey()
    for path in sorted(found, key=lambda path: (*(found[path] != name for name in order), path.name)):
        try:
            with pq.ParquetFile(path) as file:
                missing = [name for name in FIXED_COLUMNS if name not in file.schema_arrow.names]
                if missing:
                    raise ValueError(f"{path} is no corpus of spectra: it has no column {missing[0]!r}.")
                for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME):
                    _add_rows(survey, found[path], batch)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is not a complete Parquet file ({error}); write it again.") from None
    return survey


def _add_rows(survey, split, batch):
    rows = {name: batch.column(name).to_pylist() for name in SURVEYED_COLUMNS}
    number, groups = survey.splits.get(split, (0, set()))
    survey.splits[split] = (number + len(batch), groups | set(group_names(rows["core"], rows["sample"])))
    survey.sources.update(rows["source"])

    counts = batch.column("counts")
    num_channels = counts.value_lengths().to_numpy()
    below = np.concatenate([[0.0], np.cumsum(counts.flatten().to_numpy(), dtype=np.float64)])
    ends = np.cumsum(num_channels)
    totals = below[ends] - below[ends - num_channels]
    for row, condition in enumerate(zip(*(rows[name] for name in CONDITION_COLUMNS), strict=True)):
        of_condition = survey.conditions[condition]
        of_condition.spectra += 1
        of_condition.channels.add(int(num_channels[row]))
        lowest_kev = rows["offset_kev"][row]
        highest_kev = lowest_kev + rows["gain_kev"][row] * (num_channels[row] - 1)
        known = of_condition.energy_kev
        of_condition.energy_kev = (min(known[0], lowest_kev), max(known[1], highest_kev))
        of_condition.total_counts.append(float(totals[row]))
        if rows["live_time_s"][row] is not None:
            of_condition.live_time_s.append(rows["live_time_s"][row])

    survey.target_units |= json.loads(batch.column("target_units")[0].as_py() or "{}")
    for name in survey.target_units:
        survey.target_values[name].append(batch.column(name).to_numpy(zero_copy_only=False).astype(np.float64))


def _summary(folder) -> dict:
    path = folder / SUMMARY_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _files_hash(folder) -> str:
    sizes = sorted((path.name, path.stat().st_size) for path in (folder / "data").glob("*.parquet"))
    return hashlib.sha256(repr(sizes).encode()).hexdigest()


def _listed(sources) -> str:
    names = sorted(name for name in sources if name)
    rest = f" and {len(names) - 10:,} more files" if len(names) > 10 else ""
    return (", ".join(f"`{name}`" for name in names[:10]) or "files that are not named") + rest


def _counted_out(summary) -> list[str]:
    """What the builder left out, and what it was told, where its summary is there."""
    if not summary:
        return []
    rejected, duplicates = summary["rejected"], summary["duplicates"]
    unused = sum(part["read"] - part["used"] for part in summary["parts"].values()) - duplicates
    sentences = [f"Left out: {duplicates:,} exact duplicates"]
    if unused:
        sentences.append(f"{unused:,} beyond their part's share")
    sentences.append(f"{rejected:,} files or spectra that cannot be used" + (" (`rejected.csv`)" if rejected else ""))
    recipe = f"`{json.dumps(summary['recipe'], ensure_ascii=False)}`"
    return [", ".join(sentences) + ".", f"Recipe: {recipe if len(recipe) < 2000 else f'see `{SUMMARY_FILE}`'}."]


def _conditions_table(conditions) -> str:
    header = ["instrument", "kV", "anode", "filter", "spectra", "channels", "keV", "live time, s", "counts a spectrum"]
    most_first = sorted(conditions.items(), key=lambda entry: (-entry[1].spectra, str(entry[0])))
    rows = []
    for (instrument, tube_kv, anode, filter_name), found in most_first[:MOST_CONDITIONS]:
        rows.append(
            [
                instrument or "not stated",
                "-" if tube_kv is None else f"{tube_kv:g}",
                anode or "-",
                filter_name or "-",
                f"{found.spectra:,}",
                _range(found.channels, "d"),
                f"{found.energy_kev[0]:.2f} to {found.energy_kev[1]:.2f}",
                _range(found.live_time_s, ".4g") if found.live_time_s else "-",
                f"{np.median(found.total_counts):.3g} ({_range(found.total_counts, '.3g')})",
            ]
        )
    table = _table(header, rows)
    rest = most_first[MOST_CONDITIONS:]
    if rest:
        number = sum(found.spectra for _, found in rest)
        table += f"\n\nand {len(rest):,} more conditions with {number:,} spectra."
    return table + "\n\nCounts a spectrum: median and range."


def _range(values, form) -> str:
    lowest, highest = f"{min(values):{form}}", f"{max(values):{form}}"
    return lowest if lowest == highest else f"{lowest} to {highest}"


def _targets_table(survey) -> str:
    rows = []
    for name, unit in survey.target_units.items():
        values = np.concatenate(survey.target_values[name])
        values = values[np.isfinite(values)]
        statistics = [values.mean(), values.std(), values.min(), values.max()] if values.size else [np.nan] * 4
        rows.append([name, unit, str(values.size), *(f"{value:.4g}" for value in statistics)])
    return _table(["target", "unit", "n", "mean", "sd", "min", "max"], rows)


def _table(header, rows) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
