"""How fast spectra become batches: from the cache of features, through the extractor, streamed, simulated, augmented.

    python benchmarks/reading.py

Every line is measured in a process of its own, on a corpus of simulated spectra that is written first. `workers` are
those of the `DataLoader`. Memory is that of all processes without files mapped into it: the highest, and how much it
grew in the last three quarters of the time. For training, `waiting` is the share of the time in which the loop had no
batch.
Rows are appended to `benchmarks/reading.csv`; `--table` prints those of the last commit in it.
"""

import argparse
import itertools
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from results import append_rows, last_rows, markdown

from command_line_xrf import run

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "reading.csv"
COLUMNS = (
    "date", "commit", "hardware", "versions", "path", "native", "grid", "workers", "spectra", "first_batch_s",
    "spectra_per_s", "waiting", "peak_mb", "growth_mb",
)  # fmt: skip
BATCH_SIZE = 256
# the preset avaatech_10kv, and what else the same instrument could be
INSTRUMENTS = {
    "10 kV, 2048 x 20 eV": {},
    "50 kV, 2048 x 20 eV": {"tube_kv": 50.0},
    "30 kV, 2048 x 10.27 eV": {"tube_kv": 30.0, "gain_kev": 0.01027, "offset_kev": -0.0099},
}
AUGMENTATIONS = (
    {"name": "thinning", "fraction": [0.1, 1.0]},
    {"name": "drift", "gain_sd": 0.003, "zero_sd_ev": 10},
    {"name": "broadening", "fwhm_ev": [0, 60]},
    {"name": "pile_up", "fraction": [0, 0.02]},
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "reading", help="of the corpora")
    parser.add_argument("--results", type=Path, default=RESULTS, help="CSV that rows are appended to")
    parser.add_argument("--spectra", type=int, default=20_000, help="spectra in a corpus")
    parser.add_argument("--training_steps", type=int, default=60, help="steps of 64 spectra")
    parser.add_argument("--only", default="", help="measure only the ways to batches with these words in their name")
    parser.add_argument("--table", action="store_true", help="only print the table of earlier results")
    args = parser.parse_args()
    if not args.table:
        from training_xrf import provenance

        origin = provenance()
        corpora = build_corpora(args.output_dir, args.spectra)
        for arguments in measurements(corpora, args.spectra, args.training_steps):
            if args.only not in arguments[0].__doc__:
                continue
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                append_rows(args.results, COLUMNS, [{**origin, **pool.submit(measure, *arguments).result()}])
    print(table(args.results))


