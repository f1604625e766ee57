"""What a thousand million spectra take: the tables of `benchmarks/SCALE.md`, computed from measured rates.

    python benchmarks/scale.py
    python benchmarks/scale.py --write
    python benchmarks/scale.py --measure corpora/any

The first prints the tables, the second puts them into `SCALE.md`, the third measures anew on a corpus, on one thread
and in seconds of processor time, and appends to `benchmarks/scale.csv`. Rates of reading come from
`benchmarks/reading.csv`. What nobody has measured here, a GPU's speed and all prices, stands in `ASSUMED` and in a
table of its own.
"""

import argparse
import math
import re
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from results import append_rows, markdown, read_rows

from command_line_xrf import run

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "scale.csv"
READING = ROOT / "benchmarks" / "reading.csv"
PAGE = ROOT / "benchmarks" / "SCALE.md"
COLUMNS = ("date", "commit", "hardware", "quantity", "value", "unit", "how")
CHECKPOINT = ROOT / "model_cards" / "xrf-tiny"
SAMPLE = 4000  # spectra that are measured on

# name: value, unit, where it comes from
ASSUMED = {
    "peak": (790, "TFLOP/s", "bf16 matrix products of an H200, from published figures"),
    "share": (0.5, "of the peak", "base, training and encoder: what a good PyTorch program reaches"),
    "tiny_share": (0.1, "of the peak", "xrf-tiny on a GPU: too small to fill one"),
    "gpu_hour": (3.0, "USD", "an hour of an H200"),
    "core_hour": (0.04, "USD", "an hour of a CPU core"),
    "month": (0.023, "USD/GB", "a month in an object store"),
    "connection": (60, "MB/s", "from an object store over one connection"),
    "machine_gpus": (8, "GPUs", "in a machine"),
    "machine_cores": (96, "cores", "in a machine"),
    "machine_memory": (1, "TB", "main memory of a machine"),
    "machine_disk": (4, "TB", "local disk of a machine"),
    "list": (1000, "names", "in one answer of an object store to a listing"),
}
COARSE_BYTES = 4 * 512  # of a spectrum, for the search for near copies: `dataset_builder.near_copies.NUM_BINS`
PREFIXES = {"TFLOP/s": 1e12, "MB/s": 1e6, "TB": 1e12}
READ = {  # paths of `reading.csv`, without workers: one core each
    "features from the cache": "features in the cache",
    "native counts on disk, shuffled": "native counts shuffled, extractor",
    "simulated_marine, drawn while training": "simulated on the fly, extractor",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="put the tables into SCALE.md")
    parser.add_argument("--measure", type=Path, metavar="CORPUS", help="measure on this corpus first")
    args = parser.parse_args()
    if args.measure:
        append(RESULTS, measurements(args.measure))
    found = tables(last_values(RESULTS), reading_rates(READING))
    if args.write:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    print("\n\n".join(found.values()))


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def measurements(corpus: Path) -> Iterable[tuple[str, float, str, str]]:
    """Quantity, value, unit and how it was measured."""
    import pyarrow.parquet as pq
    import torch

    import corpus_xrf
    from feature_extraction_xrf import XRFFeatureExtractor

    torch.set_num_threads(1)
    files = sorted((corpus / "data").glob("*.parquet"))
    if not files:
        raise ValueError(f"{corpus} has no Parquet files in data/; give a corpus as `xrf-data build` writes it.")
    metadata = [pq.read_metadata(file) for file in files]
    spectra = sum(each.num_rows for each in metadata)
    how = f"{spectra} spectra of {corpus.name}"
    yield "parquet_bytes", sum(file.stat().st_size for file in files) / spectra, "byte/spectrum", how
    yield "shard_rows", max(each.num_rows for each in metadata), "spectra", "the largest file"

    yield "stream_rate", stream_rate(corpus), "spectra/s", "Parquet streamed, decoded, shuffled, extracted"

    rows = corpus_xrf.load_split(corpus, "test")
    rows = rows.select(range(min(SAMPLE, len(rows))))
    lengths = [len(counts) for counts in rows.with_format("numpy")["counts"]]
    yield "channels", float(np.mean(lengths)), "channels", f"mean of {len(rows)} spectra"
    extractor = XRFFeatureExtractor(spectrum_length=2048)
    measured = [batch["attention_mask"].sum(1) for batch in corpus_xrf.feature_batches(rows, extractor, "test")]
    yield "patches", float(torch.cat(measured).double().mean()), "of 128", f"measured, mean of {len(rows)} spectra"
    yield from prediction_measurements(rows)

    start, number = time.process_time(), 0
    source = simulation_source()
    for unit in range(10):
        number += sum(len(batch) for batch in source.simulate(unit))
    yield "simulation_rate", number / (time.process_time() - start), "spectra/s", "simulated_any, one thread"

    before, start, number = resident_bytes(), time.process_time(), 10_000_000
    order = torch.randperm(number).tolist()
    yield "shuffle_rate", number / (time.process_time() - start), "spectra/s", "torch.randperm(n).tolist()"
    yield "shuffle_bytes", (resident_bytes() - before) / len(order), "byte/spectrum", "torch.randperm(n).tolist()"
    yield from leakage_measurements(corpus)
    yield "base_share", base_share(), "of the peak", "training step of base, float32"


