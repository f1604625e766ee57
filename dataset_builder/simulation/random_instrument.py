"""Instruments that nobody built but somebody could have: `draw_instrument` invents one, `vary_instrument` alters one.

Ranges follow real instruments (`presets`): what belongs together is drawn together. Low voltages go without a filter,
heavy filters with high voltages and never with chromium, whose lines they would stop, water films with core scanners,
polycapillaries with micro-XRF.
"""

from dataclasses import replace

import numpy as np

from .instrument import InstrumentModel

ANODE_SHARES = {"Rh": 0.45, "Ag": 0.2, "Mo": 0.15, "Cr": 0.1, "W": 0.1}
LOWEST_KV, HIGHEST_KV = 8.0, 50.0
# Filter, thinnest and thickest in micrometre, lowest voltage that still gets through.
FILTERS = (
    ("Al", 25.0, 250.0, 12.0),
    ("Ti", 10.0, 50.0, 14.0),
    ("Cu", 25.0, 500.0, 25.0),
    ("Pd", 10.0, 125.0, 25.0),
    ("Ag", 10.0, 100.0, 25.0),
)
HEAVY_FILTERS = ("Cu", "Pd", "Ag")
UNFILTERED_SHARE = 0.4
# Channels and the eV per channel that cover a spectrum with them.
CHANNELS = ((1024, 20.0, 25.0), (2048, 10.0, 25.0), (4096, 8.0, 12.5))
CHANNEL_SHARES = (0.15, 0.5, 0.35)
LOWEST_COUNTS, HIGHEST_COUNTS = 1e4, 5e6
CONTAMINANTS = ("Fe", "Ni", "Cu", "Zn", "Cr", "W", "Ta", "Pd", "Ag", "Pb")


def draw_instrument(rng: np.random.Generator) -> InstrumentModel:
    """A random instrument; the same state of `rng` gives the same one."""
    tube_kv = float(np.round(rng.uniform(LOWEST_KV, HIGHEST_KV)))
    anode = str(rng.choice(list(ANODE_SHARES), p=list(ANODE_SHARES.values())))
    kind = rng.choice(["core scanner", "handheld", "benchtop", "micro-XRF"])
    filters = () if kind == "micro-XRF" else _filters(anode, tube_kv, rng)
    atmosphere = rng.choice(["air", "vacuum"] if kind == "micro-XRF" else ["air", "air", "helium", "vacuum"])
    num_channels, lowest_ev, highest_ev = CHANNELS[rng.choice(len(CHANNELS), p=CHANNEL_SHARES)]
    noise_fwhm_ev = rng.uniform(70, 190)
    return InstrumentModel(
        name=f"random {kind} (simulated)",
        anode=anode,
        tube_kv=tube_kv,
        tube_ua=_log_uniform(10, 1000, rng),
        live_time_s=_log_uniform(2, 100, rng),
        num_channels=num_channels,
        gain_kev=1e-3 * rng.uniform(lowest_ev, highest_ev),
        offset_kev=1e-3 * rng.uniform(-30, 30),
        reference_counts=_log_uniform(LOWEST_COUNTS, HIGHEST_COUNTS, rng),
        tube_window_um=_log_uniform(50, 350, rng),
        tube_takeoff_angle_deg=rng.uniform(5, 45),
        characteristic_scale=_log_uniform(0.5, 2, rng),
        filters=filters,
        polycapillary_half_kev=rng.uniform(8, 25) if kind == "micro-XRF" else None,
        polycapillary_power=rng.uniform(2, 8),
        incidence_angle_deg=rng.uniform(50, 90) if kind == "micro-XRF" else rng.uniform(35, 65),
        exit_angle_deg=rng.uniform(35, 70),
        scatter_angle_deg=rng.uniform(80, 150),
        atmosphere=str(atmosphere),
        residual_air=0.0 if atmosphere == "air" else _log_uniform(0.005, 0.2, rng),
        beam_path_mm=rng.uniform(5, 30),
        exit_path_mm=rng.uniform(3, 20),
        gas_view_mm=rng.uniform(1, 10),
        film=str(rng.choice(["polypropylene", "polyester", "polyimide"])),
        film_um=0.0 if kind == "micro-XRF" else rng.uniform(1.5, 8),
        water_film_um=rng.uniform(0, 50) if kind == "core scanner" else 0.0,
        contamination_ug_cm2=_contamination(rng),
        detector_window_um=rng.uniform(8, 25),
        dead_layer_um=_log_uniform(0.03, 0.3, rng),
        detector_thickness_mm=rng.uniform(0.3, 0.8),
        noise_fwhm_ev=noise_fwhm_ev,
        noise_sd_ev=rng.uniform(0.01, 0.1) * noise_fwhm_ev,
        fano=rng.uniform(0.11, 0.17),
        tail_fraction=_log_uniform(0.002, 0.05, rng),
        tail_kev=_log_uniform(0.06, 1.2, rng),
        shelf_fraction=_log_uniform(0.0005, 0.05, rng),
        pile_up_fraction=_log_uniform(0.002, 0.03, rng),
        threshold_kev=rng.uniform(0.2, 0.7),
        threshold_width_kev=_log_uniform(0.01, 0.08, rng),
        scatter_scale=_log_uniform(0.5, 2, rng),
        gain_sd=_log_uniform(0.0003, 0.005, rng),
        offset_sd_kev=_log_uniform(0.001, 0.01, rng),
        intensity_sd=_log_uniform(0.02, 0.2, rng),
    )


# How unlike each other two instruments of one make are, as standard deviations of logarithms. Presets are degenerate
# fits to one instrument each, so these are wider than tolerances of manufacture.
VARIED_LOG_SD = {
    "reference_counts": 0.6, "tube_window_um": 0.3, "tube_takeoff_angle_deg": 0.25, "characteristic_scale": 0.3,
    "beam_path_mm": 0.3, "exit_path_mm": 0.3, "gas_view_mm": 0.3, "film_um": 0.3, "water_film_um": 0.5,
    "detector_window_um": 0.4, "dead_layer_um": 0.4, "detector_thickness_mm": 0.1, "noise_fwhm_ev": 0.1, "fano": 0.05,
    "tail_fraction": 0.4, "tail_kev": 0.3, "shelf_fraction": 0.5, "pile_up_fraction": 0.7, "scatter_scale": 0.3,
    "residual_air": 0.3,
}  # fmt: skip
VARIED_ANGLE_SD_DEG = 4.0
VARIED_GAIN_SD, VARIED_OFFSET_SD_KEV = 0.003, 0.006
VARIED_CONTAMINATION_LOG_SD = 0.6


def vary_instrument(instrument: InstrumentModel, rng: np.random.Generator) -> InstrumentModel:
    """An instrument of the same make and settings as another one, but not the same one; the same state of `rng` gives
    the same one."""
    scales = {name: np.exp(sd * rng.standard_normal()) for name, sd in VARIED_LOG_SD.items()}
    varied = {name: float(getattr(instrument, name) * scale) for name, scale in scales.items()}
    varied["tube_takeoff_angle_deg"] = min(varied["tube_takeoff_angle_deg"], 80.0)
    varied["residual_air"] = min(varied["residual_air"], 0.9)
    for name in ("incidence_angle_deg", "exit_angle_deg"):
        turned = getattr(instrument, name) + VARIED_ANGLE_SD_DEG * rng.standard_normal()
        varied[name] = float(np.clip(turned, 10, 90))
    contamination = instrument.contamination_ug_cm2
    factors = np.exp(VARIED_CONTAMINATION_LOG_SD * rng.standard_normal(len(contamination)))
    return replace(
        instrument,
        gain_kev=float(instrument.gain_kev * (1 + VARIED_GAIN_SD * rng.standard_normal())),
        offset_kev=float(instrument.offset_kev + VARIED_OFFSET_SD_KEV * rng.standard_normal()),
        contamination_ug_cm2=tuple(
            (element, float(thickness * factor))
            for (element, thickness), factor in zip(contamination, factors, strict=True)
        ),
        **varied,
    )


def _filters(anode, tube_kv, rng):
    possible = [each for each in FILTERS if tube_kv >= each[3] and not (anode == "Cr" and each[0] in HEAVY_FILTERS)]
    if not possible or rng.random() < UNFILTERED_SHARE:
        return ()
    name, thinnest_um, thickest_um, _ = possible[rng.integers(len(possible))]
    thickness_um = _log_uniform(thinnest_um, max(thinnest_um, thickest_um * tube_kv / HIGHEST_KV), rng)
    return ((name, float(np.round(thickness_um, 1))),)


def _contamination(rng):
    num = rng.integers(0, 5)
    return tuple((str(each), _log_uniform(0.01, 10, rng)) for each in rng.choice(CONTAMINANTS, num, replace=False))


def _log_uniform(low, high, rng) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
