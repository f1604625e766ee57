"""Energy scales: the line through points of channel and energy, and whether it is one."""

import numpy as np

from ..spectrum import SpectrumFileError
from .checks import MAX_CHANNELS

MIN_CHANNEL_WIDTH_KEV, MAX_CHANNEL_WIDTH_KEV = 0.0005, 0.5
MAX_ENERGY_KEV = 1000.0


def check_energy_scale(path, place: str | None, gain_kev: float | None, offset_kev: float | None) -> None:
    """Raise `SpectrumFileError` where no X-ray detector has such a scale: most often eV were taken for keV."""
    if gain_kev is not None and not MIN_CHANNEL_WIDTH_KEV <= gain_kev <= MAX_CHANNEL_WIDTH_KEV:
        raise SpectrumFileError(
            path,
            f"the channel width must lie from {1000 * MIN_CHANNEL_WIDTH_KEV:g} to {1000 * MAX_CHANNEL_WIDTH_KEV:g} "
            f"eV; the file gives {1000 * gain_kev:.6g} eV: check its energy calibration and unit.",
            place,
        )
    if offset_kev is not None and abs(offset_kev) > MAX_ENERGY_KEV:
        raise SpectrumFileError(
            path,
            f"the energy of channel 0 must lie within {MAX_ENERGY_KEV:g} keV of 0; the file gives {offset_kev:.6g} "
            "keV: check its energy calibration and unit.",
            place,
        )


def line_through(path, place: str | None, channels, energies_kev, tolerance: float) -> tuple[float, float, float]:
    """The least-squares line through points of channel number and energy.

    Args:
        tolerance: largest distance of a point from the line, in channel widths.

    Returns:
        `gain_kev`, `offset_kev` and the largest distance in channel widths.

    Raises:
        SpectrumFileError: there are no two channels, a point is farther from the line than the tolerance, or the scale
            is not one of an X-ray detector.
    """
    channels, energies_kev = (np.asarray(values, dtype=np.float64) for values in (channels, energies_kev))
    with np.errstate(invalid="ignore"):
        possible = (np.abs(energies_kev) <= MAX_ENERGY_KEV) & (np.abs(channels) <= MAX_CHANNELS)
    if not possible.all():
        worst = int(np.argmin(possible))
        raise SpectrumFileError(
            path,
            f"energies must lie within {MAX_ENERGY_KEV:g} keV of 0 and channels below {MAX_CHANNELS}; found "
            f"{energies_kev[worst]:.6g} keV at channel {channels[worst]:.6g}: check the unit of the energies.",
            place,
        )
    centred = channels - channels.mean()
    spread = centred @ centred
    if spread == 0:
        raise SpectrumFileError(path, "an energy scale needs the energies of two channels; the file gives one.", place)
    gain_kev = float(centred @ energies_kev / spread)
    offset_kev = float(energies_kev.mean() - gain_kev * channels.mean())
    check_energy_scale(path, place, gain_kev, offset_kev)
    distance = np.abs(offset_kev + gain_kev * channels - energies_kev) / gain_kev
    worst = int(np.argmax(distance))
    if distance[worst] > tolerance:
        raise SpectrumFileError(
            path,
            f"energies must rise evenly, within {tolerance:g} channel widths of a line; {energies_kev[worst]:.6g} keV "
            f"at channel {channels[worst]:g} is {distance[worst]:.3g} off: the file is damaged or not linear.",
            place,
        )
    return gain_kev, offset_kev, float(distance[worst])