def prediction_measurements(rows):
    import tempfile

    import pyarrow as pa
    import pyarrow.parquet as pq

    from inference_xrf import XRFPredictor
    from training_xrf import encoder_flops

    start = time.process_time()
    predictor = XRFPredictor(CHECKPOINT, device="cpu")
    model = predictor.model
    yield "load_s", time.process_time() - start, "s", f"{CHECKPOINT.name}, after imports"
    batch = rows.with_format("numpy")[:]
    calibration = {name: batch[name] for name in ("gain_kev", "offset_kev", "tube_kv")}
    features = predictor.feature_extractor(list(batch["counts"]), **calibration, return_tensors="np")
    patches = float(features["attention_mask"].sum(1).mean())
    flops = encoder_flops(model.config, round(patches))
    yield "predict_gflop", flops / 1e9, "GFLOP/spectrum", f"encoder of {CHECKPOINT.name}, {patches:.1f} patches"
    predictor({name: values[:256] for name, values in batch.items()})
    start = time.process_time()
    predictions = predictor(batch)
    rate = len(rows) / (time.process_time() - start)
    yield "predict_rate", rate, "spectra/s", f"XRFPredictor({CHECKPOINT.name}), one thread"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.parquet"
        pq.write_table(pa.table(predictions), path)
        size = path.stat().st_size / len(rows)
    yield "prediction_bytes", size, "byte/spectrum", f"{len(predictions)} columns of {CHECKPOINT.name} as Parquet"


def stream_rate(corpus: Path, batches: int = 60, batch_size: int = 256) -> float:
    """Spectra per second from the training split to batches of features, after the first block."""
    import corpus_xrf
    from feature_extraction_xrf import XRFFeatureExtractor
    from streaming_xrf import SpectrumStream, StreamedRows

    rows = corpus_xrf.load_split(corpus, "train", streaming=True)
    source = StreamedRows(rows, block=4 * batch_size)
    stream = iter(SpectrumStream(source, XRFFeatureExtractor(spectrum_length=2048), "train", batch_size, seed=0))
    for _ in range(4):
        next(stream)
    start = time.process_time()
    for _ in range(batches):
        next(stream)
    return batches * batch_size / (time.process_time() - start)


def leakage_measurements(corpus: Path, number: int = 8000):
    """The search of a build for near copies on two sides of a split."""
    from scipy.spatial import cKDTree

    import corpus_xrf
    from dataset_builder.near_copies import SKETCH_SIZE, coarse_counts, near_copies

    rows = corpus_xrf.spread(corpus_xrf.load_split(corpus, "train"), number).with_format("numpy")[:]
    energies = zip(rows["counts"], rows["gain_kev"], rows["offset_kev"])
    coarse = np.stack([coarse_counts(*each) for each in energies]).astype(np.float32)
    sides = np.random.default_rng(0).choice(3, len(coarse), p=[0.98, 0.01, 0.01])
    start = time.process_time()
    list(near_copies(coarse, np.ones((len(coarse), 2)), sides))
    yield "leakage_rate", len(coarse) / (time.process_time() - start), "spectra/s", f"near copies among {len(coarse)}"
    sketches = np.random.default_rng(0).standard_normal((1_000_000, SKETCH_SIZE)).astype(np.float32)
    before = resident_bytes()
    tree = cKDTree(sketches)
    yield "tree_bytes", (resident_bytes() - before) / tree.n, "byte/spectrum", "its search tree"


