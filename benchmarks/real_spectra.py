"""Real spectra from end to end: pretrain on unlabelled spectra of many instruments, fine-tune on the mudrocks of one
handheld instrument, predict those of another.

    XRF_REAL_DATA=path/to/spectra python benchmarks/real_spectra.py

The same 26 rocks were measured on both instruments, so the table tells how a calibration moves between instruments,
not how it does on new rocks. It compares the pretrained model, adapted in three ways, with the same network from
random weights, and with what is usual: the mean, and ridge regression on channels as recorded and on the energy grid.
Rows are appended to `benchmarks/real_spectra.csv`; `--table` prints the means over the seeds of the last commit in it.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import real_data
from results import append_rows, last_rows, markdown

from command_line_xrf import run

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "real_spectra.csv"
TARGETS = ("Al", "Si", "K", "Ca", "Ti", "Fe")
COLUMNS = ("date", "commit", "hardware", "seed", "pretraining_steps", "method", "target", "r2", "rmse", "bias", "n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "real_spectra", help="of corpora and runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="CSV that rows are appended to")
    parser.add_argument("--pretraining_steps", type=int, default=3000, help="steps of 64 spectra")
    parser.add_argument("--epochs", type=int, default=150, help="of fine-tuning")
    parser.add_argument("--model_size", default="tiny", help="tiny, small, base or large")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of fine-tuning")
    parser.add_argument("--table", action="store_true", help="only print the table of earlier results")
    args = parser.parse_args()
    if args.table:
        print(table(args.results))
        return

    data = real_data.required()
    unlabelled, mudrocks = build_corpora(data, args.output_dir)
    base = pretrain(unlabelled, args)
    scratch = random_weights(base, args.output_dir / "random_weights")
    classical = ridge_reports(mudrocks, base)
    for seed in args.seeds:
        found = {"mean": {}, **classical}
        for name, model, method in (
            ("LoRA", base, "lora"),
            ("full", base, "full"),
            ("probe", base, "probe"),
            ("full, from random weights", scratch, "full"),
        ):
            folder = args.output_dir / re.sub(r"\W+", "_", f"{name}_{seed}")
            for row in fine_tune(model, mudrocks, method, seed, args.epochs, folder)["results"]:
                if row["split"] == "test" and row["method"] in (method, "mean"):
                    found.setdefault(name if row["method"] == method else "mean", {})[row["target"]] = row
        append_results(args.results, seed, args.pretraining_steps, found)
    print(table(args.results))


def build_corpora(data: Path, folder: Path) -> tuple[Path, Path]:
    """The unlabelled spectra, and the mudrocks: instrument A to train on, instrument B as the test split."""
    import pyarrow.parquet as pq

    from dataset_builder import Recipe, build_corpus, read_spectra, spectra_to_table
    from files_xrf import atomic_folder

    recipe = replace(Recipe.from_yaml("real_mixed"), test_fraction=0.0)
    unlabelled = build_corpus(recipe=recipe, data_root=data / "unlabelled", output_dir=folder / "unlabelled")
    mudrocks = folder / "mudrocks"
    if not mudrocks.exists():
        with atomic_folder(mudrocks) as temporary:
            (temporary / "data").mkdir()
            for split, instrument in (("train", "a"), ("test", "b")):
                spectra = read_spectra(data / "labelled" / f"mudrock_light_instrument_{instrument}.npz")
                # neighbouring depths of one formation are alike: they must not be set apart from each other
                spectra = [replace(spectrum, core=formation(spectrum.sample)) for spectrum in spectra]
                table = spectra_to_table(spectra, TARGETS, dict.fromkeys(TARGETS, "wt%"))
                pq.write_table(table, temporary / "data" / f"{split}-00000-of-00001.parquet")
    return unlabelled, mudrocks


def formation(sample: str) -> str:
    """The name before the depth: `BL-1` of `BL-1-122`, `W` of `W17`."""
    return re.fullmatch(r"(.*?)-?\d+", sample)[1]


def pretrain(corpus: Path, args) -> Path:
    folder = args.output_dir / f"pretraining_{args.model_size}_{args.pretraining_steps}"
    if not (folder / "model").exists():
        script = ["-m", "accelerate.commands.launch", "--config_file", ROOT / "scripts" / "configs" / "cpu.yaml"]
        call(
            *script, ROOT / "scripts" / "run_msm.py", "--dataset", corpus, "--output_dir", folder, "--resume",
            "--model_size", args.model_size, "--max_steps", args.pretraining_steps, "--batch_size", 64,
            "--learning_rate", 1e-3, "--mixed_precision", "bf16", "--validate_every", 500,
        )  # fmt: skip
    return folder / "model"


def random_weights(base: Path, folder: Path) -> Path:
    """The same network before any training."""
    from transformers import set_seed

    from feature_extraction_xrf import XRFFeatureExtractor
    from hub_xrf import save_repository
    from modeling_xrf import XRFForMaskedSpectrumModeling, XRFModel

    set_seed(0)
    model = XRFForMaskedSpectrumModeling(XRFModel.config_class.from_pretrained(base))
    return save_repository(folder, model, XRFFeatureExtractor.from_pretrained(base), (base / "README.md").read_text())


def fine_tune(model: Path, corpus: Path, method: str, seed: int, epochs: int, folder: Path) -> dict:
    """Metrics that `run_regression.py` measured; cores set aside from instrument A stop the training."""
    if not (folder / "metrics.json").exists():
        call(
            ROOT / "scripts" / "run_regression.py", "--model_name_or_path", model, "--dataset", corpus,
            "--targets", *TARGETS, "--method", method, "--seed", seed, "--epochs", epochs, "--patience", 30,
            "--output_dir", folder,
        )  # fmt: skip
    return json.loads((folder / "metrics.json").read_text())


def call(*arguments) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, check=True)


def ridge_reports(corpus: Path, base: Path) -> dict[str, dict]:
    """Ridge regression on the channels as recorded, as if both instruments had one energy scale, and on the model's
    energy grid; the latter also for ln(wt%), with every penalty chosen on instrument A."""
    from corpus_xrf import load_split
    from evaluation_xrf import RidgeBaseline, regression_report
    from feature_extraction_xrf import XRFFeatureExtractor

    extractor = XRFFeatureExtractor.from_pretrained(base)
    raw, grid, labels = {}, {}, {}
    for split in ("train", "test"):
        columns = load_split(corpus, split).with_format("numpy")[:]
        raw[split] = np.stack(columns["counts"]).astype(np.float64)
        grid[split], _ = extractor.rebin(raw[split], columns["gain_kev"], columns["offset_kev"])
        labels[split] = np.stack([columns[target] for target in TARGETS], axis=1)
        if split == "train":
            groups = columns["core"]
    reports = {}
    for name, counts, log_target in (
        ("ridge, channels as recorded", raw, False),
        ("ridge, energy grid", grid, False),
        ("ridge of ln(wt%), energy grid", grid, True),
    ):
        ridge = RidgeBaseline(TARGETS, log_target=log_target).fit(counts["train"], labels["train"], groups)
        reports[name] = regression_report(ridge.predict(counts["test"]).clip(0, 100), labels["test"], TARGETS)
    return reports


def append_results(path: Path, seed: int, steps: int, reports_by_method: dict) -> None:
    from training_xrf import provenance

    origin = provenance() | {"seed": seed, "pretraining_steps": steps}
    rows = [
        {**metrics, **origin, "method": method, "target": target}
        for method, report in reports_by_method.items()
        for target, metrics in report.items()
    ]
    append_rows(path, COLUMNS, ({name: row.get(name) for name in COLUMNS} for row in rows))


def table(path: Path) -> str:
    """Markdown: RMSE in wt% by method and target, mean over the seeds of the last commit, best in bold; last, the mean
    over the targets of the RMSE relative to that of predicting the mean."""
    rows = last_rows(path)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    rmse = {
        (method, target): statistics.fmean(
            float(row["rmse"]) for row in rows if (row["method"], row["target"]) == (method, target)
        )
        for method in methods
        for target in TARGETS
    }
    for method in methods:
        rmse[method, "relative"] = statistics.fmean(rmse[method, target] / rmse["mean", target] for target in TARGETS)
    columns = (*TARGETS, "relative")
    best = {column: min(rmse[method, column] for method in methods) for column in columns}
    lines = []
    for method in methods:
        cells = [f"**{v:.3g}**" if v == best[c] else f"{v:.3g}" for c in columns for v in [rmse[method, c]]]
        lines.append((method, *cells))
    return markdown(("method", *columns), lines)


if __name__ == "__main__":
    run(main)
