"""The dataset card of a corpus: valid Hub metadata, splits, columns, targets and limits."""

import json

import numpy as np

from .features import FIXED_COLUMNS
from .splits import group_names

SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))

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
The spectra are simulated: Ebel's tube spectrum, primary fluorescence and single scattering in a thick homogeneous
sample with cross sections from xraylib, a silicon drift detector with escape, tail and pile-up, and Poisson counting.
Secondary fluorescence, grain size and surface roughness are left out, and the minerals are idealised. Results on them
say nothing about measured sediment until they are checked there.
"""


def render_card(config, splits: dict, license: str) -> str:
    """Text of the corpus's `README.md`.

    Args:
        config (`XRFBuilderConfig`): how the corpus was built.
        splits (`dict[str, datasets.Dataset]`): the dataset of every split.
        license (`str`): Hub identifier of the licence.
    """
    import yaml

    num_spectra = sum(len(dataset) for dataset in splits.values())
    simulated = config.source == "simulated"
    features = next(iter(splits.values())).features
    target_names = [name for name in features if name not in FIXED_COLUMNS]
    metadata = {
        "license": license,
        "pretty_name": "Simulated marine sediment XRF spectra" if simulated else "XRF spectra",
        "task_categories": ["tabular-regression"] if target_names else ["other"],
        "tags": [
            "xrf",
            "x-ray-fluorescence",
            "spectroscopy",
            *(["simulation", "marine-sediment"] if simulated else []),
        ],
        "size_categories": [next((name for limit, name in SIZE_CATEGORIES if num_spectra < limit), "n>1M")],
        "configs": [
            {
                "config_name": "default",
                # datasets keys its cache on this metadata and the folder's name alone: without what tells one corpus
                # from another, a second folder of the same name would silently be read as the first
                "description": f"corpus {config.fingerprint()[:16]}",
                "data_files": [{"split": name, "path": f"data/{name}-*.parquet"} for name in splits],
            }
        ],
    }
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---",
        f"# {metadata['pretty_name']}",
        f"{num_spectra:,} energy-dispersive X-ray fluorescence spectra with native channels and energy calibration.",
        "```python\nfrom datasets import load_dataset\n\n"
        'dataset = load_dataset("path/or/repository")\ndataset["train"][0]["counts"]\n```',
        "## Origin",
        SIMULATION_NOTE.strip() if simulated else f"Built from {_files(splits)}.",
        _options(config),
        "## Splits\n\nBy core, or by sample where there is no core; never by row.",
        _splits_table(splits),
        "## Columns",
        _table(["column", "type", "meaning"], [[n, t, COLUMN_NOTES[n]] for n, t in FIXED_COLUMNS.items()]),
    ]
    if target_names:
        parts += ["## Targets\n\nNull where a target was not determined.", _targets_table(splits, target_names)]
    return "\n\n".join(parts) + "\n"


def _files(splits):
    names = sorted({name for dataset in splits.values() for name in dataset.unique("source") if name})
    return ", ".join(f"`{name}`" for name in names[:10]) + (
        f" and {len(names) - 10} more files" if len(names) > 10 else ""
    )


def _options(config):
    options = {"seed": config.seed}
    if config.source == "simulated":
        options |= {"num_spectra": config.num_spectra, "num_cores": config.num_cores}
    else:
        options |= {"column_mapping": config.column_mapping, "core_pattern": config.core_pattern}
    return f"Options: `{json.dumps(options, ensure_ascii=False)}`."


def _splits_table(splits):
    rows = []
    for name, dataset in splits.items():
        groups = set(group_names(dataset["core"], dataset["sample"]))
        rows.append([name, f"{len(dataset):,}", f"{len(groups):,}"])
    return _table(["split", "spectra", "cores or samples"], rows)


def _targets_table(splits, target_names):
    first = next(iter(splits.values()))
    units = json.loads(first[0]["target_units"])
    rows = []
    for name in target_names:
        columns = [dataset.data.table[name].to_pandas().to_numpy(np.float64) for dataset in splits.values()]
        values = np.concatenate(columns)
        values = values[np.isfinite(values)]
        statistics = [values.mean(), values.std(), values.min(), values.max()] if values.size else [np.nan] * 4
        rows.append([name, units[name], str(values.size), *(f"{value:.4g}" for value in statistics)])
    return _table(["target", "unit", "n", "mean", "sd", "min", "max"], rows)


def _table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