def simulation_source():
    """What the recipe `simulated_any` simulates."""
    import corpus_xrf

    (part,) = corpus_xrf.find_recipe("simulated_any").parts
    return part.source()


def base_share(batch_size: int = 8) -> float:
    """Share of the matrix peak that a training step of base on whole spectra reaches here."""
    import torch

    from configuration_xrf import XRFMaskedConfig
    from modeling_xrf import XRFForMaskedSpectrumModeling
    from training_xrf import training_flops

    config = XRFMaskedConfig.from_size("base")
    model = XRFForMaskedSpectrumModeling(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    values = torch.randn(batch_size, config.spectrum_length)
    for _ in range(3):  # the first makes the optimiser's state
        start = time.process_time()
        model(values).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.process_time() - start
    matrix = torch.randn(1024, 1024)
    product = matrix @ matrix
    start = time.process_time()
    for _ in range(40):
        torch.mm(matrix, matrix, out=product)
    peak = 40 * 2 * 1024**3 / (time.process_time() - start)
    return batch_size * training_flops(config) / seconds / peak


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])


def append(path: Path, found: Iterable[tuple]) -> None:
    from training_xrf import provenance

    origin = provenance()
    rows = [{**origin, **dict(zip(COLUMNS[3:], (name, f"{value:.6g}", *rest)))} for name, value, *rest in found]
    append_rows(path, COLUMNS, rows)


# ---------------------------------------------------------------------------------------------------------------------
# Computing


def last_values(path: Path) -> dict[str, dict]:
    """The last measurement of every quantity."""
    return {row["quantity"]: {**row, "value": float(row["value"])} for row in read_rows(path)}


def reading_rates(path: Path) -> dict[str, float]:
    """Spectra per second and core of each way of `READ`, on a grid of 2048 channels."""
    rows = [row for row in read_rows(path) if row["workers"] == "0" and row["grid"] == "2048 x 20 eV"]
    found = {row["path"]: float(row["spectra_per_s"]) for row in rows if row["native"] == "10 kV, 2048 x 20 eV"}
    return {name: found[path] for name, path in READ.items()}


def tables(measured: dict[str, dict], rates: dict[str, float]) -> dict[str, str]:
    """All tables of the page by name, as Markdown."""
    value = {name: row["value"] for name, row in measured.items()}
    given = {name: amount * PREFIXES.get(unit, 1) for name, (amount, unit, _) in ASSUMED.items()}
    return {
        "measured": markdown(
            ("measured", "value", "how", "commit, date"),
            [
                (name, f"{number(row['value'])} {row['unit']}", row["how"], f"{row['commit']}, {row['date']}")
                for name, row in measured.items()
            ]
            + [
                (f"reading: {name}", f"{number(rate)} spectra/s", "one core", "reading.csv")
                for name, rate in rates.items()
            ],
        ),
        "assumed": markdown(
            ("assumed, not measured here", "value", "what"),
            [(name, f"{number(amount)} {unit}", what) for name, (amount, unit, what) in ASSUMED.items()],
        ),
        "bytes": bytes_table(value, given),
        "shards": shards_table(value, given),
        "hours": hours_table(value, given),
        "feeding": feeding_table(value, given, rates),
        "limits": limits_table(value, given),
    }


def base_config():
    from configuration_xrf import XRFMaskedConfig

    return XRFMaskedConfig.from_size("base")


def feature_bytes() -> int:
    """Of one spectrum in the cache of features: input values, mask, number."""
    config = base_config()
    return 4 * config.spectrum_length + config.num_patches + 8


def gpu_rates(value: dict, given: dict) -> dict[str, tuple[float, float]]:
    """FLOP of a spectrum and spectra per second on one GPU."""
    from training_xrf import encoder_flops, training_flops

    base, patches = base_config(), round(value["patches"])
    work = {
        "pretraining base": (training_flops(base, patches), given["share"]),
        "prediction by base": (encoder_flops(base, patches), given["share"]),
        "prediction by xrf-tiny": (1e9 * value["predict_gflop"], given["tiny_share"]),
    }
    return {name: (flops, share * given["peak"] / flops) for name, (flops, share) in work.items()}