def build_corpora(folder: Path, num_spectra: int) -> dict[str, Path]:
    """Simulated spectra of every instrument, all in the split `train`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dataset_builder.simulation import SimulatedSource
    from dataset_builder.simulation.presets import instrument_model
    from files_xrf import atomic_folder

    corpora = {}
    for number, (native, changes) in enumerate(INSTRUMENTS.items()):
        corpora[native] = folder / f"instrument_{number}_{num_spectra}"
        if not corpora[native].exists():
            instrument = replace(instrument_model("avaatech_10kv"), **changes)
            source = SimulatedSource(
                instruments=instrument, num_spectra=num_spectra, num_cores=-(-num_spectra // 1000)
            )
            with atomic_folder(corpora[native]) as temporary:
                for unit in range(source.num_units):
                    rows = pa.concat_tables([batch.table() for batch in source.simulate(unit)])
                    pq.write_table(rows, temporary / f"train-{unit:05d}.parquet", compression="zstd")
    return corpora


def measurements(corpora: dict[str, Path], num_spectra: int, training_steps: int):
    """Arguments of `measure`."""
    passes = 4 * num_spectra
    for native, corpus in corpora.items():
        if native == "10 kV, 2048 x 20 eV":
            for workers in (0, 2):
                yield cached_batches, 4 * passes, native, corpus, 2048, workers
        for grid in (2048, 512):
            yield extracted_tables, num_spectra, native, corpus, grid, 0
            for workers in (0, 2):
                yield stored_batches, passes, native, corpus, grid, workers
    native, corpus = next(iter(corpora.items()))
    for workers in (0, 2):
        yield streamed_batches, passes, native, corpus, 2048, workers
    for step in AUGMENTATIONS:
        yield augmented_batches, num_spectra // 4, native, corpus, 2048, 0, [step]
    yield augmented_batches, num_spectra // 2, native, corpus, 2048, 2, list(AUGMENTATIONS)
    for workers in (0, 2):
        yield simulated_batches, num_spectra // 2, native, corpus, 2048, workers
    for workers in (None, 0, 1, 2):
        yield training, 64 * training_steps, native, corpus, 2048, workers


# ---------------------------------------------------------------------------------------------------------------------
# Ways to batches: each takes a corpus, a feature extractor and a number of workers, and returns an iterator


def cached_batches(corpus, extractor, workers):
    """features in the cache"""
    from torch.utils.data import DataLoader

    import corpus_xrf

    features = corpus_xrf.cached_features(corpus_xrf.load_split(corpus, "train"), extractor, "train")
    options = {"collate_fn": corpus_xrf.whole_batch, "persistent_workers": workers > 0}
    loader = DataLoader(
        corpus_xrf.SpectrumBatches(features), BATCH_SIZE, shuffle=True, num_workers=workers, drop_last=True, **options
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def extracted_tables(corpus, extractor, workers):
    """native counts in order, extractor"""
    import corpus_xrf

    return corpus_xrf.feature_batches(corpus_xrf.load_split(corpus, "train"), extractor, "train")


def stored_batches(corpus, extractor, workers, augmentation=None, batch_size=BATCH_SIZE):
    """native counts shuffled, extractor"""
    import corpus_xrf
    from streaming_xrf import Mixture, StoredSpectra

    rows = corpus_xrf.load_split(corpus, "train")
    return _stream(Mixture([StoredSpectra(rows, seed=0)]), extractor, workers, augmentation, batch_size)


def streamed_batches(corpus, extractor, workers):
    """Parquet streamed, extractor"""
    import corpus_xrf
    from streaming_xrf import StreamedRows

    rows = corpus_xrf.load_split(corpus, "train", streaming=True)
    return _stream(StreamedRows(rows), extractor, workers)


def augmented_batches(corpus, extractor, workers, steps):
    """native counts shuffled, augmented, extractor"""
    from dataset_builder.augmentation import augmentation_from_config

    return stored_batches(corpus, extractor, workers, augmentation_from_config(steps))


def simulated_batches(corpus, extractor, workers, batch_size=BATCH_SIZE):
    """simulated on the fly, extractor"""
    from dataset_builder import simulated_recipe
    from streaming_xrf import recipe_mixture

    return _stream(recipe_mixture(simulated_recipe(), "train", seed=0), extractor, workers, None, batch_size)


def training(corpus, extractor, workers):
    """training a tiny model, batches simulated on the fly; without workers, one batch again and again"""
    if workers is not None:
        return simulated_batches(corpus, extractor, workers, batch_size=64)
    return itertools.repeat(next(iter(simulated_batches(corpus, extractor, 0, batch_size=64))))


def _stream(source, extractor, workers, augmentation=None, batch_size=BATCH_SIZE):
    from torch.utils.data import DataLoader

    from streaming_xrf import SpectrumStream

    stream = SpectrumStream(source, extractor, "train", batch_size, seed=0, augmentation=augmentation)
    return iter(DataLoader(stream, batch_size=None, num_workers=workers))


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def measure(way, num_spectra: int, native: str, corpus: Path, grid: int, workers: int | None, *options) -> dict:
    """One row of the results: about `num_spectra` spectra after the first batch."""
    import datasets
    import torch

    from feature_extraction_xrf import XRFFeatureExtractor

    datasets.disable_progress_bars()
    start = time.perf_counter()
    batches = iter(way(corpus, XRFFeatureExtractor(spectrum_length=grid), workers, *options))
    next(batches)
    first_batch_s = time.perf_counter() - start
    step = training_step() if way is training else lambda batch: None
    step(next(batches))

    memory_mb, waited, count = [], 0.0, 0
    start = time.perf_counter()
    while count < num_spectra:
        asked = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - asked
        if batch is None:
            break
        step(batch)
        count += len(batch["input_values"])
        if time.perf_counter() - start > len(memory_mb) * 0.1:
            memory_mb.append(anonymous_memory_mb())
    seconds = time.perf_counter() - start
    memory_mb.append(anonymous_memory_mb())
    path = way.__doc__ if not options or len(options[0]) > 1 else f"{way.__doc__}: {options[0][0]['name']}"
    return {
        "versions": f"torch {torch.__version__}, datasets {datasets.__version__}, numpy {np.__version__}",
        "path": path,
        "native": native,
        "grid": f"{grid} x 20 eV",
        "workers": "" if workers is None else workers,
        "spectra": count,
        "first_batch_s": f"{first_batch_s:.2f}",
        "spectra_per_s": round(count / seconds),
        "waiting": f"{waited / seconds:.3f}" if way is training else "",
        "peak_mb": round(max(memory_mb)),
        "growth_mb": round(memory_mb[-1] - memory_mb[len(memory_mb) // 4]),
    }


def training_step():
    """A function that makes one optimiser step of a tiny model on a batch."""
    import torch

    from configuration_xrf import XRFMaskedConfig
    from modeling_xrf import XRFForMaskedSpectrumModeling
    from training_xrf import model_inputs

    model = XRFForMaskedSpectrumModeling(XRFMaskedConfig.from_size("tiny")).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(batch):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**model_inputs(batch)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def anonymous_memory_mb() -> float:
    """Memory of this process and its workers, without files that are mapped into it."""
    total_kb = 0
    for pid in [os.getpid(), *(child.pid for child in multiprocessing.active_children())]:
        status = Path(f"/proc/{pid}/status").read_text()
        total_kb += int(status.split("RssAnon:")[1].split()[0])
    return total_kb / 1024


def table(path: Path) -> str:
    """Markdown of the rows of the last commit."""
    columns = COLUMNS[COLUMNS.index("path") :]
    rows = [{**row, "spectra_per_s": f"{int(row['spectra_per_s']):,}"} for row in last_rows(path)]
    return markdown(columns, ([row[column] for column in columns] for row in rows))


if __name__ == "__main__":
    run(main)
