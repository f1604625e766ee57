"""Which pretraining serves few laboratory values best: corpora, objectives, scalings, masks, losses, depths, compared
by the error on real labelled spectra.

    xrf-data build simulated_any --output corpora/any --num-proc 2
    xrf-data build simulated_handheld --output corpora/handheld --num-proc 2
    xrf-data build simulated_marine --output corpora/marine --num-proc 2
    xrf-data build real_mixed --data path/to/unlabelled --output corpora/real
    XRF_REAL_DATA=path/to/spectra python benchmarks/pretraining.py --corpora corpora

Every recipe trains a tiny transformer on one thread for the same processor time; the rate rises and falls along it.
Then the checkpoint is adapted as `--method auto` of `run_regression.py` does, and measured as in `few_labels.py`:

- `light`, `trace`: mudrocks on two handhelds, formations left out; `obsidians`: single ones left out. RMSE of ln(wt%)
  relative to its standard deviation, a mean over elements (and instruments).
- `zero_light`: the same without a label, of recipes that learnt labels.
- `caco3`: RMSE in wt% on simulated marine cores with 100 labels, a mean over three draws.

A row per run is appended to `benchmarks/pretraining.csv`; `--table` prints the last of every recipe.
"""

import argparse
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import real_data
from results import append_rows, latest_rows, markdown
from time_to_quality import rate_at

from command_line_xrf import run

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "pretraining.csv"
MEASURES = ("light", "trace", "obsidians", "zero_light", "caco3")
COLUMNS = ("date", "commit", "hardware", "recipe", "seed", "seconds", "steps", "spectra", *MEASURES)
BASE = {"first_channel_kev": 0.86, "patch_size": 32, "pooling": "cls"}
LOWEST_ENERGY_KEV = 0.85
LEAST_RATE = 1e-3  # of Poisson counts, in units of a spectrum's mean
DRAWS = SimpleNamespace(seeds=[0, 1, 2], num_labels=[100])


@dataclass(frozen=True)
class Recipe:
    """One way to pretrain; `changes` are fields of the configuration.

    Args:
        stages: what is learnt one after the other, in equal times: `masked`, `labels`, or `both` at once.
        corpora: folders of the corpora that are learnt from.
        poisson: masked: the likelihood of counts in place of the squared error of scaled ones.
        efficiency_sd: labels: of the uncertain efficiency of spectra, 0 for none.
    """

    stages: tuple[str, ...] = ("masked",)
    corpora: tuple[str, ...] = ("any", "handheld")
    scaling: str = "sqrt"
    poisson: bool = False
    efficiency_sd: float = 0.0
    optimizer: str = "adamw"
    batch_size: int = 64
    learning_rate: float = 1e-3
    changes: tuple[tuple[str, object], ...] = ()

    @property
    def learns_labels(self) -> bool:
        return not {"labels", "both"}.isdisjoint(self.stages)

    def but(self, **changes) -> "Recipe":
        config = [(name, changes.pop(name)) for name in list(changes) if name not in Recipe.__dataclass_fields__]
        return replace(self, changes=(*self.changes, *config), **changes)


