"""A small corpus with two targets, each the height of one peak, which a small model learns in seconds."""

import numpy as np
import pyarrow.parquet as pq

from dataset_builder import Spectrum, spectra_to_table

TARGETS = {"CaCO3": "wt%", "TOC": "wt%"}
GAIN_KEV, NUM_CHANNELS = 0.04, 128
LINES_KEV = {"CaCO3": 3.69, "TOC": 2.0}  # Ca K-alpha, and a stand-in, for carbon itself cannot be seen


def make_spectra(num_spectra, num_cores, first_core=0, seed=0):
    """Spectra whose two peaks grow in proportion to the labels, on a continuum, with counting noise."""
    rng = np.random.default_rng(seed)
    energy_kev = GAIN_KEV * np.arange(NUM_CHANNELS)
    spectra = []
    for index in range(num_spectra):
        labels = {"CaCO3": float(rng.uniform(5, 95)), "TOC": float(rng.uniform(0.1, 4))}
        expected = 40 * np.exp(-energy_kev / 3) + 5
        for name, share in (("CaCO3", labels["CaCO3"] / 100), ("TOC", labels["TOC"] / 4)):
            expected = expected + 800 * share * np.exp(-0.5 * ((energy_kev - LINES_KEV[name]) / 0.08) ** 2)
        expected = expected + 400 * np.exp(-0.5 * ((energy_kev - 2.8) / 0.08) ** 2)  # the tube's scattered line
        core = first_core + index % num_cores
        spectra.append(
            Spectrum(
                rng.poisson(expected),
                gain_kev=GAIN_KEV,
                offset_kev=0.0,
                tube_kv=10.0,
                core=f"core-{core}",
                sample=f"core-{core} {index} mm",
                depth_mm=float(index),
                targets=labels,
                target_units=TARGETS,
            )
        )
    return spectra


def write_corpus(folder, **splits):
    """A corpus folder as `datasets.load_dataset` reads it, from a list of spectra per split."""
    (folder / "data").mkdir(parents=True)
    for split, spectra in splits.items():
        table = spectra_to_table(spectra, list(TARGETS), TARGETS)
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder
