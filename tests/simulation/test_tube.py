"""Ebel's tube against a second writing of his formulas, and against what tubes are known to do."""

import math

import numpy as np
import pytest
import xraylib

from dataset_builder.simulation.tube import anode_lines, tube_photons


def ebel_continuum(number, tube_kv, energy_kev, sine_ratio):
    """Photons per s, mA, sr and keV of H. Ebel, X-Ray Spectrom. 28, 255 (1999), one energy at a time."""
    backscatter = tube_kv ** (0.1382 - 0.9211 / math.sqrt(number)) * (
        0.1904 - 0.2236 * math.log(number) + 0.1292 * math.log(number) ** 2 - 0.0149 * math.log(number) ** 3
    )
    deepest = (
        xraylib.AtomicWeight(number)
        / number
        * (0.787e-5 * math.sqrt(0.0135 * number) * tube_kv**1.5 + 0.735e-6 * tube_kv**2)
    )
    u = math.log(tube_kv / energy_kev)
    depth = deepest * (0.49269 - 1.0987 * backscatter + 0.78557 * backscatter**2) * u
    depth /= 0.70256 - 1.09865 * backscatter + 1.0046 * backscatter**2 + u
    absorbed = 2 * xraylib.CS_Total_Kissel(number, energy_kev) * depth * sine_ratio
    power = 1.109 - 0.00435 * number + 0.00175 * tube_kv
    return 1.35e9 * number * (tube_kv / energy_kev - 1) ** power * (1 - math.exp(-absorbed)) / absorbed


@pytest.mark.parametrize(("anode", "number", "tube_kv"), [("Rh", 45, 10.0), ("W", 74, 45.0), ("Cr", 24, 30.0)])
def test_continuum_is_ebels_integrated_over_bins(anode, number, tube_kv):
    axis, photons = tube_photons(anode, tube_kv, window_um=0.0)
    ratio = math.sin(math.radians(60)) / math.sin(math.radians(30))
    fine_kev = np.arange(0.9, tube_kv, 0.005) + 0.0025
    expected = 0.005 * sum(ebel_continuum(number, tube_kv, energy_kev, ratio) for energy_kev in fine_kev)
    assert photons[: axis.num_bins].sum() == pytest.approx(expected, rel=2e-3)


def test_rhodium_at_10_kv_has_only_l_lines_and_no_photon_above_its_voltage():
    axis, photons = tube_photons("Rh", 10.0)
    above = axis.energy_kev - 0.5 * axis.width_kev >= 10.0
    assert not above.any()
    assert (photons >= 0).all()
    lines = axis.energy_kev[axis.num_bins :]
    assert lines.max() < 3.5
    assert lines[np.argmax(photons[axis.num_bins :])] == pytest.approx(2.697, abs=0.005)  # L alpha


@pytest.mark.parametrize(
    ("anode", "tube_kv", "kalpha_kev", "kalpha2_per_kalpha1"),
    [("Mo", 30.0, 17.44, 0.52), ("Ag", 50.0, 22.1, 0.53), ("Rh", 40.0, 20.17, 0.53), ("Cr", 30.0, 5.41, None)],
)
def test_k_lines_appear_above_their_edge_only(anode, tube_kv, kalpha_kev, kalpha2_per_kalpha1):
    axis, photons = tube_photons(anode, tube_kv)
    lines = {line.transitions: count for line, count in zip(anode_lines(anode, tube_kv), photons[axis.num_bins :])}
    k_lines = [line for line in anode_lines(anode, tube_kv) if line.shell == "K"]
    weights = [lines[line.transitions] for line in k_lines if "L" in line.transitions[0]]
    energies = [line.energy_kev for line in k_lines if "L" in line.transitions[0]]
    assert np.average(energies, weights=weights) == pytest.approx(kalpha_kev, abs=0.03)
    if kalpha2_per_kalpha1:
        assert lines[("KL2",)] / lines[("KL3",)] == pytest.approx(kalpha2_per_kalpha1, abs=0.03)
    edge_kev = k_lines[0].edge_kev
    assert all(line.shell != "K" for line in anode_lines(anode, edge_kev - 0.1))


def test_characteristic_share_of_a_molybdenum_tube():
    """Mo at 30 kV gives a few tenths of its photons above 10 keV in the K lines; the share grows with voltage."""
    shares = []
    for tube_kv in (25.0, 30.0, 45.0):
        axis, photons = tube_photons("Mo", tube_kv)
        hard = axis.energy_kev > 10
        shares.append(photons[axis.num_bins :][hard[axis.num_bins :]].sum() / photons[hard].sum())
    assert shares[0] < shares[1] < shares[2]
    assert 0.1 < shares[1] < 0.5


def test_window_absorbs_by_lambert_and_beer():
    axis, thin = tube_photons("Rh", 10.0, window_um=100.0)
    _, thick = tube_photons("Rh", 10.0, window_um=300.0)
    expected = [math.exp(-xraylib.CS_Total_Kissel(4, energy) * 1.848 * 0.02) for energy in axis.energy_kev]
    np.testing.assert_allclose(thick / thin, expected, rtol=1e-9)
