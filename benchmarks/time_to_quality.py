"""How soon masked pretraining reaches the quality that its classic form reaches after a whole schedule.

    xrf-data build simulated_marine --output corpora/marine --num-proc 2
    XRF_REAL_DATA=path/to/spectra python benchmarks/time_to_quality.py --dataset corpora/marine

Every recipe trains a tiny model from random weights on simulated marine sediments, for as many seconds of training as
it is given; the rate rises and falls along this clock, which stands still during validation. `classic` is
`benchmarks/classic.py` with MAX's optimiser; all others are this library's form, and have a third of its time.

`error` is the mean squared error, in scaled counts, over the channels of hidden patches of the validation split: half
of the measured patches of each spectrum, the same ones for every recipe, whatever it was trained with. `r2` sets it
against the mean spectrum. `caco3` is the RMSE in wt% of a ridge regression on the embeddings, fitted to spectra of the
training split and tested on the validation split, and `rocks` the RMSE of ln(wt%) relative to its standard deviation,
a mean over elements, of one on 26 mudrocks by a handheld, formation by formation, where there are such spectra.

Rows, one at every validation, are appended to `benchmarks/time_to_quality.csv`; `--table` prints what every recipe's
last run came to.
"""

import argparse
import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import real_data
from results import append_rows, markdown, read_rows

from command_line_xrf import run

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "time_to_quality.csv"
COLUMNS = (
    "date", "commit", "hardware", "recipe", "seed", "seconds", "steps", "spectra", "spectra_per_s", "error", "r2",
    "caco3", "rocks",
)  # fmt: skip
VALIDATIONS = 8  # of every recipe, the last when its time is over
VALIDATION_SPECTRA = 1500
LABELLED = 2000  # training spectra that the ridge for CaCO3 is fitted to
WARMUP, WARMUP_START = 0.1, 0.5  # MAX: a tenth of the schedule, from half the rate
MASK_RATIO = 0.5  # of validation


@dataclass(frozen=True)
class Recipe:
    """One way to pretrain; `changes` are fields of the configuration."""

    changes: dict
    form: str = "library"
    batch_size: int = 64
    learning_rate: float = 1e-3
    initial_sd: float | None = None  # of all matrices, in place of one by their sizes
    optimizer: str = "adamw"
    cross_attention: bool = False  # of the decoder, from hidden patches to encoded ones alone (Fu et al. 2024)
    time: float = 1 / 3  # of that of the classic form

    def but(self, **changes) -> "Recipe":
        config = {name: changes.pop(name) for name in list(changes) if name not in Recipe.__dataclass_fields__}
        return replace(self, changes=self.changes | config, **changes)


SAME = Recipe({})
RECIPES = {
    "classic": SAME.but(form="classic", time=1),
    "classic, MAX's rate and batch": SAME.but(form="classic", time=1, batch_size=256, learning_rate=1e-4),
    "measured patches": SAME,
    "initialisation 0.02": SAME.but(initial_sd=0.02),
    "initialisation 0.02, rate 2e-3": SAME.but(initial_sd=0.02, learning_rate=2e-3),
    "initialisation 0.05": SAME.but(initial_sd=0.05),
    "rate 2e-3": SAME.but(learning_rate=2e-3),
    "batch 32": SAME.but(batch_size=32),
    "batch 128, rate 2e-3": SAME.but(batch_size=128, learning_rate=2e-3),
    "mask ratio 0.75": SAME.but(mask_ratio=0.75),
    "mask ratio 0.3": SAME.but(mask_ratio=0.3),
    "decoder of 1 layer": SAME.but(decoder_num_hidden_layers=1),
    "decoder of 4 layers": SAME.but(decoder_num_hidden_layers=4),
    "decoder with cross-attention": SAME.but(cross_attention=True),
    "Muon, batch 128, rate 2e-3": SAME.but(optimizer="muon", batch_size=128, learning_rate=2e-3),
    "loss on all patches": SAME.but(masked_loss_only=False),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset", help="corpus with the splits train and validation, and labels of CaCO3")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--seconds", type=float, default=600, help="of training of the classic form")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="CSV that rows are appended to")
    parser.add_argument("--table", action="store_true", help="only print the table of earlier results")
    args = parser.parse_args()
    if not args.table:
        if args.dataset is None:
            raise ValueError("There is nothing to train on; name a corpus with --dataset.")
        from training_xrf import provenance

        origin = provenance()
        for name in args.recipes:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                rows = pool.submit(measure, name, args.dataset, real_data.FOLDER, args.seconds, args.seed).result()
            append_rows(args.results, COLUMNS, ({**origin, "recipe": name, "seed": args.seed, **row} for row in rows))
            print(name, *(f"{column} {value}" for column, value in rows[-1].items()), sep="  ", flush=True)
    print(table(args.results))


