"""What a checkpoint, and one adapted to a few samples, calls unfamiliar: familiar spectra that were left out, another
instrument, other settings, other materials, blanks, noise.

    XRF_REAL_DATA=path/to/spectra python benchmarks/familiarity.py

The adapted model knows the light-element spectra of 26 mudrocks on one handheld; `the same, left out` are those of
each formation under a model that was adapted to the others. Rows go to `benchmarks/familiarity.csv`; a Markdown table
is printed.
"""

import argparse
from pathlib import Path

import numpy as np
import real_data

from command_line_xrf import run

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "familiarity.csv"
SEED = 0
NUM_NOISE = 40


def real_sets(folder: Path) -> dict[str, list]:
    """Spectra by what is new about them, for a model that knows mudrocks at 15 kV on handheld A."""
    from dataset_builder import read_spectra

    def spectra(path, keep=lambda spectrum: True):
        return [spectrum for spectrum in read_spectra(folder / path) if keep(spectrum)]

    elements = "unlabelled/m4_tornado_elements_and_glass.npz"
    return {
        "the same rocks, another handheld of this kind": spectra("labelled/mudrock_light_instrument_b.npz"),
        "the same rocks and instrument, 40 kV and a filter": spectra("labelled/mudrock_trace_instrument_a.npz"),
        "obsidians, a third handheld": spectra("labelled/obsidian_instrument_c.npz"),
        "heavy minerals, a fourth handheld": spectra("unlabelled/handheld_heavy_minerals.npz"),
        "rock, micro-XRF of the Mars rover": spectra("unlabelled/pixl_beaujeu.npz"),
        "coal, benchtop": spectra("unlabelled/coal_benchtop.npz"),
        "glass, micro-XRF": spectra("unlabelled/m4_tornado_srm1831.npz"),
        "near-pure elements, micro-XRF": spectra(elements, lambda s: "crylic" not in (s.sample or "")),
        "blanks (acrylic), micro-XRF": spectra(elements, lambda s: "crylic" in (s.sample or "")),
        "the Moon from orbit, 1,800 counts": spectra("unlabelled/lunar_orbit_class.npz"),
    }


def noise_sets() -> dict[str, list]:
    """Poisson noise around a flat line, by its mean counts in a channel, with the calibration of a handheld."""
    from dataset_builder.spectrum import Spectrum

    rng = np.random.default_rng(SEED)
    return {
        f"flat noise, {mean:g} counts a channel": [
            Spectrum(rng.poisson(mean, 2048).astype(float), gain_kev=0.02, offset_kev=0.0, tube_kv=15.0)
            for _ in range(NUM_NOISE)
        ]
        for mean in (0.5, 20, 2000)
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=str(ROOT / "model_cards" / "xrf-tiny"), help="checkpoint")
    parser.add_argument("--results", type=Path, default=RESULTS, help="CSV that is written")
    options = parser.parse_args()

    import few_labels
    import pandas as pd
    import torch

    import protocols_xrf
    from adaptation_xrf import adapt
    from feature_extraction_xrf import XRFFeatureExtractor
    from finetuning_xrf import AdaptedModel, load_pretrained
    from training_xrf import provenance

    folder = real_data.required()
    torch.manual_seed(SEED)
    base, extractor = load_pretrained(options.model).eval(), XRFFeatureExtractor.from_pretrained(options.model)
    rocks = few_labels.mudrocks(folder, "light", "a")
    units = ["wt%"] * len(rocks.target_names)

    def adapted(rows=None):
        """The checkpoint adapted to these rocks; without any, as it is."""
        model = AdaptedModel(lambda labelled: adapt(base, labelled, rocks.target_names, units, SEED), extractor, 0)
        rows = protocols_xrf.NO_ROWS if rows is None else rows
        groups = rocks.groups[rows] if len(rows) else None
        return model.fit([rocks.spectra[row] for row in rows], rocks.targets[rows], groups)

    def unfamiliar(model, spectra) -> np.ndarray:
        return model.answers(spectra).unfamiliar

    without_labels, with_all = adapted(), adapted(np.arange(len(rocks)))
    splits = protocols_xrf.leave_one_group_out(rocks.groups)
    left_out = [unfamiliar(adapted(split.training), [rocks.spectra[row] for row in split.test]) for split in splits]
    found = [("the same, left out", unfamiliar(without_labels, rocks.spectra), np.concatenate(left_out))]
    for name, spectra in (real_sets(folder) | noise_sets()).items():
        found.append((name, unfamiliar(without_labels, spectra), unfamiliar(with_all, spectra)))
    rows = [
        {
            **provenance(),
            "set": name,
            "n": len(with_labels),
            "checkpoint": base_share.mean(),
            "adapted": with_labels.mean(),
        }
        for name, base_share, with_labels in found
    ]
    table = pd.DataFrame(rows)
    table.to_csv(options.results, index=False, float_format="%.3f", lineterminator="\n")
    print("| spectra | n | the checkpoint flags | adapted to 26 rocks it flags |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['set']} | {row['n']} | {row['checkpoint']:.0%} | {row['adapted']:.0%} |")


if __name__ == "__main__":
    run(main)
