"""Predict a map: concentrations, or whatever a model was fine-tuned for, over the pixels of a scanned sample.

Spectra that know their position (`x_mm` and `y_mm`: instrument files, folders, tables, corpora):

    python scripts/predict_map.py runs/titanium/model scan/ --output scan_map.npz --target TiO2

A cube of counts `(rows, columns, channels)`, a `.npy` file, or an `.npz` archive of `counts` and, as single numbers,
`gain_kev`, `offset_kev`, `tube_kv` and `pixel_mm`, which may also be given here:

    python scripts/predict_map.py org/xrf-titanium cube.npy --output cube_map.npz --gain_kev 0.01 --offset_kev -0.96 \
        --tube_kv 50 --pixel_mm 0.1

The output holds arrays `(rows, columns)`: `num_spectra` and, for each target, `<target>` and, where the model has
them, `<target>_sd`, `<target>_lower_90` and `<target>_upper_90` (prediction intervals, here for 90 %), `distance` and
`unfamiliar`; further `x_mm (columns,)` and `y_mm (rows,)` where positions are known. NaN stands where nothing was
measured: no spectrum, or one without a count. A figure for each target lies beside it, `<output>_<target>.png`.

Spectra are read and predicted batch by batch; a few numbers of each are kept, never its counts. Positions need not be
exact: a spectrum belongs to the pixel it lies in, and a pixel with several spectra, such as those of two detectors,
takes the mean of their results.
"""

import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from command_line_xrf import HfArgumentParser, run
from files_xrf import atomic_file
from inference_xrf import (
    CALIBRATION,
    STANDARDLESS,
    InferenceArguments,
    Item,
    Rejections,
    XRFPredictor,
    batches,
    feature_batches,
    fill_in,
    find_inputs,
    output_paths,
    read_items,
    rejection_table,
    target_columns,
)

# Names of the output's other arrays, and those that numpy.savez cannot write.
OTHER_ARRAYS = ("num_spectra", "x_mm", "y_mm", "distance", "unfamiliar", "file", "allow_pickle")
SPARSEST_MAP = 100  # pixels per spectrum; more are a sign of a step that is not that of the scan