MASKED, LABELS = Recipe(), Recipe(("labels",))
TWO_STAGES = Recipe(("masked", "labels"))
MUON = {"optimizer": "muon", "batch_size": 128, "learning_rate": 2e-3}
MUON_1024 = MUON | {"batch_size": 1024}
PERCEPTRON = {"num_hidden_layers": 0, "perceptron_size": 512, "patch_size": 64}
RECIPES = {
    "random weights": Recipe(()),
    "masked": MASKED,
    "labels": LABELS,
    "masked, then labels": TWO_STAGES,
    "masked and labels": Recipe(("both",)),
    "masked, marine": MASKED.but(corpora=("marine",)),
    "masked, real": MASKED.but(corpora=("real",)),
    "masked, simulated and real": MASKED.but(corpora=("any", "handheld", "real")),
    "masked, log": MASKED.but(scaling="log"),
    "masked, standardize": MASKED.but(scaling="standardize"),
    "masked, channel": MASKED.but(scaling="channel"),
    "masked, ratio 0.3": MASKED.but(mask_ratio=0.3),
    "masked, ratio 0.75": MASKED.but(mask_ratio=0.75),
    "masked, patch 16": MASKED.but(patch_size=16),
    "masked, patch 64": MASKED.but(patch_size=64),
    "masked, Poisson": MASKED.but(poisson=True),
    "masked, decoder of 1 layer": MASKED.but(decoder_num_hidden_layers=1),
    "masked, decoder of 4 layers": MASKED.but(decoder_num_hidden_layers=4),
    "masked, Muon": MASKED.but(**MUON),
    "labels, Muon": LABELS.but(**MUON),
    "masked, then labels, Muon": TWO_STAGES.but(**MUON),
    "labels, mean pooling": LABELS.but(pooling="mean"),
    "labels, perceptron": LABELS.but(batch_size=256, **PERCEPTRON),
    "labels, perceptron, Muon": LABELS.but(**MUON_1024, **PERCEPTRON),
    "labels, perceptron, Muon, efficiency": LABELS.but(**MUON_1024, **PERCEPTRON, efficiency_sd=0.1),
    "labels, perceptron, Muon, channel": LABELS.but(**MUON_1024, **PERCEPTRON, scaling="channel"),
    "labels, perceptron, Muon, log": LABELS.but(**MUON_1024, **PERCEPTRON, scaling="log"),
    "labels, perceptron, Muon, standardize": LABELS.but(**MUON_1024, **PERCEPTRON, scaling="standardize"),
    "labels, perceptron, Muon, any": LABELS.but(**MUON_1024, **PERCEPTRON, corpora=("any",)),
    "labels, perceptron, Muon, handheld": LABELS.but(**MUON_1024, **PERCEPTRON, corpora=("handheld",)),
    "labels, perceptron, Muon, with marine": LABELS.but(
        **MUON_1024, **PERCEPTRON, corpora=("any", "handheld", "marine")
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--corpora", type=Path, help="folder with the corpora any, handheld, marine and real")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--seconds", type=float, default=300, help="of processor time, for every recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="CSV that rows are appended to")
    parser.add_argument("--table", action="store_true", help="only print the table of earlier results")
    args = parser.parse_args()
    if not args.table:
        if args.corpora is None:
            raise ValueError("There is nothing to train on; name a folder of corpora with --corpora.")
        from training_xrf import provenance

        origin, folder = provenance(), real_data.required()
        for name in args.recipes:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                row = pool.submit(measure, name, args.corpora, folder, args.seconds, args.seed).result()
            append_rows(args.results, COLUMNS, [{**origin, "recipe": name, "seed": args.seed, **row}])
            print(name, *(f"{column} {value}" for column, value in row.items()), sep="  ", flush=True)
    print(table(args.results))


def measure(name: str, corpora: Path, folder: Path, seconds: float, seed: int) -> dict:
    """Pretrain by one recipe and measure what comes out."""
    import torch

    torch.set_num_threads(1)
    recipe = RECIPES[name]
    with tempfile.TemporaryDirectory() as checkpoint:
        row = pretrain(recipe, corpora, seconds, seed, checkpoint)
        return row | downstream(checkpoint, folder, recipe.learns_labels)


# ---------------------------------------------------------------------------------------------------------------------
# Pretraining


def pretrain(recipe: Recipe, corpora: Path, seconds: float, seed: int, checkpoint: str) -> dict:
    """Write the checkpoint that one recipe gives; what it took."""
    import torch

    import training_xrf
    from configuration_xrf import XRFMaskedConfig
    from modeling_xrf import XRFForMaskedSpectrumModeling, XRFForRegression

    torch.manual_seed(seed)
    training_xrf.keep_freed_memory()
    rows = training_rows(recipe, corpora)
    fields = {}
    if recipe.learns_labels:
        fields = label_fields(rows) | {"regression_loss": "gaussian"}
    config = XRFMaskedConfig.from_size("tiny", **BASE | dict(recipe.changes), **fields)
    masked = XRFForMaskedSpectrumModeling(config)
    model = torch.nn.ModuleDict({"masked": masked})
    if recipe.learns_labels:
        model["labels"] = XRFForRegression(config)
        model["labels"].xrf = masked.xrf
    for part in model.values():
        part.train().set_attn_implementation("eager")
    extractor = training_xrf.build_extractor(
        config, rows, "train", scaling=recipe.scaling, lowest_energy_kev=LOWEST_ENERGY_KEV
    )
    efficiency = None
    if recipe.efficiency_sd > 0:
        efficiency = training_xrf.UncertainEfficiency(extractor, recipe.efficiency_sd, seed)
    losses = {
        "masked": partial(poisson_loss if recipe.poisson else training_xrf.masked_loss, config=config, seed=seed),
        "labels": partial(training_xrf.label_loss, config=config, efficiency=efficiency),
    }
    used, steps = 0.0, 0
    for stage in recipe.stages:
        parts = list(losses) if stage == "both" else [stage]
        optimizer = training_xrf.build_optimizer(model, recipe.optimizer, recipe.learning_rate)
        batches = stream(rows, extractor, config, recipe.batch_size, seed, fields.get("target_names", ()))
        budget, start = seconds / len(recipe.stages), time.process_time()
        while (spent := time.process_time() - start) < budget:
            batch = next(batches)
            for group in optimizer.param_groups:
                group["lr"] = rate_at(spent / budget, recipe.learning_rate)
            with torch.autocast("cpu", torch.bfloat16):
                loss = sum(losses[part](model[part], batch, batch["epoch"]) for part in parts)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
        used += spent
    model["labels" if recipe.learns_labels else "masked"].save_pretrained(checkpoint)
    extractor.save_pretrained(checkpoint)
    return {"seconds": round(used), "steps": steps, "spectra": steps * recipe.batch_size}


def training_rows(recipe: Recipe, corpora: Path):
    """The training splits of a recipe's corpora, one after the other."""
    from datasets import concatenate_datasets

    from corpus_xrf import load_split
    from dataset_builder.simulation import TARGET_NAMES
    from streaming_xrf import COLUMNS as MEASURED

    splits = [load_split(str(corpora / name), "train") for name in recipe.corpora]
    wanted = [name for name in (*MEASURED, *TARGET_NAMES) if all(name in split.column_names for split in splits)]
    return concatenate_datasets([split.select_columns(wanted) for split in splits])


def label_fields(rows) -> dict:
    from dataset_builder.simulation import TARGET_NAMES
    from streaming_xrf import first_labels
    from training_xrf import LABEL_STATISTICS_SPECTRA, target_fields

    return target_fields(first_labels(rows, TARGET_NAMES, LABEL_STATISTICS_SPECTRA), TARGET_NAMES)


def stream(rows, extractor, config, batch_size: int, seed: int, targets):
    """Batches without end; a transformer's have spectra that reach similarly far."""
    from streaming_xrf import Mixture, SpectrumStream, StoredSpectra

    source = Mixture([StoredSpectra(rows, seed, targets)])
    by_reach = config.num_hidden_layers > 0
    return iter(SpectrumStream(source, extractor, "train", batch_size, seed, by_reach=by_reach))


def poisson_loss(model, batch, epoch: int, config, seed: int):
    """Half the deviance of Poisson counts from softplus of the reconstruction and a floor, for `sqrt` scaling, whose
    squares are counts in units of a spectrum's mean; a mean over the channels of hidden patches."""
    import torch

    from training_xrf import mask_noise, model_inputs

    noise = mask_noise(batch["sample_id"], config.num_patches, seed, epoch)
    outputs = model(**model_inputs(batch), noise=noise)
    rates = torch.nn.functional.softplus(outputs.reconstruction.float()) + LEAST_RATE
    counts = batch["input_values"].square()
    deviance = rates - counts * rates.log() + torch.xlogy(counts, counts) - counts
    hidden = outputs.mask.repeat_interleave(config.patch_size, dim=1)
    return (deviance * hidden).sum() / hidden.sum()


# ---------------------------------------------------------------------------------------------------------------------
# What it is good for


def downstream(checkpoint: str, folder: Path, labelled: bool) -> dict:
    """The columns `MEASURES` of a checkpoint."""
    import few_labels

    from protocols_xrf import run_protocol

    method = few_labels.pretrained_methods(checkpoint)["pretrained"]

    def errors(set_name, protocol, column="relative_ln_rmse", target=None):
        data = few_labels.SETS[set_name][0](folder)
        found = []
        for num_labels, seed, splits in few_labels.PROTOCOLS[protocol](data, DRAWS):
            if protocol == "few_labels" and num_labels is None:  # all of them
                continue
            predictions = run_protocol(method.make(data.target_names, seed), splits, data)
            rows = few_labels.result_rows(data, predictions)
            found += [row[column] for row in rows if target in (None, row["target"])]
        return found

    measured = {
        mode: errors(f"mudrock_{mode}_a", "leave_group_out") + errors(f"mudrock_{mode}_b", "leave_group_out")
        for mode in ("light", "trace")
    }
    measured["obsidians"] = errors("obsidian", "leave_one_out")
    if labelled:
        measured["zero_light"] = errors("mudrock_light_a", "zero_labels") + errors("mudrock_light_b", "zero_labels")
    measured["caco3"] = errors("simulated_cores", "few_labels", "rmse", "CaCO3")
    return {name: f"{np.mean(values):.3f}" for name, values in measured.items()}


def table(path: Path) -> str:
    """Markdown: the last run of every recipe and seed."""
    return markdown(
        ("recipe", "seed", "spectra seen", *MEASURES),
        (
            (row["recipe"], row["seed"], f"{int(row['spectra']):,}", *(row[name] for name in MEASURES))
            for row in latest_rows(path, ("recipe", "seed"))
        ),
    )


if __name__ == "__main__":
    run(main)