def measure(name: str, dataset: str, rocks: Path, seconds: float, seed: int) -> list[dict]:
    """Train one recipe; a row at every validation."""
    import torch

    import training_xrf
    from configuration_xrf import XRFMaskedConfig

    recipe = RECIPES[name]
    torch.manual_seed(seed)
    training_xrf.keep_freed_memory()
    config = XRFMaskedConfig.from_size("tiny", **recipe.changes)
    learner = (ClassicLearner if recipe.form == "classic" else Learner)(recipe, config)
    train, validation = corpus(dataset, config)
    corpus_mean = train["input_values"].mean(0)
    generator = torch.Generator().manual_seed(seed)
    budget, rows = seconds * recipe.time, []
    used, step, epoch, order = 0.0, 0, -1, []
    while used < budget:
        start = time.perf_counter()
        if len(order) < recipe.batch_size:
            order, epoch = torch.randperm(len(train["input_values"]), generator=generator), epoch + 1
        chosen, order = order[: recipe.batch_size], order[recipe.batch_size :]
        for group in learner.optimizer.param_groups:
            group["lr"] = rate_at(used / budget, recipe.learning_rate)
        learner.step({name: values[chosen] for name, values in train.items()}, epoch, seed)
        step += 1
        used += time.perf_counter() - start
        if used >= budget * (len(rows) + 1) / VALIDATIONS:
            error, mean_error = learner.errors(validation, corpus_mean, seed)
            rows.append(
                {
                    "seconds": round(used, 1),
                    "steps": step,
                    "spectra": step * recipe.batch_size,
                    "spectra_per_s": round(step * recipe.batch_size / used, 1),
                    "error": f"{error:.6f}",
                    "r2": f"{1 - error / mean_error:.4f}",
                }
            )
    rows[-1]["caco3"] = f"{caco3_error(learner, train, validation):.3f}"
    if (rocks / "labelled").is_dir():
        rows[-1]["rocks"] = f"{rocks_error(learner, config, rocks):.3f}"
    return rows


def rate_at(progress: float, learning_rate: float) -> float:
    """The schedule of `training_xrf.learning_rate_at`, along the clock."""
    from training_xrf import learning_rate_at

    fine = 10**6
    return learning_rate_at(
        min(int(progress * fine), fine - 1), fine, learning_rate, 0.0, int(WARMUP * fine), WARMUP_START
    )


def corpus(dataset: str, config):
    """Features of the training split and of a part of the validation split."""
    import torch

    from corpus_xrf import cached_features, load_split, spread
    from feature_extraction_xrf import XRFFeatureExtractor

    extractor, parts = XRFFeatureExtractor.for_config(config), []
    for split in ("train", "validation"):
        features = cached_features(load_split(dataset, split), extractor, split, ("CaCO3",))
        if split == "validation":
            features = spread(features, VALIDATION_SPECTRA)
        columns = features.with_format("numpy")[:]
        parts.append({name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in columns.items()})
    return parts


# ---------------------------------------------------------------------------------------------------------------------
# Learners


