"""The report that the README shows: a table of simulated cores, adapted as a person would.

    python benchmarks/report_example.py runs/example
    chromium --headless --screenshot=report.png --window-size=1100,1600 runs/example/calibration/report.html

Six marine cores of 60 spectra under the Avaatech preset; every fifth spectrum has a laboratory value of CaCO3, with an
error of 2 % of it and 0.3 wt%.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import numpy as np

from command_line_xrf import run
from dataset_builder import SimulatedSource

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"num_spectra": 360, "num_cores": 6, "seed": 4242}


def write_table(path: Path) -> None:
    """One row a spectrum: core, depth, laboratory value where there is one, and its channels."""
    rng = np.random.default_rng(0)
    source = SimulatedSource("marine_sediment", "avaatech_10kv", **SIZES)
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["core", "depth (mm)", "CaCO3 (wt%)", *range(2048)])
        for unit in range(source.num_units):
            spectra = [spectrum for batch in source.simulate(unit) for spectrum in batch.spectra()]
            for row, spectrum in enumerate(spectra):
                truth = spectrum.targets["CaCO3"]
                value = truth * (1 + 0.02 * rng.standard_normal()) + 0.3 * rng.standard_normal()
                label = f"{max(value, 0.05):.2f}" if row % 5 == 0 else ""
                table.writerow([f"core {unit + 1}", f"{spectrum.depth_mm:.0f}", label, *spectrum.counts.astype(int)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="new folder for the table and the run")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    write_table(options.folder / "data.csv")
    command = [sys.executable, ROOT / "scripts" / "run_regression.py", options.folder / "data.csv"]
    command += ["--target", "CaCO3", "--gain_kev", "0.02", "--offset_kev", "0", "--tube_kv", "10"]
    subprocess.run([*command, "--output_dir", options.folder / "calibration"], check=True)


if __name__ == "__main__":
    run(main)
