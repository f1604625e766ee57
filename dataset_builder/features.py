"""The one schema of a spectra corpus, and the way between `Spectrum` objects and its rows."""

import json
import math

import numpy as np

from .spectrum import Spectrum

FIXED_COLUMNS = {
    "counts": "list<float32>",
    "gain_kev": "float64",
    "offset_kev": "float64",
    "live_time_s": "float32",
    "real_time_s": "float32",
    "tube_kv": "float32",
    "tube_ua": "float32",
    "anode": "string",
    "filter": "string",
    "instrument": "string",
    "detector": "string",
    "sample": "string",
    "core": "string",
    "depth_mm": "float32",
    "x_mm": "float32",
    "y_mm": "float32",
    "source": "string",
    "metadata": "string",
    "target_units": "string",
}
"""Columns of every corpus. `metadata` and `target_units` are JSON text; each target is one more float32 column."""

_SCALAR_FIELDS = [name for name in FIXED_COLUMNS if name not in ("counts", "metadata", "target_units")]


def table_schema(target_names=()):
    """The `pyarrow.Schema` of a corpus.

    Args:
        target_names (sequence of `str`): one float32 column each, null where a target was not determined. The units
            stand in the column `target_units`, JSON text such as `{"CaCO3": "wt%"}`, the same in every row.

    Raises:
        ValueError: a target has the name of a fixed column, or two targets have one name.
    """
    import pyarrow as pa

    target_names = list(target_names)
    clashes = sorted(set(target_names) & set(FIXED_COLUMNS))
    if clashes or len(set(target_names)) < len(target_names):
        raise ValueError(
            f"Target names must be unique and differ from the fixed columns; rename {clashes or target_names}."
        )
    types = {"list<float32>": pa.list_(pa.float32()), "string": pa.string()}
    types |= {"float32": pa.float32(), "float64": pa.float64()}
    columns = {name: types[dtype] for name, dtype in FIXED_COLUMNS.items()}
    return pa.schema({**columns, **dict.fromkeys(target_names, pa.float32())})


def spectrum_features(target_names=()):
    """The `datasets.Features` of a corpus.

    Args and errors as `table_schema`.
    """
    from datasets import Features

    return Features.from_arrow_schema(table_schema(target_names))


def spectra_to_table(spectra, target_names=(), target_units=None):
    """Spectra as a `pyarrow.Table` with the schema `table_schema(target_names)`.

    Args:
        spectra (sequence of `Spectrum`): their channel numbers may differ.
        target_names (sequence of `str`): the target columns; other targets of the spectra are left out.
        target_units (`dict[str, str]`, *optional*): unit by target name, written into every row.
    """
    import pyarrow as pa

    schema = table_schema(target_names)
    ends = np.cumsum([0] + [spectrum.counts.size for spectrum in spectra])
    values = np.concatenate([np.zeros(0, np.float32)] + [s.counts.astype(np.float32) for s in spectra])
    columns = {"counts": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(values))}
    for name in _SCALAR_FIELDS:
        values = [getattr(spectrum, name) for spectrum in spectra]
        columns[name] = (
            _texts(values) if FIXED_COLUMNS[name] == "string" else pa.array(values, schema.field(name).type)
        )
    metadata = [json.dumps(s.metadata, ensure_ascii=False) if s.metadata else None for s in spectra]
    columns["metadata"] = _texts(metadata)
    units = json.dumps({name: (target_units or {}).get(name, "") for name in target_names}, ensure_ascii=False)
    columns["target_units"] = pa.array([units] * len(spectra), pa.string())
    for name in target_names:
        columns[name] = pa.array([s.targets.get(name) for s in spectra], pa.float32(), from_pandas=True)
    return pa.Table.from_arrays([columns[field.name].cast(field.type) for field in schema], schema=schema)


def _texts(values):
    """A `pyarrow` array of `str` or `None`; bytes of a file's name that are no text become question marks."""
    import pyarrow as pa

    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        return pa.array([value and value.encode("utf-8", "replace").decode() for value in values], pa.string())


def row_to_spectrum(row: dict) -> Spectrum:
    """One dataset row (as `dataset[i]` gives it) as a `Spectrum`; columns the schema does not know are left out.

    Raises:
        ValueError: the row has no `counts`, or they are not a valid spectrum.
    """
    if row.get("counts") is None:
        raise ValueError(f"A row must have counts to become a spectrum; it has the columns {sorted(row)}.")
    units = json.loads(row.get("target_units") or "{}")
    values = {name: row.get(name) for name in units}
    targets = {name: float(value) for name, value in values.items() if value is not None and not math.isnan(value)}
    return Spectrum(
        counts=np.asarray(row["counts"], dtype=np.float64),
        targets=targets,
        target_units={name: units[name] for name in targets},
        metadata=json.loads(row.get("metadata") or "{}"),
        **{name: _not_nan(row.get(name)) for name in _SCALAR_FIELDS},
    )


def table_to_spectra(table) -> list[Spectrum]:
    """All rows of a `pyarrow.Table` of our schema as spectra."""
    rows = table.drop_columns(["counts"]).to_pylist()
    counts = table["counts"].combine_chunks()
    return [row_to_spectrum({**row, "counts": counts[i].values.to_numpy()}) for i, row in enumerate(rows)]


def _not_nan(value):
    return None if isinstance(value, float) and math.isnan(value) else value
