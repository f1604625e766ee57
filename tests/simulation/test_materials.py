"""Windows, filters, foils and gases against Lambert and Beer."""

import math

import numpy as np
import pytest
import xraylib

from dataset_builder.simulation.materials import gas, material


def test_element_and_compound_by_lambert_and_beer():
    energy_kev = np.array([2.0, 8.0])
    for name, formula, density_g_cm3 in (("Al", "Al", 2.6989), ("polyimide", "C22H10N2O5", 1.42)):
        expected = [
            math.exp(-xraylib.CS_Total_Kissel_CP(formula, energy) * density_g_cm3 * 25e-4) for energy in energy_kev
        ]
        np.testing.assert_allclose(material(name).transmission(energy_kev, 25e-4), expected, rtol=2e-3)


def test_unknown_material_is_refused():
    with pytest.raises(ValueError, match="material 'unobtainium' is neither an element nor one of polypropylene"):
        material("unobtainium")


def test_five_millimetres_of_air_stop_a_third_of_silicon_and_helium_none():
    """NIST: air attenuates 1.74 keV photons by about 1000 cm2/g."""
    through_air = gas("air", 0.0).transmission([1.74], 0.5)[0]
    assert through_air == pytest.approx(math.exp(-0.5 * 1.205e-3 * 850), abs=0.1)
    assert gas("helium", 0.0).transmission([1.74], 0.5)[0] > 0.999
    assert gas("vacuum", 0.0).transmission([1.74], 0.5)[0] == 1
    assert gas("vacuum", 1.0).transmission([1.74], 0.5)[0] == pytest.approx(through_air)
    assert gas("helium", 0.5).transmission([1.74], 0.5)[0] == pytest.approx(math.sqrt(through_air), rel=1e-3)


def test_argon_of_air():
    """1.3 % of the mass of air is argon, 1.205 g/l."""
    air = gas("air", 0.0)
    assert air.density_g_cm3 * air.mass_fractions["Ar"] == pytest.approx(1.55e-5, rel=0.01)
    helium = gas("helium", 0.1)
    assert helium.density_g_cm3 * helium.mass_fractions["Ar"] == pytest.approx(1.55e-6, rel=0.01)
    assert sum(helium.mass_fractions.values()) == pytest.approx(1)
