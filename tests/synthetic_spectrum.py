"""A spectrum with known lines at known places, for tests of what looks for them."""

import numpy as np

from dataset_builder import Spectrum

# Energies and relative intensities of a mudrock under a rhodium tube (Bearden 1967), typed from the tables.
MUDROCK = {1.740: 2e5, 2.307: 4e4, 2.697: 3e4, 3.313: 1e5, 3.691: 1.5e6, 4.012: 2e5, 4.510: 8e4, 4.931: 1e4,
           5.898: 3e4, 6.403: 6e5, 7.057: 8e4, 8.638: 1e4, 14.16: 2e4, 20.17: 1e4}  # fmt: skip


def synthetic(gain_kev, offset_kev, lines=MUDROCK, num_channels=2048, dose=1.0, seed=0, calibrated=False, **fields):
    """Gaussian lines of a silicon detector's width over a falling background, with counting noise.

    The spectrum holds the energy scale that made it only if it is `calibrated`; `fields` are its other fields.
    """
    energy_kev = offset_kev + gain_kev * np.arange(num_channels)
    counts = 200 * np.exp(-np.clip(energy_kev, 0, None) / 10) * (energy_kev > 0.5) * gain_kev / 0.02
    for line_kev, area in lines.items():
        sd_kev = np.hypot(0.08, 2.355 * np.sqrt(0.115 * 0.00365 * line_kev)) / 2.355
        counts = counts + area * gain_kev * np.exp(-0.5 * ((energy_kev - line_kev) / sd_kev) ** 2) / (sd_kev * 2.507)
    if calibrated:
        fields |= {"gain_kev": gain_kev, "offset_kev": offset_kev}
    return Spectrum(counts=np.random.default_rng(seed).poisson(dose * counts), **fields)
