"""Build a corpus folder that `datasets.load_dataset` reads without this package."""

import os
from pathlib import Path

from .builder import XRFDatasetBuilder
from .recipe import FilesPart, Recipe, SimulationPart


def build_corpus(
    source=None,
    output_dir=None,
    *,
    recipe: Recipe | None = None,
    data_root=None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    num_proc: int | None = None,
    shard_rows: int = 20_000,
    on_error: str = "skip",
    license: str | None = None,
    **options,
) -> Path:
    """Build `output_dir/data/<split>-00000-of-0000N.parquet`, a dataset card, `corpus.json` and, where files or
    spectra were rejected, `rejected.csv`.

    The same input gives the same bytes, whatever `num_proc` is, and the folder appears when it is complete. A build
    that was interrupted goes on where it was, given the same output folder. Where that already holds the very same
    corpus nothing is done.

    Args:
        source (`str`, path or list of them): `"simulated"`, or files and folders.
        output_dir (path): a new or empty folder.
        recipe (`Recipe`): in place of `source`, with its own fractions, seed, license and options.
        data_root (path, *optional*): folder that paths of files start from.
        validation_fraction, test_fraction (`float`): shares of the spectra, given out by core (or sample).
        seed (`int`): of the split, and of the simulation.
        num_proc (`int`, *optional*): worker processes.
        shard_rows (`int`): spectra in a Parquet file.
        on_error (`str`): `"skip"` or `"raise"`, for files and spectra that cannot be used.
        license (`str`, *optional*): Hub identifier for the card; `apache-2.0` for simulated spectra, else `other`.
        options: those of `SimulationPart` or of `FilesPart`.

    Returns:
        `Path`: the folder.

    Raises:
        SpectrumFileError: a path does not exist or, with `on_error="raise"`, a file cannot be used.
        LeakageError: spectra that belong together would be on both sides of a split.
        ValueError: an option is out of range, or the folder holds something else.
    """
    if output_dir is None or (source is None) == (recipe is None):
        raise ValueError("A corpus needs an output_dir, and either a source or a recipe.")
    if recipe is not None and options:
        raise ValueError(f"A recipe has its own options; {', '.join(options)} cannot be given beside it.")
    if recipe is None:
        of_recipe = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
        of_recipe |= {"seed": seed, "license": license}
        if isinstance(source, str) and source == "simulated":
            recipe = simulated_recipe(**of_recipe, **options)
        else:
            data_root, paths = _below_common_folder(source, data_root)
            recipe = Recipe("measured", (FilesPart("files", paths, **options),), **of_recipe)
    return XRFDatasetBuilder(recipe, output_dir, data_root, num_proc, shard_rows, on_error).build()


def simulated_recipe(num_spectra: int = 10_000, num_cores: int = 50, seed: int = 0, **options) -> Recipe:
    """The recipe of simulated spectra: by default marine sediment on a core scanner.

    Args:
        num_spectra, num_cores, seed (`int`): size, and seed of the simulation and of the split.
        options: further fields of `SimulationPart` and of `Recipe`.
    """
    part_options = {name: options.pop(name) for name in ("samples", "instruments") if name in options}
    part = SimulationPart("simulation", num_spectra, num_cores, seed=seed, **part_options)
    return Recipe("simulated", (part,), seed=seed, **options)


def _below_common_folder(source, data_root) -> tuple[Path, list[str]]:
    """A folder that holds all sources, and their paths from there: where it lies must not show in the corpus."""
    paths = [source] if isinstance(source, (str, Path)) else source
    paths = sorted({os.path.abspath(Path(data_root or ".") / path) for path in paths})
    folder = os.path.commonpath([path if os.path.isdir(path) else os.path.dirname(path) for path in paths])
    return Path(folder), [Path(os.path.relpath(path, folder)).as_posix() for path in paths]
