"""Few labels, honest numbers: calibrations compared on real spectra and on simulated cores, all fitted the same way.

    XRF_REAL_DATA=path/to/spectra python benchmarks/few_labels.py --sets mudrock_light_a --methods ridge net_areas
    XRF_REAL_DATA=path/to/spectra python benchmarks/few_labels.py --protocols instruments
    python benchmarks/few_labels.py --sets simulated_cores --methods max --max_model runs/max-tiny/model
    python benchmarks/few_labels.py --tables

Without options: all sets, all protocols but `five_fold`, all methods but `max`, among them the ways of adapting the
checkpoint `--model`. `max` is full fine-tuning of a masked autoencoder that was pretrained by MAX's recipe. Every
choice of a method is made inside the training part of a split (`protocols_xrf`). Targets of a real set are those
determined in all its samples, in wt%. A row per target is appended to `benchmarks/few_labels.csv` as soon as a method
is through; `--tables` prints Markdown tables from the last row of each kind.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import real_data
from results import append_rows, latest_rows, markdown

import protocols_xrf as protocols
from command_line_xrf import run
from protocols_xrf import CalibrationSet

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "few_labels.csv"
COVERAGES = (0.8, 0.9)
INTERVAL_COLUMNS = [f"{name}_{100 * share:.0f}" for share in COVERAGES for name in ("coverage", "width", "score")]
COLUMNS = [
    *("date", "commit", "hardware", "set", "protocol", "num_labels", "seed", "method", "target", "n"),
    *("r2", "rmse", "mae", "bias", "rpd", "rpiq", "ln_rmse", "relative_ln_rmse", "ln_r", "scale", *INTERVAL_COLUMNS),
    "seconds",
]
KEY = ("set", "protocol", "num_labels", "seed", "method", "target")
CHECKPOINT = ROOT / "model_cards" / "xrf-tiny"
# What 15 kV excites and a detector in air sees, of what is determined in all 26 mudrocks; Na and Ba are not seen.
LIGHT_ELEMENTS = ("Mg", "Al", "Si", "P", "S", "K", "Ca", "Ti", "V", "Cr", "Mn", "Fe")
SIMULATED = {"num_spectra": 1500, "num_cores": 50, "seed": 41_000}


# --- sets: name -> function of the data folder ---


def mudrocks(folder: Path, mode: str, instruments: str) -> CalibrationSet:
    """26 mudrocks on one or both handheld instruments, grouped by core or formation."""
    from dataset_builder import read_spectra

    files = [folder / "labelled" / f"mudrock_{mode}_instrument_{name}.npz" for name in instruments]
    per_instrument = [read_spectra(file) for file in files]
    spectra = [spectrum for part in per_instrument for spectrum in part]
    samples = np.array([spectrum.sample for spectrum in spectra])
    names = LIGHT_ELEMENTS if mode == "light" else determined_in_all(spectra)
    return CalibrationSet(
        spectra,
        target_values(spectra, names),
        names,
        samples,
        groups=np.array([protocols.formation(sample) for sample in samples]),
        instruments=np.repeat(list(instruments), list(map(len, per_instrument))),
    )


def obsidians(folder: Path) -> CalibrationSet:
    """40 obsidians from 40 sources on one handheld instrument."""
    from dataset_builder import read_spectra

    spectra = read_spectra(folder / "labelled" / "obsidian_instrument_c.npz")
    names = determined_in_all(spectra)
    return CalibrationSet(
        spectra, target_values(spectra, names), names, np.array([spectrum.sample for spectrum in spectra])
    )


def simulated_cores(_) -> CalibrationSet:
    """CaCO3 and TOC of simulated marine cores under the Avaatech preset."""
    from dataset_builder import SimulatedSource

    source = SimulatedSource("marine_sediment", "avaatech_10kv", **SIMULATED)
    spectra = [
        spectrum for unit in range(source.num_units) for batch in source.simulate(unit) for spectrum in batch.spectra()
    ]
    names = ("CaCO3", "TOC")
    return CalibrationSet(
        spectra,
        target_values(spectra, names),
        names,
        np.array([spectrum.sample for spectrum in spectra]),
        groups=np.array([spectrum.core for spectrum in spectra]),
    )


def determined_in_all(spectra) -> tuple[str, ...]:
    return tuple(sorted(set.intersection(*(set(spectrum.targets) for spectrum in spectra))))


def target_values(spectra, names) -> np.ndarray:
    return np.array([[spectrum.targets[name] for name in names] for spectrum in spectra])


# --- protocols: name -> function of set and options, giving (number of labels, seed, splits) ---


def zero_labels(data, options):
    yield 0, options.seeds[0], [protocols.Split(protocols.NO_ROWS, np.arange(len(data)))]


def leave_one_out(data, options):
    yield None, options.seeds[0], protocols.leave_one_out(len(data))


def leave_group_out(data, options):
    yield None, options.seeds[0], protocols.leave_one_group_out(data.groups)


def five_fold(data, options):
    for seed in options.seeds:
        yield None, seed, protocols.k_fold(len(data), 5, seed)


def few_labels(data, options):
    from dataset_builder import split_by_group

    groups = data.samples if data.groups is None else data.groups
    share = {"training": 0.8, "test": 0.2} if len(data) > 100 else {"training": 0.65, "test": 0.35}
    test = np.flatnonzero(split_by_group(groups, share, seed=0) == "test")
    available = np.count_nonzero(~np.isin(groups, groups[test]))
    for num_labels in (*(number for number in options.num_labels if number <= available), None):
        for seed in options.seeds[: 1 if num_labels is None else None]:
            yield num_labels, seed, protocols.few_labels(data.targets, test, num_labels, seed, data.groups)


def instruments(data, options):
    for num_transfer in options.num_transfer:
        for seed in options.seeds:
            splits = protocols.between_instruments(data, "a", "b", num_transfer, max(options.num_transfer), seed)
            yield num_transfer, seed, splits


def instruments_and_groups(data, options):
    for num_transfer in options.num_transfer:
        for seed in options.seeds[: None if num_transfer else 1]:
            yield num_transfer, seed, protocols.between_instruments_and_groups(data, "a", "b", num_transfer, seed)


PROTOCOLS = {
    function.__name__: function
    for function in (
        zero_labels,
        leave_one_out,
        leave_group_out,
        five_fold,
        few_labels,
        instruments,
        instruments_and_groups,
    )  # fmt: skip
}
TRANSFER_PROTOCOLS = ("instruments", "instruments_and_groups")

# name -> (loader, the protocols that make sense)
ONE_INSTRUMENT, BOTH_INSTRUMENTS = ("zero_labels", "leave_group_out", "five_fold"), TRANSFER_PROTOCOLS
SETS = {
    "mudrock_light_a": (lambda folder: mudrocks(folder, "light", "a"), ONE_INSTRUMENT),
    "mudrock_light_b": (lambda folder: mudrocks(folder, "light", "b"), ONE_INSTRUMENT),
    "mudrock_trace_a": (lambda folder: mudrocks(folder, "trace", "a"), ONE_INSTRUMENT),
    "mudrock_trace_b": (lambda folder: mudrocks(folder, "trace", "b"), ONE_INSTRUMENT),
    "mudrock_light_ab": (lambda folder: mudrocks(folder, "light", "ab"), BOTH_INSTRUMENTS),
    "mudrock_trace_ab": (lambda folder: mudrocks(folder, "trace", "ab"), BOTH_INSTRUMENTS),
    "obsidian": (obsidians, ("zero_labels", "leave_one_out", "few_labels")),
    "simulated_cores": (simulated_cores, ("zero_labels", "few_labels")),
}


# --- methods ---

# Those that adapt a checkpoint, which is loaded for them only.
FINE_TUNED = (  # fine_tuned.WAYS
    *("full", "full_equal_rates", "full_mixup", "full_label_noise", "full_efficiency", "full_logit"),
    *("lora", "scratch", "scratch_standardised"),
)
PRETRAINED = (
    *("pretrained", "pretrained_encoder", "random_encoder", "pretrained_closed", "pretrained_pooled"),
    *FINE_TUNED,
)


@dataclass(frozen=True)
class Method:
    """How to make a method, and where it makes sense.

    Args:
        make: function of the target names and the seed that returns an object as `protocols_xrf` describes it.
        most_labels (`int`, *optional*): not run with more, for time.
        transfer_only (`bool`): is of no interest where there is one instrument.
    """

    make: Callable
    most_labels: int | None = None
    transfer_only: bool = False


class Closed:
    """The checkpoint without labels, its compositions closed to 100 %: as oxides, carbon dioxide of the carbonate,
    sulphur and organic carbon."""

    least_labels = 0
    SHARES = {"CaCO3": 0.44, "S": 1.0, "TOC": 1.0}

    def __init__(self, base, extractor, names):
        from adaptation_xrf import adapt
        from dataset_builder.simulation.targets import OXIDES
        from finetuning_xrf import AdaptedModel

        self.names = names
        self.shares = {**dict.fromkeys(OXIDES, 1.0), **self.SHARES}
        self.wanted = list(dict.fromkeys([*names, *self.shares]))
        units = ["wt%"] * len(self.wanted)
        self.model = AdaptedModel(lambda rows: adapt(base, rows, self.wanted, units), extractor, 0)

    def fit(self, spectra, targets, groups=None):
        if len(spectra):
            raise ValueError("closure is for predictions without labels.")
        self.model.fit([], np.zeros((0, len(self.wanted))))
        return self

    def predict(self, spectra):
        values, _ = self.model.predict(spectra)
        total = sum(values[:, self.wanted.index(name)] * share for name, share in self.shares.items())
        return values[:, : len(self.names)] * (100 / total)[:, None]


def pretrained_methods(checkpoint: str) -> dict[str, Method]:
    """The ways of adapting a checkpoint, by name."""
    import torch
    from fine_tuned import WAYS

    from adaptation_xrf import adapt
    from evaluation_xrf import MIN_LABELS
    from feature_extraction_xrf import XRFFeatureExtractor
    from finetuning_xrf import AdaptedModel, load_pretrained
    from modeling_xrf import XRFModel
    from peers_xrf import PooledTransfer

    base, extractor = load_pretrained(checkpoint), XRFFeatureExtractor.from_pretrained(checkpoint)

    def adapted(names, seed, base=base, least_labels=0):
        def adapt_to(rows):
            return adapt(base, rows, names, ["wt%"] * len(names), seed)

        return AdaptedModel(adapt_to, extractor, least_labels)

    def from_random_weights(names, seed):
        torch.manual_seed(seed)
        return adapted(names, seed, XRFModel(base.config).eval(), MIN_LABELS)

    return {
        "pretrained": Method(adapted),
        "pretrained_encoder": Method(lambda names, seed: adapted(names, seed, base.xrf, MIN_LABELS)),
        "random_encoder": Method(from_random_weights),
        "pretrained_closed": Method(lambda names, seed: Closed(base, extractor, names), most_labels=0),
        "pretrained_pooled": Method(lambda names, seed: PooledTransfer(adapted(names, seed)), transfer_only=True),
        **{way: fine_tuned(WAYS[way], base, extractor) for way in FINE_TUNED},
    }


def max_method(checkpoint: str) -> Method:
    """MAX's fine-tuning of a masked autoencoder that was pretrained by its recipe."""
    from fine_tuned import StandardisedFineTuning

    from feature_extraction_xrf import XRFFeatureExtractor
    from finetuning_xrf import load_encoder

    return fine_tuned(
        StandardisedFineTuning(), load_encoder(checkpoint), XRFFeatureExtractor.from_pretrained(checkpoint)
    )


def fine_tuned(way, base, extractor) -> Method:
    """A checkpoint trained by gradient descent, in one of the ways of `fine_tuned.py`."""
    from evaluation_xrf import MIN_LABELS
    from finetuning_xrf import AdaptedModel

    def make(names, seed):
        return AdaptedModel(lambda rows: way(base, extractor, rows, names, seed), extractor, 2 * MIN_LABELS)

    return Method(make, most_labels=way.most_labels)


def methods() -> dict[str, Method]:
    """The classical methods by name."""
    from cnn_peer_xrf import ConvolutionalPeer
    from evaluation_xrf import MeanBaseline, RidgeBaseline
    from peers_xrf import (
        AtLeast,
        ChannelPeer,
        DirectStandardisation,
        NetAreaPeer,
        OnChannels,
        PooledTransfer,
        SlopeBiasCorrection,
        WithoutGroups,
    )

    def ridge(names, channels="grid", log_target=True):
        return OnChannels(RidgeBaseline(names, log_target), channels)

    def channel_peer(method):
        return lambda names, seed: OnChannels(ChannelPeer(method, names))

    found = {
        "mean": Method(lambda names, seed: OnChannels(MeanBaseline(names, log_target=True))),
        "ridge": Method(lambda names, seed: ridge(names)),
        "ridge_by_row": Method(lambda names, seed: WithoutGroups(ridge(names))),
        "ridge_linear": Method(lambda names, seed: AtLeast(ridge(names, log_target=False))),
        "ridge_recorded": Method(lambda names, seed: ridge(names, "recorded")),
        "pls": Method(channel_peer("pls")),
        "svr": Method(channel_peer("svr"), most_labels=500),
        "nmf_svr": Method(channel_peer("nmf_svr"), most_labels=500),
        "net_areas": Method(lambda names, seed: NetAreaPeer(names)),
        "net_areas_by_row": Method(lambda names, seed: WithoutGroups(NetAreaPeer(names))),
        "net_areas_linear": Method(lambda names, seed: AtLeast(NetAreaPeer(names, log_target=False))),
        "cnn": Method(lambda names, seed: OnChannels(ConvolutionalPeer(names, seed=seed))),
    }
    for base, make, channels in (
        ("ridge", ridge, "grid"),
        ("ridge_recorded", lambda names: ridge(names, "recorded"), "recorded"),
        ("net_areas", NetAreaPeer, "grid"),
    ):
        for name, wrap in (
            ("pooled", PooledTransfer),
            ("slope_bias", SlopeBiasCorrection),
            ("ds", lambda calibration, channels=channels: DirectStandardisation(calibration, False, channels)),
            ("pds", lambda calibration, channels=channels: DirectStandardisation(calibration, True, channels)),
        ):
            found[f"{base}_{name}"] = Method(
                lambda names, seed, make=make, wrap=wrap: wrap(make(names)), transfer_only=True
            )
    return found


