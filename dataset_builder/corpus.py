"""Build a corpus folder that `datasets.load_dataset` reads without this package."""

import json
import math
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from files_xrf import atomic_folder

from .card import render_card
from .splits import group_names

ROWS_PER_GROUP = 1000
SUMMARY_FILE = "corpus.json"


def build_corpus(
    source,
    output_dir,
    *,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    num_proc: int | None = None,
    shard_rows: int = 20_000,
    license: str | None = None,
    **options,
) -> Path:
    """Build `output_dir/data/<split>-00000-of-0000N.parquet`, a dataset card and `corpus.json`.

    The same input gives the same bytes, whatever `num_proc` is. The folder appears when it is complete. Where it
    already holds the very same corpus nothing is done.

    Args:
        source (`str`, path or list of them): `"simulated"`, or files and folders.
        output_dir (path): a new or empty folder.
        validation_fraction, test_fraction (`float`): shares of the spectra, given out by core (or sample).
        seed (`int`): of the split, and of the simulation.
        num_proc (`int`, *optional*): worker processes.
        shard_rows (`int`): spectra in a Parquet file.
        license (`str`, *optional*): Hub identifier for the card; `apache-2.0` for simulated spectra, else `other`.
        options: `num_spectra` and `num_cores` of a simulation; `column_mapping` (`dict`) and `core_pattern` for files,
            see `XRFBuilderConfig`.

    Returns:
        `Path`: the folder.

    Raises:
        SpectrumFileError: a file cannot be used.
        ValueError: an option is out of range, or the folder holds something else.
    """
    from .builder import XRFDatasetBuilder
    from .config import XRFBuilderConfig

    if shard_rows < 1:
        raise ValueError(f"shard_rows must be at least 1; got {shard_rows}.")
    output_dir = Path(output_dir)
    config_options = dict(
        source=source,
        seed=seed,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        **options,
    )
    license = license or ("apache-2.0" if source == "simulated" else "other")
    fingerprint = XRFBuilderConfig(**config_options).fingerprint()
    written = {"shard_rows": shard_rows, "license": license}
    if _holds_corpus(output_dir, {"fingerprint": fingerprint, **written}):
        return output_dir

    with (
        atomic_folder(output_dir) as result,
        tempfile.TemporaryDirectory(
            prefix=f".{output_dir.name}-", dir=output_dir.parent, ignore_cleanup_errors=True
        ) as cache_dir,
    ):
        with _progress_bars_on_terminals():
            builder = XRFDatasetBuilder(cache_dir=cache_dir, **config_options)
            _prepare(builder, num_proc)
            (result / "data").mkdir()
            splits = {name: builder.as_dataset(name) for name in builder.info.splits}
            summaries = {}
            for name, dataset in splits.items():
                files = _write_split(dataset, result / "data", name, shard_rows)
                summaries[name] = {**_summarise(dataset), "files": files}
        summary = {"fingerprint": fingerprint, **written, "splits": summaries}
        (result / SUMMARY_FILE).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        (result / "README.md").write_text(render_card(builder.config, splits, license), encoding="utf-8")
        del splits  # closes the cache
    return output_dir


def _prepare(builder, num_proc):
    """Fill the builder's cache; of an error while writing, the cause (such as a full disk) is what a user needs."""
    from datasets.exceptions import DatasetGenerationError

    try:
        builder.download_and_prepare(num_proc=num_proc)
    except DatasetGenerationError as error:
        cause = error
        while isinstance(cause, DatasetGenerationError) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise cause from None


def _holds_corpus(output_dir, expected):
    """Whether the folder holds this corpus; raises where it holds anything else."""
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        return False
    try:
        found = json.loads((output_dir / SUMMARY_FILE).read_text(encoding="utf-8"))
        same = all(found[key] == value for key, value in expected.items())
        same = same and all((output_dir / f).is_file() for s in found["splits"].values() for f in s["files"])
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ValueError(f"The output folder {output_dir} already holds something else: give a new or empty folder.")
    return True


def _write_split(dataset, folder, split, shard_rows):
    """Parquet files of one split; returns their names relative to the corpus."""
    import pyarrow.parquet as pq

    schema = dataset.features.arrow_schema
    num_shards = math.ceil(len(dataset) / shard_rows)
    files = []
    for shard in range(num_shards):
        path = folder / f"{split}-{shard:05d}-of-{num_shards:05d}.parquet"
        stop = min((shard + 1) * shard_rows, len(dataset))
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for start in range(shard * shard_rows, stop, ROWS_PER_GROUP):
                table = dataset.data.table.slice(start, min(ROWS_PER_GROUP, stop - start))
                # One chunk a row group: how the cache was divided must not show in the bytes.
                writer.write_table(table.cast(schema).combine_chunks())
        files.append(f"data/{path.name}")
    return files


def _summarise(dataset):
    return {"spectra": len(dataset), "groups": len(set(group_names(dataset["core"], dataset["sample"])))}


@contextmanager
def _progress_bars_on_terminals():
    """Progress bars of `datasets` only where someone watches."""
    import datasets

    enabled = datasets.is_progress_bar_enabled()
    if enabled and not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_progress_bars()
