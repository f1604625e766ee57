"""Embed spectra with any XRF model, pretrained or fine-tuned, into one Parquet table, and draw a map of them.

Instrument files, folders (searched to the bottom), NumPy archives, tables and corpora, in any mixture:

    python scripts/embed.py runs/demo/pretrained core_7/ corpus/ --output embeddings.parquet

With a map, coloured by a column of the table, a reference value or a field of the metadata, numbers or texts:

    python scripts/embed.py org/xrf-base corpus/ --output embeddings.parquet --map map.png --color_by CaCO3
    python scripts/embed.py org/xrf-base corpus/ --output embeddings.parquet --map map.png --color_by instrument \
        --projection tsne

The table has one row per spectrum: `file` and `index` (its place in the file, from 0), every identifier the input
holds (what has no column of its own stands as JSON in `metadata`, labels in `reference_values`), and `embedding`, a
list of `hidden_size` float32 numbers: the mean of the encoder's output over the measured patches. Spectra are
streamed, so memory does not grow with their number; the map draws at most `--map_spectra` of them, chosen at random.
With `--on_error skip` `<output>.rejected.csv` lists what could not be used, and why.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from command_line_xrf import HfArgumentParser, run
from inference_xrf import (
    InferenceArguments,
    embed,
    feature_batches,
    find_inputs,
    identifier_columns,
    identifier_fields,
    load_encoder,
    output_paths,
    read_batches,
    rejection_table,
    table_writer,
    target_units,
)

SMALLEST_MAP = 4  # spectra; fewer have no neighbours worth a map


@dataclass
class EmbeddingArguments(InferenceArguments):
    output: str = field(metadata={"help": "table to write, .parquet"})
    map: str | None = field(default=None, metadata={"help": "figure to write, .png: the embeddings in two dimensions"})
    color_by: str | None = field(
        default=None, metadata={"help": "column, reference value or metadata field that colours the map"}
    )
    projection: Literal["pca", "tsne"] = field(
        default="pca",
        metadata={"help": "how to flatten embeddings: keep the largest variance, or neighbours"},
    )
    map_spectra: int = field(default=10_000, metadata={"help": "spectra on the map at most"})

    def __post_init__(self):
        super().__post_init__()
        if self.color_by is not None and self.map is None:
            raise ValueError(f"color_by {self.color_by} colours a map; add --map map.png.")
        if self.map is not None and Path(self.map).suffix != ".png":
            raise ValueError(f"The map must be named .png, but is {self.map}; rename it.")
        if self.map is not None and Path(self.map).exists() and not self.overwrite:
            raise ValueError(f"The map {self.map} exists; choose another name, or add --overwrite.")
        if self.map_spectra < SMALLEST_MAP:
            raise ValueError(f"map_spectra must be at least {SMALLEST_MAP}, but is {self.map_spectra}.")


def main():
    parser = HfArgumentParser(EmbeddingArguments, description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or Hub id of a pretrained or fine-tuned model, or an adapter")
    parser.add_argument("inputs", nargs="+", help="files and folders of spectra")
    arguments, positional = parser.parse_args_into_dataclasses()
    output, rejected = output_paths(arguments, (".parquet",))

    import pyarrow as pa

    sources, mapping = find_inputs(positional.inputs, arguments.column_mapping, (output, rejected))
    encoder, feature_extractor = load_encoder(positional.model, arguments.device)
    embedding_type = pa.list_(pa.float32(), encoder.config.hidden_size)
    schema = pa.schema([*identifier_fields(), ("embedding", embedding_type)])

    num_embedded, units = 0, {}
    with table_writer(output, schema) as write, rejection_table(rejected, arguments.on_error) as rejections:
        batches = read_batches(sources, mapping, arguments, rejections)
        for batch, features in feature_batches(batches, feature_extractor, rejections):
            values = pa.array(embed(encoder, features, arguments.batch_size).ravel())
            embeddings = pa.FixedSizeListArray.from_arrays(values, type=embedding_type)
            write(pa.table(identifier_columns(batch) | {"embedding": embeddings}, schema=schema))
            num_embedded += len(batch)
            units |= target_units(batch)
    print(f"{num_embedded} spectra embedded in {encoder.config.hidden_size} numbers each: {output}")
    if rejections.number:
        print(f"{rejections.number} rejected: {rejected}")
    if arguments.map:
        draw_map(output, arguments, units)
        print(f"map: {arguments.map}")


def draw_map(table: Path, arguments: EmbeddingArguments, units: dict[str, str]) -> None:
    """A figure of the embeddings in a finished table, or of some of them, chosen at random."""
    import numpy as np
    import pyarrow.parquet as pq

    from figures_xrf import plot_embeddings

    number = pq.ParquetFile(table).metadata.num_rows
    if number < SMALLEST_MAP:
        raise ValueError(f"{table} is written, but a map needs at least {SMALLEST_MAP} spectra and has {number}.")
    rows = np.arange(number)
    if number > arguments.map_spectra:
        rows = np.sort(np.random.default_rng(0).choice(number, arguments.map_spectra, replace=False))
    embeddings, values = read_rows(table, rows, arguments.color_by)
    points, axis_names = project(embeddings, arguments.projection)
    name = arguments.color_by or ""
    name += f" ({units[name]})" if units.get(name) else ""
    title = f"{len(rows):,} of {number:,} spectra" if len(rows) < number else f"{number:,} spectra"
    plot_embeddings(arguments.map, points, axis_names, values, name, title)


def read_rows(table: Path, rows, color_by: str | None):
    """Embeddings `(len(rows), hidden_size)` of some rows of a table, in increasing order, and their values of
    `color_by` `(len(rows),)`: numbers with NaN, or texts with `""`, where they have none.

    Raises:
        ValueError: no row has a value of that name.
    """
    import numpy as np
    import pyarrow.parquet as pq

    file = pq.ParquetFile(table)
    is_column = color_by in file.schema_arrow.names
    columns = ["embedding", *([color_by] if is_column else ["reference_values", "metadata"] if color_by else [])]
    embeddings, values, names, start = [], [], set(), 0
    for group in range(file.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        chosen = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)] - start
        start = stop
        if len(chosen) == 0:
            continue
        part = file.read_row_group(group, columns=columns).take(chosen)
        embeddings.append(part["embedding"].combine_chunks().flatten().to_numpy().reshape(len(chosen), -1))
        if is_column:
            values += part[color_by].to_pylist()
        elif color_by:
            for texts in zip(part["metadata"].to_pylist(), part["reference_values"].to_pylist()):
                known = {key: value for text in texts if text for key, value in json.loads(text).items()}
                values.append(known.get(color_by))
                names.update(known)
    if color_by and all(value is None for value in values):
        choices = sorted({*file.schema_arrow.names, *names} - {"embedding", "metadata", "reference_values"})
        raise ValueError(
            f"{table} is written, but none of its spectra has a value of {color_by} to colour a map by; choose one of "
            f"{', '.join(choices)}."
        )
    return np.concatenate(embeddings), as_numbers_or_texts(values) if color_by else None


def as_numbers_or_texts(values: list):
    import numpy as np

    try:
        return np.array([np.nan if value is None else float(value) for value in values])
    except ValueError:
        return np.array(["" if value is None else str(value) for value in values])


def project(embeddings, projection: str):
    """Positions on a map `(N, 2)` of embeddings `(N, D)`, and names for its axes.

    `pca` takes the two principal components; `tsne` is t-distributed stochastic neighbour embedding (van der Maaten &
    Hinton 2008), which keeps neighbours together and says nothing about distances between groups.
    """
    import numpy as np

    if projection == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(embeddings) - 1) / 3)
        points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(embeddings)
        return points, ("t-SNE 1", "t-SNE 2")
    centred = embeddings - embeddings.mean(axis=0, dtype=np.float64)
    variances, directions = np.linalg.eigh(centred.T @ centred)  # by increasing variance
    directions = directions[:, [-1, -2]]
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), [0, 1]])  # the sign is arbitrary: settle it
    shares = variances[[-1, -2]] / max(variances.sum(), np.finfo(float).tiny)
    names = tuple(f"PC {number} ({100 * share:.0f} % of the variance)" for number, share in zip((1, 2), shares))
    return centred @ directions, names


if __name__ == "__main__":
    run(main)
