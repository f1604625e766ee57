"""How fast masked pretraining is, and its encoder: spectra per second, and the share of what the machine can multiply.

    python benchmarks/throughput.py

On a machine with a GPU the same command measures the GPU. `--parts`, `--sizes`, `--precisions` and `--forms` select:

    python benchmarks/throughput.py --parts step run --sizes base --precisions bf16

Parts: `step` is a training step on one batch of whole spectra again and again; `measured` the same on spectra of a
10 kV tube, of which only the measured patches are used; `attention` with the other attention implementation; `batch`
with other batch sizes; `compiled` with torch.compile; `encoder` is the encoder alone, without gradients; `loader` is
the step with batches from disk; `run` is `scripts/run_msm.py`, without its first line. The form `classic` is
`benchmarks/classic.py`, with one CSV file a spectrum, in place of this library's. How fast batches come without a
model is in `benchmarks/reading.csv`.

Every line is measured in a process of its own: a warm-up, then the median over blocks of steps. The matrix peak is the
rate of square matrix products in that precision, measured between these blocks, and FLOPs are counted by
`training_xrf.training_flops`. Rows are appended to `benchmarks/throughput.csv`; `--table` prints those of the last
commit in it. There, `share` is that of the peak, `of step` the ratio to the bare step of the same form, `over classic`
to the classic form, which computes on all patches, measured or not.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from results import append_rows, last_rows, markdown

from command_line_xrf import run

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "throughput.csv"
PARTS = ("step", "measured", "attention", "batch", "compiled", "encoder", "loader", "run")
FORMS = ("library", "classic")
SIZES = ("tiny", "small", "base")
BATCH_SIZES = {"cpu": {"tiny": 64, "small": 32, "base": 16}, "cuda": {"tiny": 2048, "small": 1024, "base": 512}}
CORPORA = {"whole": "50 kV, 2048 x 20 eV", "10 kV": "10 kV, 2048 x 20 eV"}  # as `reading.build_corpora` names them
COLUMNS = (
    "date", "commit", "hardware", "versions", "part", "form", "size", "precision", "attention", "compiled", "spectra",
    "patches", "batch_size", "blocks", "spectra_per_s", "gflop_per_spectrum", "peak_gflop_per_s", "share", "peak_mb",
)  # fmt: skip
BLOCK_SECONDS = 0.3  # at least, so that a GPU is waited for rarely
LEAST_BLOCKS = 3


@dataclass(frozen=True)
class Case:
    """One line of the results; `spectra` are whole or of a 10 kV tube."""

    part: str
    form: str
    size: str
    precision: str
    attention: str
    batch_size: int
    spectra: str = "whole"
    compiled: bool = False


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES, help="of the model")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--batch_size", type=int, help="in place of the sizes' own")
    parser.add_argument("--seconds", type=float, default=4, help="that a line is measured for, at least")
    parser.add_argument("--spectra", type=int, default=2048, help="spectra in a corpus")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "throughput", help="of the corpora")
    parser.add_argument("--results", type=Path, default=RESULTS, help="CSV that rows are appended to")
    parser.add_argument("--table", action="store_true", help="only print the table of earlier results")
    args = parser.parse_args()
    if not args.table:
        from training_xrf import provenance

        origin = provenance()
        corpora = None
        for case in cases(args.parts, args.sizes, args.precisions, args.forms, args.batch_size):
            if corpora is None and case.part in ("loader", "run"):
                corpora = build_corpora(args.output_dir, args.spectra)
            measure = measure_run if case.part == "run" else measure_steps
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                row = pool.submit(measure, case, corpora, args.seconds).result()
            append_rows(args.results, COLUMNS, [{**origin, **row}])
            print(*(f"{row[name]}" for name in COLUMNS if name in row), flush=True)
    print(table(args.results))


def cases(parts, sizes, precisions, forms, batch_size: int | None):
    """The lines to measure on this machine."""
    import torch

    from training_xrf import fastest_attention, fastest_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fastest = "bf16" if "bf16" in precisions and fastest_precision(device) == "bf16" else precisions[0]
    for part, size, precision in itertools.product(parts, sizes, precisions):
        attention = fastest_attention(device, {"fp32": "no"}.get(precision, precision))
        number = batch_size or BATCH_SIZES[device.type][size]
        case = Case(part, "library", size, precision, attention, number)
        if part == "encoder":
            yield case
        elif part == "step":
            for form in forms:
                yield replace(case, form=form)
        elif part == "attention":
            yield replace(case, attention="sdpa" if attention == "eager" else "eager")
        elif precision == fastest:
            if part == "measured":
                yield replace(case, spectra="10 kV")
            elif part == "batch":
                yield replace(case, batch_size=max(1, number // 4))
                if device.type == "cuda" or size == "tiny":
                    yield replace(case, batch_size=4 * number)
            elif part == "compiled" and (device.type == "cuda" or size == "tiny"):  # on a CPU compiling takes minutes
                yield replace(case, compiled=True)
            elif part == "loader" and size != "small":
                for form, spectra in itertools.product(forms, CORPORA):
                    if size == "tiny" or spectra == "whole":
                        yield replace(case, form=form, spectra=spectra)
            elif part == "run" and size != "small":
                for spectra in CORPORA:
                    yield replace(case, spectra=spectra)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def measure_steps(case: Case, corpora: dict[str, Path] | None, seconds: float) -> dict:
    """One row of the results."""
    import torch

    import training_xrf
    from configuration_xrf import XRFMaskedConfig

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[case.precision]
    config = XRFMaskedConfig.from_size(case.size)
    torch.manual_seed(0)
    if case.form == "library":
        training_xrf.keep_freed_memory()
    batches = batches_of(case, config, corpora, device)
    step = (encoder_step if case.part == "encoder" else STEPS[case.form])(case, config, device)
    synchronize = torch.get_device_module(device).synchronize

    def block(number: int) -> float:
        synchronize()
        start = time.perf_counter()
        for _ in range(number):
            step(next(batches))
        synchronize()
        return (time.perf_counter() - start) / number

    patches = next(batches)[-1]
    for _ in range(3 if case.compiled else 1):
        one = block(1)
    number = math.ceil(BLOCK_SECONDS / one)
    times, peaks = [], []
    while len(times) < LEAST_BLOCKS or sum(times) * number < seconds:
        times.append(block(number))
        peaks.append(training_xrf.matrix_peak(device, dtype))
    if device.type == "cuda":
        peak_mb = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if case.part == "encoder":
        flops = training_xrf.encoder_flops(config, patches)
    else:
        flops = training_xrf.training_flops(config, patches)
    rate, peak = case.batch_size / statistics.median(times), statistics.median(peaks)
    return result(case, patches, len(times), rate, flops, peak) | {"peak_mb": round(peak_mb)}


def measure_run(case: Case, corpora: dict[str, Path], seconds: float) -> dict:
    """One row of the results, from the lines that `run_msm.py` logs, the first of which is its warm-up."""
    step_seconds = case.batch_size / measure_steps(replace(case, part="loader"), corpora, 0)["spectra_per_s"]
    log_every = math.ceil(max(2 * BLOCK_SECONDS, seconds / LEAST_BLOCKS) / step_seconds)
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "dataset": corpora[case.spectra], "output_dir": folder, "model_size": case.size, "trackers": "none",
            "batch_size": case.batch_size, "mixed_precision": {"fp32": "no"}.get(case.precision, case.precision),
            "log_every": log_every, "max_steps": (LEAST_BLOCKS + 1) * log_every, "validate_every": 0,
            "optimizer": "adamw",
        }  # fmt: skip
        command = [sys.executable, ROOT / "scripts" / "run_msm.py"]
        command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            raise ValueError(f"run_msm.py ended with {process.returncode}: {process.stderr.strip().splitlines()[-1]}")
        peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        lines = Path(folder, "history.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines][1:]
    rate, share = (
        statistics.median(record[name] for record in records) for name in ("spectra_per_s", "share_of_peak")
    )
    from configuration_xrf import XRFMaskedConfig
    from training_xrf import training_flops

    config = XRFMaskedConfig.from_size(case.size)
    patches = measured_patches_of(corpora[case.spectra], config)
    flops = training_flops(config, patches)
    return result(case, patches, len(records), rate, flops, rate * flops / share) | {"peak_mb": round(peak_mb)}


def result(case: Case, patches: int, blocks: int, spectra_per_s: float, flops: float, peak: float) -> dict:
    import torch
    import transformers

    return {
        **asdict(case),
        "compiled": "yes" if case.compiled else "no",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "patches": patches,
        "blocks": blocks,
        "spectra_per_s": float(f"{spectra_per_s:.5g}"),
        "gflop_per_spectrum": float(f"{flops / 1e9:.5g}"),
        "peak_gflop_per_s": round(peak / 1e9),
        "share": f"{spectra_per_s * flops / peak:.3f}",
    }


# ---------------------------------------------------------------------------------------------------------------------
# Batches: endless iterators of inputs and the number of patches that are used of each spectrum


def batches_of(case: Case, config, corpora: dict[str, Path] | None, device):
    import torch
    from accelerate.utils import send_to_device
    from classic import SpectrumFiles

    import corpus_xrf
    from feature_extraction_xrf import XRFFeatureExtractor

    if case.part != "loader":
        generator = torch.Generator().manual_seed(0)
        extractor = XRFFeatureExtractor.for_config(config)
        features = extractor(
            torch.poisson(torch.full((case.batch_size, config.spectrum_length), 50.0), generator=generator).numpy(),
            gain_kev=config.channel_width_kev, offset_kev=0.0, tube_kv=10.0 if case.spectra == "10 kV" else 50.0,
        )  # fmt: skip
        batch = corpus_xrf.measured_patches(
            {
                "sample_id": torch.arange(case.batch_size),
                "input_values": torch.from_numpy(features["input_values"]),
                "attention_mask": torch.from_numpy(features["attention_mask"]).to(torch.uint8),
            }
        )
        batch = send_to_device(batch, device)
        whole = case.form == "classic"
        patches = config.num_patches if whole else batch["patch_ids"].shape[1]
        return itertools.repeat((batch["input_values"] if whole else batch, patches))
    if case.form == "classic":
        loader = torch.utils.data.DataLoader(
            SpectrumFiles(spectrum_files(corpora[case.spectra])), case.batch_size, shuffle=True, drop_last=True
        )
        return ((batch.to(device), config.num_patches) for batch in itertools.chain.from_iterable(repeated(loader)))
    rows = corpus_xrf.load_split(corpora[case.spectra], "train")
    features = corpus_xrf.cached_features(rows, XRFFeatureExtractor.for_config(config), "train")
    loader = torch.utils.data.DataLoader(
        corpus_xrf.SpectrumBatches(features),
        case.batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=corpus_xrf.measured_patches,
        pin_memory=device.type == "cuda",
    )

    def endless():
        for batch in itertools.chain.from_iterable(repeated(loader)):
            yield send_to_device(batch, device, non_blocking=True), batch["patch_ids"].shape[1]

    return endless()


def repeated(loader):
    if len(loader) == 0:
        raise ValueError("The corpus holds less than one batch; give more --spectra.")
    return itertools.repeat(loader)


def build_corpora(folder: Path, num_spectra: int) -> dict[str, Path]:
    from reading import build_corpora

    found = build_corpora(folder, num_spectra)
    return {spectra: found[name] for spectra, name in CORPORA.items()}


def spectrum_files(corpus: Path) -> Path:
    """The spectra of a corpus as CSV files, written once."""
    import numpy as np

    from corpus_xrf import load_split
    from files_xrf import atomic_folder

    folder = corpus.with_name(f"{corpus.name}_csv")
    if not folder.exists():
        with atomic_folder(folder) as temporary:
            for number, row in enumerate(load_split(corpus, "train").select_columns(["counts"])):
                np.savetxt(temporary / f"{number}.csv", row["counts"], fmt="%d")
    return folder


def measured_patches_of(corpus: Path, config) -> int:
    """Patches that some spectrum of a corpus measured."""
    from corpus_xrf import feature_batches, load_split
    from feature_extraction_xrf import XRFFeatureExtractor

    batches = feature_batches(load_split(corpus, "train"), XRFFeatureExtractor.for_config(config), "train")
    return int(next(batches)["attention_mask"].any(dim=0).sum())


# ---------------------------------------------------------------------------------------------------------------------
# Steps: each takes a case, and returns a function of what `batches_of` yields


def library_step(case: Case, config, device):
    """What the loop of `run_msm.py` does."""
    import torch

    import training_xrf
    from modeling_xrf import XRFForMaskedSpectrumModeling

    model = XRFForMaskedSpectrumModeling(config).to(device).train()
    model.set_attn_implementation(case.attention)
    if case.compiled:
        model.compile()
    optimizer = training_xrf.build_optimizer(model, "adamw", learning_rate=1e-4)

    def step(inputs):
        with torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bf16"):
            loss = training_xrf.masked_loss(model, inputs[0], 0, config, seed=0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()

    return step


def classic_step(case: Case, config, device):
    import torch
    from classic import ClassicAutoencoder

    model = ClassicAutoencoder(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0)
    total = 0.0

    def step(inputs):
        nonlocal total
        with torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bf16"):
            loss = model(inputs[0])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        total += loss.item()

    return step


def encoder_step(case: Case, config, device):
    """Embeddings of whole spectra."""
    import torch

    from modeling_xrf import XRFModel

    model = XRFModel(config).to(device).eval()
    model.set_attn_implementation(case.attention)

    @torch.inference_mode()
    def step(inputs):
        with torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bf16"):
            model(inputs[0]["input_values"])

    return step


STEPS = {"library": library_step, "classic": classic_step}

# ---------------------------------------------------------------------------------------------------------------------
# Results


def table(path: Path) -> str:
    """Markdown of the rows of the last commit and hardware, with ratios to the bare step and to the classic form."""
    rows = last_rows(path)
    columns = [*COLUMNS[COLUMNS.index("part") : COLUMNS.index("blocks")], "spectra_per_s", "share", "peak_mb"]
    lines = []
    for row in rows:
        step = {"part": "measured" if (row["form"], row["spectra"]) == ("library", "10 kV") else "step"}
        if step["part"] == "step":
            step["spectra"] = "whole"  # the classic form uses whole spectra, wherever they come from
        classic = {"form": "classic", "part": row["part"] if row["part"] in ("step", "loader") else "step"}
        if row["part"] == "measured":
            classic["spectra"] = "whole"
        elif row["part"] == "run":
            classic["part"] = "loader"
        cells = [
            ratio(rows, row, step) if row["part"] in ("loader", "run") else "",
            ratio(rows, row, classic) if row["form"] != "classic" and row["part"] != "encoder" else "",
        ]
        lines.append([*(row[name] for name in columns), *cells])
    return markdown([*columns, "of step", "over classic"], lines)


def ratio(rows: list[dict], row: dict, changes: dict) -> str:
    """The rate of a row over that of the last row which differs from it in `changes` at most (and in attention, which
    each form chooses for itself, if in the form); empty if there is none."""
    wanted = {name: row[name] for name in ("part", "form", "size", "precision", "batch_size", "spectra")} | changes
    found = [other for other in rows if all(other[name] == value for name, value in wanted.items())]
    if not found:
        return ""
    return f"{float(row['spectra_per_s']) / float(found[-1]['spectra_per_s']):.2f}"


if __name__ == "__main__":
    run(main)
