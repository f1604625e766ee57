"""`XRFDatasetBuilder`: simulated cores or spectra files to a `datasets` corpus, split by core or sample.

Whatever touches files lives in other modules: in a builder's own module `datasets` replaces `Path` and `open` by its
streaming versions, after which a plain path is no `Path` here.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import datasets
from datasets.builder import Key

from .config import BUILDER_VERSION, SPLITS, XRFBuilderConfig
from .features import spectra_to_table, spectrum_features
from .spectrum import Spectrum, SpectrumFileError
from .splits import group_names, split_by_group

ROWS_PER_TABLE = 256


@dataclass
class _Survey:
    """What a first pass over the sources finds out."""

    groups_of_source: list[Counter] = field(default_factory=list)
    target_units: dict[str, str] = field(default_factory=dict)


class XRFDatasetBuilder(datasets.ArrowBasedBuilder):
    """Builds the corpus of an `XRFBuilderConfig`; give its options as keyword arguments.

    Files are read once to learn cores, samples and targets, and again to write: a file that cannot be used stops the
    first pass with a `SpectrumFileError`. Lists in the generator's arguments are what `num_proc` divides.
    """

    VERSION = datasets.Version(BUILDER_VERSION)
    BUILDER_CONFIG_CLASS = XRFBuilderConfig

    def _info(self):
        if self.config.source == "simulated":
            from .simulation import TARGET_UNITS

            return datasets.DatasetInfo(
                description=_describe(TARGET_UNITS), features=spectrum_features(TARGET_UNITS), version=self.VERSION
            )
        return datasets.DatasetInfo(version=self.VERSION)  # the targets are known after the survey

    def _split_generators(self, dl_manager):
        sources = self.config.sources()
        if self.config.source == "simulated":
            from .simulation import TARGET_UNITS
            from .simulation.cores import core_name, spectra_per_core

            lengths = spectra_per_core(self.config.num_spectra, self.config.num_cores)
            units = TARGET_UNITS
            groups_of_source = [Counter({core_name(core): lengths[core]}) for core in sources]
        else:
            survey = self._survey(sources)
            groups_of_source, units = survey.groups_of_source, survey.target_units
            self.info.features = spectrum_features(units)
            self.info.description = _describe(units)

        sizes = sum(groups_of_source, Counter())
        rows = [group for group, size in sizes.items() for _ in range(size)]
        split_of = dict(zip(rows, split_by_group(rows, self.config.fractions, self.config.seed), strict=True))
        generators = []
        for split in SPLITS:
            groups = frozenset(group for group in sizes if split_of[group] == split)
            of_split = [s for s, found in zip(sources, groups_of_source, strict=True) if groups & found.keys()]
            if groups:
                arguments = {"sources": of_split, "groups": groups, "target_units": units}
                generators.append(datasets.SplitGenerator(name=split, gen_kwargs=arguments))
        return generators

    def _generate_tables(self, sources, groups, target_units) -> Iterator[tuple[Key, object]]:
        for source_index, source in enumerate(sources):
            batches = _in_batches(
                s for s in self.config.spectra(source) if group_names([s.core], [s.sample])[0] in groups
            )
            for batch_index, spectra in enumerate(batches):
                yield Key(source_index, batch_index), spectra_to_table(spectra, list(target_units), target_units)

    def _survey(self, sources) -> _Survey:
        survey = _Survey()
        for source in datasets.utils.tqdm(sources, desc="Reading spectra", unit=" files"):
            groups = Counter()
            for row, spectrum in enumerate(self.config.spectra(source)):
                if not (spectrum.core or spectrum.sample):
                    raise SpectrumFileError(
                        source, "a spectrum must have a core or a sample, so that splits can respect it.", f"row {row}"
                    )
                groups.update(group_names([spectrum.core], [spectrum.sample]))
                for name, unit in spectrum.target_units.items():
                    if survey.target_units.setdefault(name, unit) != unit:
                        raise SpectrumFileError(
                            source,
                            f"target {name} must have one unit; it has {unit!r} here and "
                            f"{survey.target_units[name]!r} before.",
                            f"row {row}",
                        )
            survey.groups_of_source.append(groups)
        survey.target_units = dict(sorted(survey.target_units.items()))
        return survey


def _in_batches(spectra) -> Iterator[list[Spectrum]]:
    batch = []
    for spectrum in spectra:
        batch.append(spectrum)
        if len(batch) == ROWS_PER_TABLE:
            yield batch
            batch = []
    if batch:
        yield batch


def _describe(target_units) -> str:
    targets = ", ".join(f"{name} ({unit})" for name, unit in target_units.items())
    return f"XRF spectra with native channels and energy calibration; targets: {targets or 'none'}."
