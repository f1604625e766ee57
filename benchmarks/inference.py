"""How fast predictions are: the model alone, predict.py, ONNX Runtime and 8-bit weights, memory, start-up.

    XRF_REAL_DATA=path/to/spectra python benchmarks/inference.py
    XRF_REAL_DATA=path/to/spectra python benchmarks/inference.py --million    # memory with 10^6 spectra, too
    python benchmarks/inference.py --table

Without options about seven minutes on two cores. Parts, which `--parts` selects:

- `predict`: `scripts/predict.py` on Parquet, Parquet out, beside the bare model: its forward pass on ready tensors of
  the same spectra, in the batch size that is best for it, with the same threads and precision. The rate of predict.py
  is that of the spectra by which its longer run exceeds the shorter, so that start-up does not count. Both run twice,
  in turn with the bare model, the best of each counts, and `of bare` is the ratio of these. The same ratio of
  processor time asks less how busy the machine is otherwise.
- `memory`: the peak of the whole process of predict.py.
- `onnx`: `scripts/export_onnx.py --int8`, and the rates of ONNX Runtime beside torch's, on the same batches.
- `int8`: errors without labels on real labelled spectra, RMSE and mean correlation of ln(wt%), with weights as they
  are and with 8-bit weights; needs real spectra.
- `start_up`: seconds of processor time of imports and of `predict.py --help`, each in a process of its own.

Models are `model_cards/xrf-tiny` and `tiny`, the size that `run_msm.py` trains (patches of 16 channels, random
weights). Spectra are simulated: of one core scanner at 10 kV with two laboratory values, and of 40 instruments, each
with all the labels of the simulation. Rows are appended to `benchmarks/inference.csv`; `--table` prints those of the
last commit in it.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import real_data
from results import append_rows, last_rows, markdown

from command_line_xrf import run

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "inference.csv"
PARTS = ("predict", "memory", "onnx", "int8", "start_up")
COLUMNS = ("date", "commit", "hardware", "versions", "part", "model", "spectra", "what", "value")
BATCH_SIZES = (16, 32, 64, 128, 256, 512)  # that the bare model may choose from
NUM_BARE = 4000  # spectra that the bare model and ONNX Runtime are measured on
ONE, MANY = "one core scanner, 10 kV", "40 instruments"
# (model, spectra): numbers of spectra of predict.py's shorter and longer run
RUNS = {("xrf-tiny", ONE): (10_000, 100_000), ("xrf-tiny", MANY): (4_000, 44_000), ("tiny", ONE): (4_000, 24_000)}
MEMORY = (10_000, 100_000)
IMPORTS = {
    "import transformers": "import transformers",
    "PreTrainedModel, AutoModel": "from transformers import AutoModel, PreTrainedModel",
    "import modeling_xrf": "import modeling_xrf",
}
LABELLED = ("mudrock_light_instrument_a", "mudrock_light_instrument_b", "mudrock_trace_instrument_a",
            "mudrock_trace_instrument_b", "obsidian_instrument_c")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--million", action="store_true", help="measure memory with 10^6 spectra, too")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual numbers of spectra, to try it")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "inference", help="of spectra and models")
    parser.add_argument("--results", type=Path, default=RESULTS, help="CSV that rows are appended to")
    parser.add_argument("--table", action="store_true", help="only print the table of earlier results")
    args = parser.parse_args()
    if not args.table:
        from training_xrf import provenance

        origin = {**provenance(), "versions": versions()}
        args.output_dir.mkdir(parents=True, exist_ok=True)
        for part in args.parts:
            for row in globals()[f"measure_{part}"](args):
                append_rows(args.results, COLUMNS, [{**origin, "part": part, **row}])
                print(*(row[name] for name in ("model", "spectra", "what", "value")), sep=" | ", flush=True)
    print(table(args.results))


def versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    names = []
    for name in ("torch", "transformers", "pyarrow", "onnxruntime"):
        try:
            names.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(names)


# ---------------------------------------------------------------------------------------------------------------------
# What is measured: each yields rows of the results


def measure_predict(args):
    for (model, spectra), numbers in RUNS.items():
        short, long = (max(int(number * args.scale), 200) for number in numbers)
        folder = model_folder(args.output_dir, model)
        shorter, longer = (corpus(args.output_dir, spectra, number) for number in (short, long))
        runs, bare = {shorter: [], longer: []}, []
        for parquet in (shorter, longer, shorter, longer):
            bare.append(in_a_process(bare_rate, folder, shorter))
            runs[parquet].append(predict(folder, parquet))
        rate, rate_of_processor = (
            (long - short) / (min(run[key] for run in runs[longer]) - min(run[key] for run in runs[shorter]))
            for key in ("seconds", "processor_s")
        )
        bare_rates = [max(each[i] for each in bare) for i in (0, 1)]
        start_s = min(run["seconds"] for run in runs[shorter])
        about = {"model": model, "spectra": spectra}
        yield {**about, "what": f"bare model, batches of {bare[-1][2]}, spectra/s", "value": round(bare_rates[0])}
        yield {**about, "what": "predict.py, spectra/s", "value": round(rate)}
        yield {**about, "what": "predict.py, of bare", "value": f"{rate / bare_rates[0]:.3f}"}
        yield {**about, "what": "predict.py, of bare, processor", "value": f"{rate_of_processor / bare_rates[1]:.3f}"}
        yield {**about, "what": f"predict.py, s in all for {short}", "value": f"{start_s:.1f}"}


def measure_memory(args):
    numbers = [max(int(number * args.scale), 200) for number in MEMORY] + ([1_000_000] if args.million else [])
    for number in numbers:
        peak_mb = predict(model_folder(args.output_dir, "xrf-tiny"), corpus(args.output_dir, ONE, number))["peak_mb"]
        yield {"model": "xrf-tiny", "spectra": number, "what": "predict.py, peak MB", "value": round(peak_mb)}


def measure_onnx(args):
    for model, spectra in RUNS:
        exported = export(args.output_dir, model)
        parquet = corpus(args.output_dir, spectra, max(int(NUM_BARE * args.scale), 200))
        rates = in_a_process(onnx_rates, model_folder(args.output_dir, model), exported, parquet)
        for name, rate in rates.items():
            yield {"model": model, "spectra": spectra, "what": f"{name}, spectra/s", "value": round(rate)}


def measure_int8(args):
    folder = real_data.FOLDER / "labelled"
    if not folder.is_dir():
        raise ValueError(f"There are no real spectra in {folder}; set XRF_REAL_DATA, or leave int8 out of --parts.")
    exported = export(args.output_dir, "xrf-tiny")
    for name in LABELLED:
        exact, rounded = (
            in_a_process(errors, exported, file, folder / f"{name}.npz") for file in ("model.onnx", "model_int8.onnx")
        )
        about = {"model": "xrf-tiny", "spectra": name}
        yield {**about, "what": "fp32, RMSE of ln(wt%)", "value": f"{exact[0]:.4f}"}
        yield {**about, "what": "int8, RMSE of ln(wt%)", "value": f"{rounded[0]:.4f}"}
        yield {**about, "what": "int8, growth of RMSE in %", "value": f"{100 * (rounded[0] / exact[0] - 1):.2f}"}
        yield {**about, "what": "fp32, mean r", "value": f"{exact[1]:.4f}"}
        yield {**about, "what": "int8, mean r", "value": f"{rounded[1]:.4f}"}


def measure_start_up(args):
    commands = {name: ["-c", code] for name, code in IMPORTS.items()}
    commands["predict.py --help"] = ["scripts/predict.py", "--help"]
    seconds = {name: [] for name in commands}
    for number in range(4):  # in turn; the first round fills the file cache
        for name, command in commands.items():
            seconds[name] += [processor_seconds(command)][: number > 0]
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    medians["modeling_xrf over transformers' own"] = (
        medians["import modeling_xrf"] - medians["PreTrainedModel, AutoModel"]
    )
    for name, median in medians.items():
        yield {"model": "", "spectra": "", "what": f"{name}, s", "value": f"{median:.2f}"}


# ---------------------------------------------------------------------------------------------------------------------
# What it is measured on


def model_folder(folder: Path, model: str) -> Path:
    """The repository of a model; that of random weights is written first."""
    if model == "xrf-tiny":
        return ROOT / "model_cards" / "xrf-tiny"
    path = folder / model
    if not path.exists():
        in_a_process(save_random_model, path)
    return path


def save_random_model(path: Path) -> None:
    import torch

    from configuration_xrf import XRFMaskedConfig
    from feature_extraction_xrf import XRFFeatureExtractor
    from files_xrf import atomic_folder
    from modeling_xrf import XRFForRegression

    torch.manual_seed(0)
    config = XRFMaskedConfig.from_size("tiny", target_names=["CaCO3", "TOC"], target_units=["wt%", "wt%"])
    with atomic_folder(path) as temporary:
        XRFForRegression(config).save_pretrained(temporary)
        XRFFeatureExtractor.for_config(config).save_pretrained(temporary)


def corpus(folder: Path, spectra: str, number: int) -> Path:
    """A Parquet file of so many simulated spectra; beyond 4,000 they repeat."""
    path = folder / f"{'one' if spectra == ONE else 'many'}-{number}.parquet"
    if not path.exists():
        in_a_process(write_corpus, path, spectra, number)
    return path


def write_corpus(path: Path, spectra: str, number: int) -> None:
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    from dataset_builder.simulation import TARGET_NAMES, SimulatedSource
    from files_xrf import atomic_file

    if spectra == ONE:
        source = SimulatedSource(instruments="avaatech_10kv", num_spectra=4_000, num_cores=20)
    else:
        source = SimulatedSource(["rock", "soil", "ore"], "random", num_spectra=4_000, num_cores=40)
    table = pa.concat_tables(batch.table() for unit in range(source.num_units) for batch in source.simulate(unit))
    if spectra == ONE:  # as from a laboratory
        table = table.drop_columns([name for name in TARGET_NAMES if name not in ("CaCO3", "TOC")])
        units = pa.array([json.dumps({"CaCO3": "wt%", "TOC": "wt%"})] * len(table))
        table = table.set_column(table.schema.get_field_index("target_units"), "target_units", units)
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, table.schema, compression="zstd") as writer:
        for start in range(0, number, len(table)):
            writer.write_table(table.slice(0, number - start), row_group_size=1000)


def export(folder: Path, model: str) -> Path:
    path = folder / f"{model}-onnx"
    command = [ROOT / "scripts" / "export_onnx.py", "--model", model_folder(folder, model), "--output", path, "--int8"]
    if not path.exists():
        subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# How it is measured


def in_a_process(function, *arguments):
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def predict(model: Path, parquet: Path) -> dict[str, float]:
    """Seconds, seconds of processor time, and peak memory of predict.py."""
    with tempfile.TemporaryDirectory() as folder:
        command = [ROOT / "scripts" / "predict.py", model, parquet, "--output", Path(folder) / "out.parquet"]
        start = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise ValueError(f"predict.py {model} {parquet} exited with {child.returncode}; call it to see why.")
    return {
        "seconds": seconds,
        "processor_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
    }


def processor_seconds(command: list[str]) -> float:
    """Of a Python process, so that what else runs counts less than in time on the clock."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ready_batches(predictor, parquet: Path, batch_size: int | None) -> list[dict]:
    """Model inputs of the first spectra of a corpus, as predict.py makes them."""
    from inference_xrf import InferenceArguments, Rejections, equally_measured, extract_features, read_batches

    ready, count = [], 0
    for rows in read_batches([parquet], None, InferenceArguments(), Rejections()):
        _, features = extract_features(predictor.feature_extractor, rows, Rejections())
        ready += [inputs for _, inputs in equally_measured(predictor.model, features, batch_size)]
        count += len(rows)
        if count >= NUM_BARE:
            return ready
    return ready


