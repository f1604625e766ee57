"""Atomic data on the excitation grid against xraylib asked directly."""

import numpy as np
import pytest
import xraylib

from dataset_builder.simulation import atomic_data
from dataset_builder.simulation.atomic_data import ELEMENTS, SHELLS, ExcitationAxis, emission_lines


def test_elements_are_hydrogen_to_uranium():
    assert len(ELEMENTS) == 92
    assert (ELEMENTS[0], ELEMENTS[25], ELEMENTS[91]) == ("H", "Fe", "U")


def test_iron_has_two_lines_with_the_rates_and_mean_energies_of_their_transitions():
    alpha, beta = emission_lines("Fe")
    assert alpha.transitions == ("KL2", "KL3")
    rates = [xraylib.RadRate(26, code) for code in (xraylib.KL2_LINE, xraylib.KL3_LINE)]
    energies = [xraylib.LineEnergy(26, code) for code in (xraylib.KL2_LINE, xraylib.KL3_LINE)]
    assert alpha.rate == pytest.approx(sum(rates))
    assert alpha.energy_kev == pytest.approx(np.average(energies, weights=rates))
    assert alpha.spread_kev == pytest.approx(0.0061, abs=2e-4)  # 13 eV apart, a third in the lower one
    assert beta.transitions == ("KM2", "KM3")
    assert alpha.edge_kev == beta.edge_kev == xraylib.EdgeEnergy(26, xraylib.K_SHELL)


def test_lines_from_sodium_to_uranium_reach_as_far_as_their_shells():
    assert [line.transitions for line in emission_lines("Na")] == [("KL2", "KL3")]
    assert not emission_lines("O")
    assert {line.shell[0] for line in emission_lines("Ba")} == {"K", "L"}  # its M lines are below 0.9 keV
    lead = emission_lines("Pb")
    assert {line.shell for line in lead} == set(SHELLS)
    (m_alpha,) = [line for line in lead if "M5N7" in line.transitions]
    assert m_alpha.energy_kev == pytest.approx(2.345, abs=0.005)


@pytest.mark.parametrize(
    ("element", "shell", "transition"),
    [("Si", "K", "KL3"), ("Fe", "K", "KM3"), ("Ba", "L2", "L2M4"), ("Pb", "L3", "L3M5"), ("U", "M5", "M5N7")],
)
def test_shell_production_times_rate_is_the_production_of_a_line(element, shell, transition):
    number, code = xraylib.SymbolToAtomicNumber(element), getattr(xraylib, f"{transition}_LINE")
    for energy_kev in (7.5, 22.0, 45.0):
        try:
            expected = xraylib.CS_FluorLine_Kissel_Cascade(number, code, energy_kev)
        except ValueError:  # below the edge
            expected = 0.0
        production = atomic_data.shell_production(element, [energy_kev])[SHELLS.index(shell), 0]
        assert production * xraylib.RadRate(number, code) == pytest.approx(expected, rel=1e-9)


def test_bins_end_at_absorption_edges():
    ends = 0.5 * ExcitationAxis(50.0, ()).width_kev + ExcitationAxis(50.0, ()).energy_kev
    for number, shell in ((20, "K"), (26, "K"), (56, "K"), (56, "L3"), (82, "L3")):
        edge_kev = xraylib.EdgeEnergy(number, getattr(xraylib, f"{shell}_SHELL"))
        assert np.abs(ends - edge_kev).min() < 0.011


@pytest.mark.parametrize(("element", "shell"), [("Fe", "K"), ("Ba", "L2"), ("Pb", "L1"), ("Pb", "M5")])
def test_bins_hold_the_mean_of_what_is_inside(element, shell):
    axis, row = ExcitationAxis(30.0, ()), SHELLS.index(shell)
    fine_kev = np.arange(0.9, axis.energy_kev[-1] + 0.5 * axis.width_kev[-1], 0.001) + 0.0005
    expected = atomic_data.shell_production(element, fine_kev)[row].sum() * 0.001
    actual = axis.shell_production(element)[row] @ axis.width_kev
    assert actual == pytest.approx(expected, rel=3e-3)


def test_an_axis_of_lines_asks_at_their_energies():
    axis = ExcitationAxis(0, (5.0, 17.44))
    np.testing.assert_array_equal(axis.energy_kev, [5.0, 17.44])
    np.testing.assert_array_equal(axis.width_kev, [0, 0])
    assert axis.attenuation()[25, 1] == pytest.approx(xraylib.CS_Total_Kissel(26, 17.44))
    assert axis.shell_production("Ca")[0, 0] == pytest.approx(xraylib.CS_FluorShell_Kissel_Cascade(20, 0, 5.0))


@pytest.mark.parametrize(("element", "edge_kev"), [("Na", 1.071), ("Ti", 4.966), ("Cr", 5.989), ("Fe", 7.112)])
def test_attenuation_falls_smoothly_above_the_edge(element, edge_kev):
    """A power of the energy near -2.7 within 1.5 %; xraylib's `CS_Total` swings by 4 to 8 % around it."""
    energy_kev = edge_kev * np.geomspace(1.02, 1.35, 40)
    logarithm = np.log(atomic_data.mass_attenuation([element], energy_kev)[0])
    power, _ = line = np.polyfit(np.log(energy_kev), logarithm, 1)
    assert power == pytest.approx(-2.6, abs=0.25)
    np.testing.assert_allclose(np.polyval(line, np.log(energy_kev)), logarithm, atol=0.015)


def test_mass_fractions_of_a_formula():
    fractions = atomic_data.mass_fractions("CaCO3")
    assert fractions["Ca"] == pytest.approx(40.078 / 100.086, rel=1e-3)
    assert sum(fractions.values()) == pytest.approx(1)


def test_asking_line_by_line_changes_no_number():
    """The last energy excites iron and lead, the others neither."""
    elements, line_kev = ("O", "Fe", "Pb"), [1.740, 6.404, 7.058, 13.395]
    np.testing.assert_array_equal(
        atomic_data.mass_attenuation_at_lines(elements, line_kev), atomic_data.mass_attenuation(elements, line_kev)
    )
    for element in elements:
        found = atomic_data.shell_production_at_lines(element, line_kev)
        assert found.shape == (len(SHELLS), 4)
        np.testing.assert_array_equal(found, atomic_data.shell_production(element, line_kev))
    assert atomic_data.mass_attenuation_at_lines(elements, []).shape == (3, 0)
    assert atomic_data.shell_production_at_lines("Fe", []).shape == (len(SHELLS), 0)