def makes_sense(method: Method, calibration, protocol: str, num_labels: int | None, splits) -> bool:
    """Whether there are enough labels or transfer samples, and not too many, and transfer has anything to say."""
    uses_transfer = getattr(calibration, "uses_transfer", False)
    if protocol in TRANSFER_PROTOCOLS:
        enough = num_labels >= getattr(calibration, "least_transfer", 0)
        return enough if uses_transfer else num_labels == 0
    sizes = [len(split.training) for split in splits]
    most = np.inf if method.most_labels is None else method.most_labels
    return not method.transfer_only and min(sizes) >= getattr(calibration, "least_labels", 0) and max(sizes) <= most


def result_rows(data: CalibrationSet, predictions) -> list[dict]:
    """What `evaluation_xrf` says of every target."""
    from evaluation_xrf import interval_metrics, ln_agreement, ln_rmse, regression_metrics, relative_ln_rmse

    rows = []
    for column, target in enumerate(data.target_names):
        values, references = predictions.values[:, column], data.targets[predictions.rows, column]
        row = {"target": target, **regression_metrics(values, references)}
        # a linear calibration may say that there is none: below detection, half of the lowest reference is usual
        found = np.where(values > 0, values, np.nanmin(references) / 2)
        row["ln_rmse"], row["relative_ln_rmse"] = ln_rmse(found, references), relative_ln_rmse(found, references)
        row["ln_r"], row["scale"] = ln_agreement(found, references)
        for share in COVERAGES:
            if share in predictions.intervals:
                lower, upper = (bound[:, column] for bound in predictions.intervals[share])
                metrics = interval_metrics(lower, upper, references, share)
                for name, metric in (("coverage", "coverage"), ("width", "width"), ("score", "interval_score")):
                    row[f"{name}_{100 * share:.0f}"] = metrics[metric]
        rows.append(row)
    return rows