def rates_of(call, batches: list[dict]) -> tuple[float, float]:
    """Spectra per second, and per second of processor time, of calls with every batch, after one that does not
    count."""
    call(**batches[0])
    start, start_of_processor = time.perf_counter(), time.process_time()
    for inputs in batches:
        call(**inputs)
    count = sum(len(inputs["input_values"]) for inputs in batches)
    return count / (time.perf_counter() - start), count / (time.process_time() - start_of_processor)


def bare_rate(model: Path, parquet: Path) -> tuple[float, float, int]:
    """The rates of the model alone, and its best batch size."""
    import torch

    from inference_xrf import XRFPredictor

    predictor = XRFPredictor(model, "cpu")
    with torch.inference_mode():
        rates = []
        for batch_size in BATCH_SIZES:
            batches = ready_batches(predictor, parquet, batch_size)
            few = batches[:: max(len(batches) * batch_size // 1000, 1)]  # about 1,000 spectra
            rates.append((rates_of(predictor.model, few)[0], batch_size))
        best = max(rates)[1]
        return *rates_of(predictor.model, ready_batches(predictor, parquet, best)), best


def onnx_rates(model: Path, exported: Path, parquet: Path) -> dict[str, float]:
    """Spectra per second of torch, ONNX Runtime, and the latter with 8-bit weights, on the same threads."""
    import onnxruntime
    import torch

    from inference_xrf import XRFPredictor

    predictor = XRFPredictor(model, "cpu")
    batches = ready_batches(predictor, parquet, None)
    with torch.inference_mode():
        rates = {"torch": rates_of(predictor.model, batches)[0]}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    arrays = []
    for inputs in batches:
        mask = np.ones((len(inputs["input_values"]), predictor.model.config.num_patches), dtype=np.int64)
        if "patch_ids" in inputs:
            mask[:] = 0
            np.put_along_axis(mask, inputs["patch_ids"].numpy(), 1, axis=1)
        arrays.append({"input_values": inputs["input_values"].numpy(), "attention_mask": mask})
    for name, file in (("ONNX Runtime", "model.onnx"), ("ONNX Runtime, int8", "model_int8.onnx")):
        session = onnxruntime.InferenceSession(exported / file, options, providers=["CPUExecutionProvider"])
        rates[name] = rates_of(lambda session=session, **feed: session.run(None, feed), arrays)[0]
    return rates


def errors(exported: Path, file: str, spectra_file: Path) -> tuple[float, float]:
    """RMSE and mean correlation of ln(wt%) over spectra and elements, predicted without labels."""
    import onnxruntime
    from few_labels import LIGHT_ELEMENTS

    from configuration_xrf import XRFMaskedConfig
    from dataset_builder import read_spectra
    from feature_extraction_xrf import XRFFeatureExtractor

    spectra = read_spectra(spectra_file)
    determined = set.intersection(*(set(spectrum.targets) for spectrum in spectra))
    config = XRFMaskedConfig.from_pretrained(exported)
    names = sorted(determined & set(config.target_names))
    names = [name for name in names if "light" not in spectra_file.name or name in LIGHT_ELEMENTS]
    session = onnxruntime.InferenceSession(exported / file, providers=["CPUExecutionProvider"])
    predictions = session.run(["predictions"], dict(XRFFeatureExtractor.from_pretrained(exported)(spectra)))[0]
    predicted = np.log(predictions[:, [config.target_names.index(name) for name in names]])
    truth = np.log([[spectrum.targets[name] for name in names] for spectrum in spectra])
    correlations = [np.corrcoef(predicted[:, i], truth[:, i])[0, 1] for i in range(len(names))]
    return float(np.sqrt(np.mean((predicted - truth) ** 2))), float(np.mean(correlations))


# ---------------------------------------------------------------------------------------------------------------------


def table(path: Path) -> str:
    """Markdown of the rows of the last commit."""
    columns = COLUMNS[COLUMNS.index("part") :]
    return markdown(columns, ([row[column] for column in columns] for row in last_rows(path)))


if __name__ == "__main__":
    run(main)
