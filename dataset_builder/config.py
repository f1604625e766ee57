"""`XRFBuilderConfig`: what a corpus is built from, and the fingerprint that names its cache."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import BuilderConfig

from .readers import ColumnMapping, find_sources, read_source
from .spectrum import Spectrum

SPLITS = ("train", "validation", "test")
BUILDER_VERSION = "1.1.0"
"""To be raised with every change of what a corpus holds: caches and fingerprints carry it."""


@dataclass
class XRFBuilderConfig(BuilderConfig):
    """What a corpus is built from, and how it is split.

    Args:
        source (`str` or `list[str]`): `"simulated"`, or files and folders as `readers.find_sources` takes them.
        num_spectra, num_cores (`int`): size of a simulated corpus.
        seed (`int`): of the simulation and of the split.
        validation_fraction, test_fraction (`float`): shares of the spectra; the rest is for training.
        column_mapping (`dict`, *optional*): arguments of `ColumnMapping` for wide tables.
        core_pattern (`str`, *optional*): regular expression whose first group, found in the sample's name, is the core
            of spectra whose file names none; `r"^(.+)-\\d+$"` makes `BL-1` the core of `BL-1-122`.
    """

    source: str | list[str] = "simulated"
    num_spectra: int = 10_000
    num_cores: int = 50
    seed: int = 0
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    column_mapping: dict | None = None
    core_pattern: str | None = None

    def __post_init__(self):
        if self.source != "simulated":
            paths = [self.source] if isinstance(self.source, (str, Path)) else self.source
            self.source = [str(path) for path in paths]
        if self.column_mapping is not None:
            ColumnMapping.from_dict(self.column_mapping)
        if self.core_pattern is not None:
            _check_core_pattern(self.core_pattern)
        if self.name == "default":
            self.name = f"{'simulated' if self.source == 'simulated' else 'files'}-{self.fingerprint()[:16]}"
        super().__post_init__()

    @property
    def fractions(self) -> dict[str, float]:
        """Share of the spectra by split."""
        training_fraction = 1 - self.validation_fraction - self.test_fraction
        return dict(zip(SPLITS, (training_fraction, self.validation_fraction, self.test_fraction), strict=True))

    def fingerprint(self) -> str:
        """Hash of the options and of the files' contents: the same fingerprint means the same corpus."""
        options = [self.validation_fraction, self.test_fraction, self.seed, BUILDER_VERSION]
        if self.source == "simulated":
            options += [self.num_spectra, self.num_cores]
        else:
            options += [self.column_mapping, self.core_pattern]
        digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
        for source in [] if self.source == "simulated" else find_sources(self.source):
            files = sorted(source.rglob("*.csv")) if source.is_dir() else [source]
            for path in files:
                digest.update(path.relative_to(source.parent).as_posix().encode())
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def sources(self) -> list:
        """What can be read independently: numbers of simulated cores, or paths of files and MAX trees."""
        if self.source == "simulated":
            return list(range(self.num_cores))
        return [str(path) for path in find_sources(self.source)]

    def spectra(self, source) -> Iterator[Spectrum]:
        """Spectra of one of `sources()`, with the cores that `core_pattern` finds."""
        if self.source == "simulated":
            from .simulation import simulate_sediment_cores

            for batch in simulate_sediment_cores(self.num_spectra, self.num_cores, self.seed, core_indices=[source]):
                yield from batch
            return
        mapping = None if self.column_mapping is None else ColumnMapping.from_dict(self.column_mapping)
        for spectrum in read_source(Path(source), mapping):
            if spectrum.core is None and spectrum.sample is not None and self.core_pattern is not None:
                match = re.search(self.core_pattern, spectrum.sample)
                if match:
                    spectrum = dataclasses.replace(spectrum, core=match[1])
            yield spectrum


def _check_core_pattern(pattern):
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"core_pattern must be a regular expression; {pattern!r} is not ({error}).") from None
    if groups < 1:
        raise ValueError(f"core_pattern must have a group that gives the core; {pattern!r} has none: add parentheses.")