class Learner:
    """Trains this library's form, as `run_msm.py` does."""

    def __init__(self, recipe: Recipe, config):
        import torch

        from modeling_xrf import XRFForMaskedSpectrumModeling
        from training_xrf import build_optimizer

        self.config = config
        self.model = XRFForMaskedSpectrumModeling(config).train()
        if recipe.initial_sd is not None:
            for module in self.model.modules():
                if isinstance(module, torch.nn.Linear):
                    torch.nn.init.normal_(module.weight, std=recipe.initial_sd)
        if recipe.cross_attention:
            self.model.decoder.forward = partial(cross_attention_decoder, self.model.decoder)
        self.model.set_attn_implementation("eager")
        self.optimizer = build_optimizer(self.model, recipe.optimizer, recipe.learning_rate)

    def step(self, batch, epoch: int, seed: int) -> None:
        import torch

        with torch.autocast("cpu", torch.bfloat16):
            loss = self.loss(batch, epoch, seed)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self, batch, epoch: int, seed: int):
        from corpus_xrf import measured_patches
        from training_xrf import masked_loss

        return masked_loss(self.model, measured_patches(batch), epoch, self.config, seed)

    def errors(self, validation, corpus_mean, seed: int) -> tuple[float, float]:
        """Mean squared error of the reconstruction of hidden channels, and of the mean spectrum there."""
        from training_xrf import reconstruction_errors

        trained_with, self.config.mask_ratio = self.config.mask_ratio, MASK_RATIO
        error, mean_error, number = reconstruction_errors(self.model, batches_of(validation), corpus_mean, seed)
        self.config.mask_ratio = trained_with
        return (error / number).item(), (mean_error / number).item()

    def embeddings(self, batch) -> np.ndarray:
        """Mean over the measured patches `(B, D)`."""
        import torch

        self.model.eval()
        with torch.inference_mode():
            patches = self.last_states(batch)[:, 1:]
        weight = batch["attention_mask"][..., None].float()
        return ((patches * weight).sum(1) / weight.sum(1)).numpy()

    def last_states(self, batch):
        """Of CLS and all patches `(B, P + 1, D)`."""
        return self.model.xrf(batch["input_values"], batch["attention_mask"]).last_hidden_state


class ClassicLearner(Learner):
    """Trains the classic form, on all patches."""

    def __init__(self, recipe: Recipe, config):
        import torch
        from classic import ClassicAutoencoder

        self.config, self.model = config, ClassicAutoencoder(config).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
        )

    def loss(self, batch, epoch: int, seed: int):
        return self.model(batch["input_values"])

    def errors(self, validation, corpus_mean, seed: int) -> tuple[float, float]:
        """Of the measured patches the same are hidden as in the other form, and half of all others."""
        import torch

        from training_xrf import mask_noise

        sums, number = torch.zeros(2, dtype=torch.float64), 0
        for batch in batches_of(validation):
            measured = batch["attention_mask"] != 0
            noise = mask_noise(batch["sample_id"], self.config.num_patches, seed, epoch=-1)
            hidden = later_half(noise, measured)
            late = hidden | later_half(noise, ~measured)
            with torch.inference_mode():
                reconstruction, _ = self.model.reconstruct(batch["input_values"], noise + late)
            channels = hidden.repeat_interleave(self.config.patch_size, dim=1)
            for i, guess in enumerate((reconstruction.flatten(1), corpus_mean)):
                sums[i] += ((guess - batch["input_values"]).square() * channels).sum()
            number += channels.sum().item()
        return tuple((sums / number).tolist())

    def last_states(self, batch):
        return self.model.encode(self.model.embed(batch["input_values"]))


def cross_attention_decoder(decoder, latent, places, visible, attention_mask, patch_ids, **kwargs):
    """`XRFDecoder.forward` for spectra that measured all of `patch_ids`, whose hidden patches attend to CLS and the
    encoded patches only, not to each other; encoded ones are reconstructed as 0."""
    import torch

    from modeling_xrf import eager_attention_forward

    if any(mask is not None and not mask.all() for mask in (visible, attention_mask)):
        raise ValueError("this decoder is for spectra that all measured the same patches.")
    num_patches = patch_ids.shape[1]
    hidden = torch.ones(patch_ids.shape, dtype=torch.bool).scatter(1, places, False)
    hidden = hidden.nonzero()[:, 1].view(len(places), num_patches - places.shape[1])  # (B, N - V)
    keys = decoder.embed(latent)  # (B, V + 1, E)
    keys = keys + decoder.positions(patch_ids.gather(1, places)).to(keys.dtype)
    queries = decoder.mask_token + decoder.positions(patch_ids.gather(1, hidden))[:, 1:]
    queries = queries.to(keys.dtype)
    for layer in decoder.layers:
        attention, shape = layer.attention, (len(keys), -1, decoder.config.decoder_num_attention_heads)
        normed, memory = layer.layernorm_before(queries), layer.layernorm_before(keys)
        query, key, value = (
            projection(states).view(*shape, attention.head_dim).transpose(1, 2)
            for projection, states in (
                (attention.q_proj, normed), (attention.k_proj, memory), (attention.v_proj, memory)
            )
        )  # fmt: skip
        context, _ = eager_attention_forward(attention, query, key, value, None, attention.scaling)
        queries = queries + attention.o_proj(context.reshape(queries.shape))
        queries = queries + layer.mlp(layer.layernorm_after(queries))
    patches = decoder.head(decoder.layernorm(queries))
    places = hidden[..., None].expand_as(patches)
    return patches.new_zeros(len(patches), num_patches, patches.shape[-1]).scatter(1, places, patches)