@dataclass
class MapArguments(InferenceArguments):
    output: str = field(metadata={"help": "arrays to write, .npz; figures are named after it"})
    target: list[str] | None = field(default=None, metadata={"help": "targets to map; if not given, all of the model"})
    pixel_mm: float | None = field(
        default=None, metadata={"help": "size of a pixel in mm; if not given, found from the spectra's positions"}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.pixel_mm is not None and not 0 < self.pixel_mm < math.inf:
            raise ValueError(f"pixel_mm must be positive, but is {self.pixel_mm}; give the step of the scan in mm.")


def main():
    parser = HfArgumentParser(MapArguments, description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or Hub id of a fine-tuned model or an adapter")
    parser.add_argument("map", help="file or folder of spectra with positions, or a cube of counts")
    arguments, positional = parser.parse_args_into_dataclasses()
    output, rejected = output_paths(arguments, (".npz",))

    cube = open_cube(Path(positional.map))
    if cube is None:
        sources, mapping = find_inputs([positional.map], arguments.column_mapping, (output, rejected))
    elif output.resolve() == cube.path.resolve():
        raise ValueError(f"The output {output} is the cube itself; choose another name.")
    predictor = XRFPredictor(positional.model, arguments.device, arguments.batch_size)
    config = predictor.model.config
    targets = chosen_targets(config, arguments.target)
    figures = {target: output.with_name(f"{output.stem}_{target.replace('/', '-')}.png") for target in targets}
    for figure in figures.values():
        if figure.exists() and not arguments.overwrite:
            raise ValueError(f"The figure {figure} exists; choose another output, or add --overwrite.")

    with atomic_file(output) as temporary, rejection_table(rejected, arguments.on_error) as rejections:
        if cube is None:
            items = with_positions(read_items(sources, mapping, rejections), rejections)
        else:
            items = cube_items(cube, rejections)
        items = (fill_in(item, arguments) for item in items)
        places, predictions = predict_places(items, predictor, targets, rejections)
        if cube is None:
            raster = find_raster(places, arguments.pixel_mm)
        else:
            raster = cube_raster(cube, places, arguments.pixel_mm)
        arrays = map_arrays(raster, predictions)
        np.savez(temporary, **arrays)
    num_measured = int((arrays["num_spectra"] > 0).sum())
    shape = " x ".join(map(str, arrays["num_spectra"].shape))
    print(f"{len(places)} spectra predicted, in {num_measured} of {shape} pixels: {output}")
    if "unfamiliar" in arrays:
        print(f"{int(arrays['unfamiliar'].sum())} pixels are unfamiliar to the model")
    if rejections.number:
        print(f"{rejections.number} rejected: {rejected}")
    if config.calibration == "standardless":
        print(STANDARDLESS)

    from figures_xrf import plot_map

    for target, figure in figures.items():
        unit = config.target_units[config.target_names.index(target)]
        name = f"{target} ({unit})" if unit else target
        plot_map(figure, arrays[target], name, raster.x_mm, raster.y_mm, first_row_on_top=cube is not None)
        print(f"map of {target}: {figure}")


def chosen_targets(config, names: list[str] | None) -> list[str]:
    for name in names or config.target_names:
        if name not in config.target_names:
            raise ValueError(f"The model has no target {name}; choose from {', '.join(config.target_names)}.")
        if name in OTHER_ARRAYS:
            raise ValueError(f"The output would have two arrays {name}; rename the target in the model's config.json.")
    return names or config.target_names


def predict_places(items: Iterator[Item], predictor: XRFPredictor, targets, rejections: Rejections):
    """Where every spectrum lies, x and y `(N, 2)`, and its predictions, a dict of arrays `(N,)`."""
    config = predictor.model.config
    columns = [column for target in targets for column in target_columns(config, target)]
    columns += ["distance", "unfamiliar"] if config.familiarity_threshold is not None else []
    places, parts = [], []
    for batch, features in feature_batches(batches(items), predictor.feature_extractor, rejections):
        places.append(np.array([(item.spectrum.x_mm, item.spectrum.y_mm) for item in batch]))
        predictions = predictor.predict(features)
        parts.append([predictions[column] for column in columns])
    return np.concatenate(places), dict(zip(columns, map(np.concatenate, zip(*parts)), strict=True))


def with_positions(items: Iterator[Item], rejections: Rejections) -> Iterator[Item]:
    """The items that lie somewhere; the others are rejected."""
    for item in items:
        missing = [name for name in ("x_mm", "y_mm") if getattr(item.spectrum, name) is None]
        if missing:
            reason = f"Spectrum {item.index} has no {' and '.join(missing)}; a map needs every spectrum's position."
            rejections.add(ValueError(f"{item.file}: {reason}"), item.file, item.index, reason)
        else:
            yield item


@dataclass
class Cube:
    """Counts of a whole map in one array of a file, of which only the header has been read."""

    path: Path
    member: str | None  # name within an archive
    shape: tuple[int, int, int]  # rows, columns, channels
    numbers: dict[str, float]  # what the archive says of gain_kev, offset_kev, tube_kv and pixel_mm

    def rows(self) -> Iterator[np.ndarray]:
        """The rows of the map, `(columns, channels)` each."""
        if self.member is None:
            with open(self.path, "rb") as stream:
                yield from self._rows(stream)
        else:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                yield from self._rows(stream)

    def _rows(self, stream) -> Iterator[np.ndarray]:
        _, _, dtype = read_header(stream)
        num_rows, num_columns, num_channels = self.shape
        num_bytes = num_columns * num_channels * dtype.itemsize
        for row in range(num_rows):
            data = stream.read(num_bytes)
            if len(data) < num_bytes:
                raise ValueError(f"{self.path} is cut off in row {row} of {num_rows}; copy it again.")
            yield np.frombuffer(data, dtype).reshape(num_columns, num_channels)


def open_cube(path: Path) -> Cube | None:
    """The cube that a `.npy` or `.npz` file holds; `None` if it is a file of another kind.

    Raises:
        ValueError: the file's array cannot be a cube of counts.
    """
    if path.suffix not in (".npy", ".npz") or not path.is_file():
        return None
    try:
        if path.suffix == ".npy":
            with open(path, "rb") as stream:
                member, header, numbers = None, read_header(stream), {}
        else:
            member = "counts.npy"
            with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
                header = read_header(stream)
            if len(header[0]) != 3:
                return None  # an archive of single spectra
            with np.load(path, allow_pickle=False) as archive:
                numbers = {name: float(archive[name]) for name in (*CALIBRATION, "pixel_mm") if name in archive}
    except (zipfile.BadZipFile, KeyError):
        return None  # the reader of archives says what is wrong
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} must be a plain NumPy array with single numbers beside it: {reason}") from error
    shape, is_fortran, dtype = header
    if len(shape) != 3 or 0 in shape or is_fortran or dtype.kind not in "iuf":
        order = "Fortran order" if is_fortran else "C order"
        raise ValueError(
            f"A cube of counts must be numbers (rows, columns, channels) in C order, but {path} holds {dtype} of "
            f"shape {shape} in {order}; save numpy.ascontiguousarray of it."
        )
    return Cube(path, member, shape, numbers)


def read_header(stream) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and type of the array that `stream` begins with."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def cube_items(cube: Cube, rejections: Rejections) -> Iterator[Item]:
    """The spectra of a cube, row by row, column and row in place of x and y; pixels without a count are left out."""
    from dataset_builder import Spectrum

    calibration = {name: cube.numbers.get(name) for name in CALIBRATION}
    for row, pixels in enumerate(cube.rows()):
        for column in np.flatnonzero(pixels.any(axis=1)):
            index = row * len(pixels) + int(column)
            try:
                spectrum = Spectrum(np.array(pixels[column]), **calibration, x_mm=float(column), y_mm=float(row))
            except ValueError as error:
                reason = f"row {row}, column {column}: {error}"
                rejections.add(ValueError(f"{cube.path}, {reason}"), str(cube.path), index, reason)
            else:
                yield Item(str(cube.path), index, spectrum)


@dataclass
class Raster:
    """The pixels of a map, and in which of them each of N spectra lies."""

    row: np.ndarray  # (N,)
    column: np.ndarray  # (N,)
    shape: tuple[int, int]  # rows, columns
    x_mm: np.ndarray | None  # (columns,)
    y_mm: np.ndarray | None  # (rows,)


def cube_raster(cube: Cube, places: np.ndarray, pixel_mm: float | None) -> Raster:
    column, row = places.astype(np.int64).T
    pixel_mm = pixel_mm or cube.numbers.get("pixel_mm")
    num_rows, num_columns, _ = cube.shape
    if pixel_mm is None:
        return Raster(row, column, (num_rows, num_columns), None, None)
    return Raster(
        row, column, (num_rows, num_columns), pixel_mm * np.arange(num_columns), pixel_mm * np.arange(num_rows)
    )


def find_raster(places_mm: np.ndarray, pixel_mm: float | None) -> Raster:
    """
    The raster that positions `(N, 2)` lie on.

    Along either axis, positions closer than half the usual distance of neighbours are one line of the raster, and the
    step is the usual distance of these lines. Where positions do not fall into lines, as on a scan along curves, or
    one that is oblique to the axes, pixels are squares whose side is the usual distance of neighbours.

    Raises:
        ValueError: the map would be nearly empty.
    """
    neighbour_mm = pixel_mm or neighbour_distance(places_mm)
    axes = [find_lines(positions_mm, neighbour_mm, pixel_mm) for positions_mm in places_mm.T]
    (first_x, step_x, num_columns), (first_y, step_y, num_rows) = axes
    if num_rows * num_columns > max(1000, SPARSEST_MAP * len(places_mm)):
        raise ValueError(
            f"The map would have {num_rows} x {num_columns} pixels of {step_x:.3g} mm for {len(places_mm)} spectra; "
            "give the step of the scan as --pixel_mm, and spectra of one scan only."
        )
    column, row = np.round((places_mm - [first_x, first_y]) / [step_x, step_y]).astype(np.int64).T
    x_mm, y_mm = first_x + step_x * np.arange(num_columns), first_y + step_y * np.arange(num_rows)
    return Raster(row, column, (num_rows, num_columns), x_mm, y_mm)


def neighbour_distance(places_mm: np.ndarray) -> float:
    """The median distance from a place to the next other one, in mm; 1 if there is no other."""
    from scipy.spatial import cKDTree

    places_mm = np.unique(places_mm, axis=0)
    if len(places_mm) == 1:
        return 1.0
    distances, _ = cKDTree(places_mm).query(places_mm, k=2)
    return float(np.median(distances[:, 1]))


def find_lines(positions_mm: np.ndarray, neighbour_mm: float, pixel_mm: float | None) -> tuple[float, float, int]:
    """First position, step and number of the lines of a raster along one axis."""
    positions_mm = np.sort(positions_mm)
    lines = np.split(positions_mm, np.flatnonzero(np.diff(positions_mm) > neighbour_mm / 2) + 1)
    if pixel_mm is not None or max(np.ptp(line) for line in lines) > neighbour_mm / 2:
        number = int(np.round((positions_mm[-1] - positions_mm[0]) / neighbour_mm)) + 1
        return float(positions_mm[0]), neighbour_mm, number
    centers = np.array([line.mean() for line in lines])
    if len(centers) == 1:
        return float(centers[0]), neighbour_mm, 1
    number = int(np.round((centers[-1] - centers[0]) / np.median(np.diff(centers)))) + 1
    return float(centers[0]), float((centers[-1] - centers[0]) / (number - 1)), number


def map_arrays(raster: Raster, predictions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays `(rows, columns)` of the predictions: in every pixel the mean of its spectra, NaN where it has none."""
    pixel = raster.row * raster.shape[1] + raster.column
    num_pixels = math.prod(raster.shape)
    num_spectra = np.bincount(pixel, minlength=num_pixels)
    arrays = {"num_spectra": num_spectra.reshape(raster.shape)}
    for name, values in predictions.items():
        with np.errstate(invalid="ignore"):
            mean = np.bincount(pixel, weights=values, minlength=num_pixels) / num_spectra
        arrays[name] = (mean > 0 if values.dtype == bool else mean.astype(np.float32)).reshape(raster.shape)
    if raster.x_mm is not None:
        arrays |= {"x_mm": raster.x_mm, "y_mm": raster.y_mm}
    return arrays


if __name__ == "__main__":
    run(main)
