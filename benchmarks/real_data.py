"""Where the genuine spectra lie that some benchmarks measure on."""

import os
from pathlib import Path

FOLDER = Path(os.environ.get("XRF_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def required(part: str = "labelled") -> Path:
    """The folder, once it is known to hold `part`."""
    if not (FOLDER / part).is_dir():
        raise ValueError(f"There are no real spectra in {FOLDER}; name their folder with XRF_REAL_DATA.")
    return FOLDER