def later_half(noise, among):
    """Which of the patches `among` `(B, P)` have the higher noise: all but the whole part of half of them."""
    ranks = noise.masked_fill(~among, math.inf).argsort(dim=1).argsort(dim=1)
    return among & (ranks >= among.sum(1, keepdim=True) // 2)


def batches_of(features, size: int = 250):
    for start in range(0, len(features["input_values"]), size):
        yield {name: values[start : start + size] for name, values in features.items()}


# ---------------------------------------------------------------------------------------------------------------------
# What the embeddings are good for


class Probe:
    """A ridge regression of ln(wt%) on embeddings, as `protocols_xrf` describes a method."""

    def __init__(self, learner: Learner, config):
        self.learner, self.config = learner, config

    def fit(self, spectra, targets, groups=None):
        self.ridge = ridge().fit(self.embeddings(spectra), np.log(targets))
        return self

    def predict(self, spectra):
        return np.exp(self.ridge.predict(self.embeddings(spectra)))

    def embeddings(self, spectra) -> np.ndarray:
        from corpus_xrf import NativeSpectra, extract_tensors
        from dataset_builder import spectra_to_table
        from feature_extraction_xrf import XRFFeatureExtractor

        native = NativeSpectra.from_table(spectra_to_table(spectra))
        extractor = XRFFeatureExtractor.for_config(self.config)
        return self.learner.embeddings(extract_tensors(native, range(len(spectra)), extractor, "rocks"))


def ridge():
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 5, 33)))


def caco3_error(learner: Learner, train, validation) -> float:
    """RMSE in wt%."""
    rows = np.linspace(0, len(train["labels"]) - 1, LABELLED).astype(int)
    train, embeddings = {name: values[rows] for name, values in train.items()}, []
    for part in (train, validation):
        embeddings.append(np.concatenate([learner.embeddings(batch) for batch in batches_of(part)]))
    predictions = ridge().fit(embeddings[0], train["labels"][:, 0].numpy()).predict(embeddings[1]).clip(0, 100)
    return float(np.sqrt(np.mean((predictions - validation["labels"][:, 0].numpy()) ** 2)))


def rocks_error(learner: Learner, config, folder: Path) -> float:
    from few_labels import mudrocks

    from evaluation_xrf import mean_relative_ln_rmse
    from protocols_xrf import leave_one_group_out, run_protocol

    rocks = mudrocks(folder, "light", "a")
    predictions = run_protocol(Probe(learner, config), leave_one_group_out(rocks.groups), rocks)
    return mean_relative_ln_rmse(predictions.values, rocks.targets[predictions.rows])


def table(path: Path) -> str:
    """Markdown: how the last run of every recipe ended, and when it was as good as the classic form at its end."""
    by_recipe, found = {}, []
    for row in read_rows(path):
        run_before = by_recipe.get(row["recipe"], [row])
        goes_on = float(row["seconds"]) > float(run_before[-1]["seconds"])
        by_recipe[row["recipe"]] = [*run_before, row] if goes_on else [row]
    goal = float(by_recipe["classic"][-1]["error"]) if "classic" in by_recipe else -math.inf
    for name, own in by_recipe.items():
        reached = [row["seconds"] for row in own if float(row["error"]) <= goal]
        found.append([name, *(own[-1][column] for column in COLUMNS[5:]), reached[0] if reached else ""])
    return markdown(["recipe", *COLUMNS[5:], "as good as classic after"], found)


if __name__ == "__main__":
    run(main)
