"""Rayleigh and Compton scattering against hand calculations."""

import math

import numpy as np
import pytest
import xraylib

from dataset_builder.simulation.atomic_data import ELEMENTS, ExcitationAxis
from dataset_builder.simulation.scattering import Scatterer, compton_doppler_kev, compton_energy_kev


def test_compton_energy_of_molybdenum_and_rhodium_at_right_angles():
    expected = [17.44 / (1 + 17.44 / 511), 20.17 / (1 + 20.17 / 511)]
    np.testing.assert_allclose(compton_energy_kev([17.44, 20.17], math.pi / 2), expected, rtol=1e-5)
    assert compton_energy_kev(20.0, 0.0) == 20.0


def test_doppler_width_of_a_compton_peak():
    """Compton peaks of Mo K alpha from light elements at 90 degrees are about 0.45 to 0.55 keV wide (FWHM)."""
    assert 0.4 < 2.355 * compton_doppler_kev(17.44, math.pi / 2) < 0.6


def test_cross_sections_of_silica():
    axis, angle = ExcitationAxis(0, (9.0, 17.44)), math.radians(95)
    scatterer = Scatterer(axis.energy_kev, angle, axis.attenuation())
    silica = np.zeros(92)
    silica[[ELEMENTS.index("Si"), ELEMENTS.index("O")]] = 0.46743, 0.53257
    for i, energy_kev in enumerate(axis.energy_kev):
        rayleigh, compton = (silica @ cross_section for cross_section in scatterer.cross_sections)
        assert rayleigh[i] == pytest.approx(4 * math.pi * xraylib.DCS_Rayl_CP("SiO2", energy_kev, angle), rel=1e-4)
        assert compton[i] == pytest.approx(4 * math.pi * xraylib.DCS_Compt_CP("SiO2", energy_kev, angle), rel=1e-4)
        exit_kev = scatterer.exit_kev[1][i]
        expected = xraylib.CS_Total_Kissel_CP("SiO2", exit_kev)
        assert silica @ scatterer.exit_attenuation[1][:, i] == pytest.approx(expected, rel=1e-4)