def rounded(row: dict) -> dict:
    return {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}


def mean_relative(rows: list[dict]) -> float:
    return float(np.mean([float(row["relative_ln_rmse"]) for row in rows]))


# --- tables ---


def tables(path: Path) -> str:
    """Markdown: for every set and protocol, the mean over targets of RMSE of ln(value) / sd of ln(value), averaged
    over the seeds; by number of labels or transfer samples where there are several, else target by target."""
    latest = latest_rows(path, KEY)
    parts = []
    for set_name, protocol in dict.fromkeys((row["set"], row["protocol"]) for row in latest):
        rows = [row for row in latest if (row["set"], row["protocol"]) == (set_name, protocol)]
        numbers = list(dict.fromkeys(row["num_labels"] for row in rows))
        table = by_number(rows, numbers) if len(numbers) > 1 else by_target(rows)
        commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
        parts.append(f"### {set_name}, {protocol}\n\n{table}\n\nCommit {commits}, {rows[-1]['hardware']}.")
    return "\n\n".join(parts)


def by_number(rows: list[dict], numbers: list[str]) -> str:
    numbers = sorted(numbers, key=lambda number: float(number or "inf"))
    found = errors_of_draws(rows)
    lines = [
        (method, *(mean_and_spread(found.get((method, float(number or "inf")), ())) for number in numbers))
        for method in dict.fromkeys(row["method"] for row in rows)
    ]
    return markdown(("method", *(number or "all" for number in numbers)), lines)