def bytes_table(value: dict, given: dict) -> str:
    kinds = {
        "spectra as Parquet": value["parquet_bytes"],
        "cache of features": feature_bytes(),
        "predictions by xrf-tiny, all columns": value["prediction_bytes"],
    }
    rows = [
        (
            name,
            number(each),
            *(size(each * spectra) for spectra in (1e6, 1e8, 1e9)),
            f"{number(each * 1e9 / 1e9 * given['month'])} USD",
        )
        for name, each in kinds.items()
    ]
    return markdown(("what", "byte/spectrum", "10^6", "10^8", "10^9", "10^9, a month in a store"), rows)


def shards_table(value: dict, given: dict) -> str:
    rows = []
    for shard_rows in (value["shard_rows"], 8 * value["shard_rows"], 32 * value["shard_rows"]):
        files = math.ceil(1e9 / shard_rows)
        rows.append(
            (
                number(shard_rows),
                size(shard_rows * value["parquet_bytes"]),
                number(files),
                number(math.ceil(files / given["list"])),
                number(files / (8 * given["machine_gpus"])),
            )
        )
    return markdown(
        ("spectra in a file", "its size", "files of 10^9", "listing requests", "files for each of 64 GPUs"), rows
    )


def hours_table(value: dict, given: dict) -> str:
    rates = gpu_rates(value, given)
    rows = []
    for task, spectra, passes in (
        ("pretraining base", 1e8, 1),
        ("pretraining base", 1e8, 10),
        ("prediction by base", 1e9, 1),
    ):
        flops, rate = rates[task]
        hours = passes * spectra / rate / 3600
        rows.append(
            (
                f"{task}, {power(spectra)}" + (f", {passes} passes" if passes > 1 else ""),
                "GPU",
                f"{number(flops / 1e9)} GFLOP",
                number(rate),
                number(hours),
                days(hours / given["machine_gpus"]),
                f"{number(hours * given['gpu_hour'])} USD",
            )
        )
    tiny, cores = rates["prediction by xrf-tiny"][1], given["machine_cores"]
    readers = tiny / value["stream_rate"]
    with_readers = f"GPU and {number(readers)} cores that read for it"
    dear = given["gpu_hour"] + readers * given["core_hour"]
    for task, spectra, on, rate, in_machine, price in (
        ("prediction by xrf-tiny", 1e9, with_readers, tiny, cores / readers, dear),
        ("prediction by xrf-tiny", 1e9, "core", value["predict_rate"], cores, given["core_hour"]),
        ("simulating (simulated_any)", 1e8, "core", value["simulation_rate"], cores, given["core_hour"]),
    ):
        hours = spectra / rate / 3600
        rows.append(
            (
                f"{task}, {power(spectra)}",
                on,
                "",
                number(rate),
                number(hours),
                days(hours / in_machine),
                f"{number(hours * price)} USD",
            )
        )
    header = ("task", "on", "a spectrum", "spectra/s each", "hours", "on one machine", "cost")
    return markdown(header, rows)


def feeding_table(value: dict, given: dict, reading: dict[str, float]) -> str:
    rows = []
    for task, (_, rate) in gpu_rates(value, given).items():
        needed = rate * value["parquet_bytes"]
        cores = [number(rate / each) for each in (value["stream_rate"], value["simulation_rate"], *reading.values())]
        rows.append((task, number(rate), f"{size(needed)}/s", number(needed / given["connection"]), *cores))
    ways = ("Parquet, streamed", "simulated_any, drawn while training", *reading)
    header = ("one GPU at", "spectra/s", "Parquet", "connections", *(f"cores: {way}" for way in ways))
    return markdown(header, rows)