def errors_of_draws(rows: list[dict], column: str = "relative_ln_rmse") -> dict[tuple[str, float], np.ndarray]:
    """Errors by method and number of labels, an array with one number for each seed: the mean over the rows' targets.
    All labels that there are count as infinitely many."""
    found = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row[column]:
            found[row["method"], float(row["num_labels"] or "inf")][row["seed"]].append(float(row[column]))
    return {key: np.array([np.mean(values) for values in seeds.values()]) for key, seeds in found.items()}


def mean_and_spread(values: Sequence[float]) -> str:
    if len(values) == 0:
        return ""
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values):.3f}" if len(values) > 1 else "")


def by_target(rows: list[dict]) -> str:
    targets = list(dict.fromkeys(row["target"] for row in rows))
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        values = [
            np.mean([float(r["relative_ln_rmse"]) for r in rows if (r["method"], r["target"]) == (method, target)])
            for target in targets
        ]
        cells = [f"{value:.3f}" for value in (np.mean(values), np.median(values))] + [f"{v:.2f}" for v in values]
        lines.append((method, *cells))
    return markdown(("method", "mean", "median", *targets), lines)


def main():
    known = methods()
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="what is measured")
    default = [name for name in PROTOCOLS if name != "five_fold"]
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=default, help="where a set allows them")
    names = [*known, *PRETRAINED]
    parser.add_argument("--methods", nargs="+", choices=[*names, "max"], default=names, help="what is compared")
    parser.add_argument("--model", default=str(CHECKPOINT), help="checkpoint that the pretrained methods adapt")
    parser.add_argument("--max_model", help="checkpoint that max fine-tunes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of draws and of networks")
    parser.add_argument("--num_labels", type=int, nargs="+", default=[0, 5, 10, 25, 50, 100, 500], help="few_labels")
    parser.add_argument("--num_transfer", type=int, nargs="+", default=[0, 5, 10], help="samples on both instruments")
    parser.add_argument("--results", type=Path, default=RESULTS, help="CSV that rows are appended to")
    parser.add_argument("--tables", action="store_true", help="only print the tables of earlier results")
    options = parser.parse_args()
    if options.tables:
        print(tables(options.results))
        return

    from training_xrf import provenance

    folder = real_data.FOLDER if options.sets == ["simulated_cores"] else real_data.required()
    if set(options.methods) & set(PRETRAINED):
        known |= pretrained_methods(options.model)
    if "max" in options.methods:
        if options.max_model is None:
            raise ValueError("max has no checkpoint to fine-tune; name one with --max_model.")
        known["max"] = max_method(options.max_model)
    origin = provenance()
    for set_name in options.sets:
        load, sensible = SETS[set_name]
        chosen = [name for name in options.protocols if name in sensible]
        data = load(folder) if chosen else None
        for protocol in chosen:
            for num_labels, seed, splits in PROTOCOLS[protocol](data, options):
                for name in options.methods:
                    calibration = known[name].make(data.target_names, seed)
                    if not makes_sense(known[name], calibration, protocol, num_labels, splits):
                        continue
                    start = time.perf_counter()
                    labels = "" if num_labels is None else num_labels
                    case = {"set": set_name, "protocol": protocol, "num_labels": labels, "seed": seed, "method": name}
                    try:
                        predictions = protocols.run_protocol(calibration, splits, data)
                    except ValueError as error:  # too few labels of one target in this draw
                        print(f"{' '.join(map(str, case.values()))}: left out, {error}", flush=True)
                        continue
                    common = {**origin, **case, "seconds": time.perf_counter() - start}
                    rows = [{**row, **common} for row in result_rows(data, predictions)]
                    append_rows(options.results, COLUMNS, map(rounded, rows))
                    print(f"{' '.join(map(str, case.values()))}: {mean_relative(rows):.3f}", flush=True)
    print(tables(options.results))


if __name__ == "__main__":
    run(main)