def limits_table(value: dict, given: dict) -> str:
    """What does not grow with the rest, the first to break first."""
    import torch

    from modeling_xrf import XRFForMaskedSpectrumModeling

    gpus, cores, rates = given["machine_gpus"], given["machine_cores"], gpu_rates(value, given)
    with torch.device("meta"):
        parameters = XRFForMaskedSpectrumModeling(base_config()).num_parameters()
    train = rates["pretraining base"][1]
    simulated = cores * value["simulation_rate"]
    streamed = cores * value["stream_rate"]
    tiny = gpus * rates["prediction by xrf-tiny"][1]
    disk, memory = given["machine_disk"], given["machine_memory"]
    rows = [
        (
            "reading for predictions by xrf-tiny on GPUs",
            f"{number(streamed / tiny * 100)} % of what {gpus} GPUs take, from {cores} cores",
            f"a GPU to {number(tiny / gpus / value['stream_rate'])} cores",
        ),
        (
            "streaming a number of files that readers (processes times workers) do not divide",
            f"every reader reads all files: {gpus} times as much with {gpus} readers",
            "a multiple of their number",
        ),
        (
            "simulating (simulated_any) while training base",
            f"{number(simulated / (gpus * train) * 100)} % of what {gpus} GPUs take, from {cores} cores",
            "simulate once, read Parquet",
        ),
        (
            "one process that predicts with xrf-tiny",
            f"{number(value['predict_rate'] * 86400)} spectra a day",
            "Ray, Spark, or a `predict.py` for each part of the files",
        ),
        (
            "search for near copies in a build, one process",
            f"10^9 take {days(1e9 / value['leakage_rate'] / 3600)} or more; {size(disk)} of disk holds the coarse "
            f"spectra of {number(disk / COARSE_BYTES)}, {size(memory)} of memory the tree of "
            f"{number(memory / value['tree_bytes'])}",
            "several corpora, each built by itself",
        ),
        (
            "cache of features on a local disk",
            f"{size(disk)} holds {number(disk / feature_bytes())}",
            "`--streaming`: no cache",
        ),
        (
            f"shuffling: a list of numbers in each of {gpus} processes",
            f"{size(memory)} holds {number(memory / gpus / value['shuffle_bytes'])}; 10^9 take "
            f"{number(1e9 / value['shuffle_rate'])} s a pass",
            "`--streaming`: shuffled within blocks",
        ),
        (
            "resuming a streamed run, which reads again what it has seen",
            f"{days(1e8 / gpus / value['stream_rate'] / 3600)} after 10^8 spectra, {gpus} processes of one worker",
            "more workers",
        ),
        (
            f"files of {number(value['shard_rows'])} spectra",
            f"{number(math.ceil(1e9 / value['shard_rows']))} for 10^9, all named in `corpus.json` and the card",
            "`--shard-rows`",
        ),
        (
            "checkpoint of base: weights and two moments",
            f"{size(12 * parameters)} ({number(parameters)} parameters)",
            "none needed; FSDP2 writes a share from each process",
        ),
    ]
    return markdown(("what", "how far it goes", "remedy"), rows)


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def number(value: float) -> str:
    """Three digits, thousands apart."""
    if value == 0:
        return "0"
    if abs(value) >= 1e9:
        exponent = math.floor(math.log10(abs(value)))
        return f"{value / 10**exponent:.3g} x 10^{exponent}"
    digits = 2 - math.floor(math.log10(abs(value)))
    value = round(value, digits)
    return f"{value:,.{max(digits, 0)}f}".rstrip("0").rstrip(".") if digits > 0 else f"{value:,.0f}"


def power(value: float) -> str:
    return f"10^{round(math.log10(value))}"


def size(count: float) -> str:
    """Bytes, in powers of ten."""
    for unit, factor in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{number(count / factor)} {unit}"
    return f"{number(count)} byte"


def days(hours: float) -> str:
    if hours < 1:
        return f"{number(60 * hours)} minutes"
    return f"{number(hours / 24)} days" if hours >= 48 else f"{number(hours)} hours"


def filled(page: str, found: dict[str, str]) -> str:
    """The page with every table between its marks, `<!-- NAME -->` and `<!-- end -->`."""
    for name, text in found.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if len(pattern.findall(page)) != 1:
            raise ValueError(f"{PAGE.name} must have one place for the table {name!r}, <!-- {name} -->.")
        page = pattern.sub(lambda match, text=text: f"{match[1]}\n{text}\n\n{match[2]}", page)
    return page


if __name__ == "__main__":
    run(main)
