"""Instruments by name.

What makers publish (anode, voltage, filters, channels, geometry where known) is taken over. The rest was fitted by
`fit.fit_instrument` to genuine spectra, each preset says which, and rounded: noise, tail, shelf, pile-up,
contamination, effective windows and angles. Such fits are degenerate, so the numbers describe spectra, not the
hardware; `benchmarks/SIMULATION.md` shows how well.
"""

from dataclasses import replace

from .instrument import InstrumentModel

AVAATECH_10KV = InstrumentModel(
    name="Avaatech core scanner (simulated)",
    anode="Rh",
    tube_kv=10.0,
    tube_ua=150.0,
    live_time_s=10.0,
    num_channels=2048,
    gain_kev=0.02,
    offset_kev=0.0,
    reference_counts=0.95e6,
    tube_window_um=150.0,
    tube_takeoff_angle_deg=4.0,
    characteristic_scale=0.75,
    atmosphere="helium",
    residual_air=0.15,
    gas_view_mm=8.0,
    water_film_um=6.0,
    noise_fwhm_ev=175.0,
    noise_sd_ev=50.0,
    fano=0.165,
    tail_fraction=0.035,
    tail_kev=0.12,
    shelf_fraction=0.0005,
    pile_up_fraction=0.021,
    threshold_kev=0.48,
    threshold_width_kev=0.01,
    scatter_scale=1.2,
    gain_sd=0.001,
    offset_sd_kev=0.002,
    intensity_sd=0.15,
)
"""Avaatech at 10 kV without filter, 10 s: the condition MAX was trained on.

Fitted, with the mean composition of simulated marine sediment, to the mean of 55,211 measured spectra. Noise varies
from core to core by a third, which the mean's peak shapes demand; the Fano factor is an effective one.
"""

AVAATECH_30KV = replace(
    AVAATECH_10KV,
    tube_kv=30.0,
    tube_ua=1000.0,
    live_time_s=20.0,
    filters=(("Pd", 125.0),),
    reference_counts=0.5e6,
    atmosphere="helium",
    tube_takeoff_angle_deg=20.0,
)
"""Avaatech at 30 kV with the thick palladium filter: Fe to Zr.

Not fitted: the detector of `AVAATECH_10KV`, with the usual settings of core scanning at this voltage.
"""

AVAATECH_50KV = replace(AVAATECH_30KV, tube_kv=50.0, filters=(("Cu", 500.0),), reference_counts=0.2e6)
"""Avaatech at 50 kV with the copper filter: Sr to Ba. Not fitted, as `AVAATECH_30KV`."""

ITRAX_MO = InstrumentModel(
    name="Itrax core scanner (simulated)",
    anode="Mo",
    tube_kv=30.0,
    tube_ua=30_000.0,
    live_time_s=15.0,
    num_channels=2048,
    gain_kev=0.01027,
    offset_kev=-0.0099,
    reference_counts=0.8e6,
    tube_window_um=160.0,
    tube_takeoff_angle_deg=5.0,
    characteristic_scale=1.25,
    polycapillary_half_kev=22.4,
    polycapillary_power=12.0,
    incidence_angle_deg=60.0,
    scatter_angle_deg=132.0,
    beam_path_mm=200.0,
    exit_path_mm=8.0,
    gas_view_mm=2.2,
    film_um=1.5,
    water_film_um=4.0,
    contamination_ug_cm2=(("W", 8.5), ("Ta", 2.5), ("Cu", 0.11), ("Ni", 0.06), ("Fe", 0.1)),
    detector_window_um=94.0,
    noise_fwhm_ev=64.0,
    noise_sd_ev=3.0,
    fano=0.125,
    tail_fraction=0.005,
    tail_kev=0.175,
    shelf_fraction=0.014,
    pile_up_fraction=0.0012,
    threshold_kev=0.55,
    scatter_scale=0.6,
    intensity_sd=0.1,
)
"""Itrax with the molybdenum tube, 30 kV, 30 mA, 15 s.

Fitted to one spectrum of a calcareous marine sediment with its abundances. W and Ta are lines of the beam's own optic;
long path and thick window stand for whatever stops its soft photons, the polycapillary for its flat capillary.
"""

ITRAX_CR = replace(ITRAX_MO, anode="Cr")
"""Itrax with the chromium tube, 30 kV, 30 mA, 15 s. Not fitted: the optic and detector of `ITRAX_MO`."""

HANDHELD_15KV = InstrumentModel(
    name="Bruker Tracer (simulated)",
    anode="Rh",
    tube_kv=15.0,
    tube_ua=25.0,
    live_time_s=60.0,
    num_channels=2048,
    gain_kev=0.02,
    offset_kev=0.0,
    reference_counts=3.5e6,
    tube_window_um=73.0,
    tube_takeoff_angle_deg=7.5,
    characteristic_scale=0.52,
    incidence_angle_deg=38.0,
    exit_angle_deg=65.0,
    atmosphere="vacuum",
    residual_air=0.02,
    beam_path_mm=15.0,
    exit_path_mm=8.0,
    gas_view_mm=4.4,
    film_um=20.0,
    contamination_ug_cm2=(("Fe", 76.0), ("Ni", 4.4), ("Cu", 1.8), ("Cr", 1.6)),
    detector_window_um=4.3,
    noise_fwhm_ev=87.0,
    noise_sd_ev=3.0,
    fano=0.122,
    tail_fraction=0.0225,
    tail_kev=0.24,
    shelf_fraction=0.026,
    pile_up_fraction=0.0021,
    threshold_kev=0.6,
    threshold_width_kev=0.02,
    scatter_scale=2.1,
    gain_sd=0.001,
)
"""Handheld at 15 kV without filter, in vacuum: light elements. Fitted to three mudrocks of known composition."""

HANDHELD_40KV = InstrumentModel(
    name="Bruker Tracer (simulated)",
    anode="Rh",
    tube_kv=40.0,
    tube_ua=15.0,
    live_time_s=60.0,
    num_channels=2048,
    gain_kev=0.02,
    offset_kev=0.0,
    reference_counts=1.1e6,
    tube_takeoff_angle_deg=21.0,
    characteristic_scale=1.1,
    filters=(("Ti", 20.3), ("Al", 390.0)),
    incidence_angle_deg=54.0,
    exit_angle_deg=71.0,
    beam_path_mm=15.0,
    exit_path_mm=8.0,
    film_um=6.0,
    contamination_ug_cm2=(("Pd", 43.0), ("Cu", 1.4), ("Fe", 0.1)),
    noise_fwhm_ev=98.0,
    noise_sd_ev=3.0,
    fano=0.1065,
    tail_fraction=0.02,
    tail_kev=0.11,
    shelf_fraction=0.05,
    pile_up_fraction=0.0003,
    threshold_kev=0.55,
    threshold_width_kev=0.02,
    detector_thickness_mm=0.81,
    scatter_scale=0.9,
    gain_sd=0.001,
)
"""Handheld at 40 kV behind titanium and aluminium, in air: trace elements. Fitted to three mudrocks."""

EPSILON1_12KV = InstrumentModel(
    name="PANalytical Epsilon 1 (simulated)",
    anode="Ag",
    tube_kv=12.0,
    tube_ua=416.0,
    live_time_s=14.0,
    num_channels=4096,
    gain_kev=0.00802,
    offset_kev=-0.0082,
    reference_counts=0.96e6,
    tube_window_um=50.0,
    tube_takeoff_angle_deg=10.0,
    characteristic_scale=1.5,
    filters=(("Al", 48.0),),
    incidence_angle_deg=48.0,
    exit_angle_deg=66.0,
    scatter_angle_deg=94.0,
    beam_path_mm=20.0,
    exit_path_mm=13.5,
    contamination_ug_cm2=(("Cr", 0.45), ("Cu", 0.03), ("Ni", 0.02), ("Fe", 0.05), ("Zn", 0.03)),
    detector_window_um=8.0,
    noise_fwhm_ev=57.0,
    noise_sd_ev=2.0,
    fano=0.15,
    tail_fraction=0.021,
    tail_kev=0.092,
    shelf_fraction=0.005,
    pile_up_fraction=0.05,
    threshold_kev=0.6,
    scatter_scale=1.46,
    gain_sd=0.0005,
    offset_sd_kev=0.001,
)
"""Epsilon 1 at 12 kV behind aluminium, in air. Fitted to two OREAS materials (24b and 45d)."""

EPSILON1_10KV = replace(
    EPSILON1_12KV,
    tube_kv=10.0,
    tube_ua=455.0,
    live_time_s=30.0,
    reference_counts=3.6e6,
    tube_takeoff_angle_deg=5.2,
    characteristic_scale=0.65,
    filters=(),
    incidence_angle_deg=46.0,
    exit_angle_deg=51.0,
    exit_path_mm=9.2,
    gas_view_mm=19.0,
    contamination_ug_cm2=(),
    detector_window_um=7.0,
    noise_fwhm_ev=59.0,
    fano=0.14,
    tail_fraction=0.022,
    tail_kev=0.1,
    pile_up_fraction=0.057,
    scatter_scale=1.3,
)
"""Epsilon 1 at 10 kV without filter, in air. Fitted as `EPSILON1_12KV`."""

EPSILON1_50KV = replace(
    EPSILON1_12KV,
    tube_kv=50.0,
    tube_ua=100.0,
    live_time_s=8.0,
    reference_counts=0.73e6,
    tube_takeoff_angle_deg=48.0,
    characteristic_scale=1.3,
    filters=(("Ag", 94.0),),
    incidence_angle_deg=45.0,
    exit_angle_deg=45.0,
    exit_path_mm=4.8,
    gas_view_mm=7.0,
    contamination_ug_cm2=(("Cu", 0.04), ("Ni", 0.045), ("Cr", 0.035), ("Fe", 0.05), ("Ag", 24.0)),
    detector_thickness_mm=0.25,
    noise_fwhm_ev=44.0,
    fano=0.176,
    tail_fraction=0.018,
    tail_kev=0.085,
    shelf_fraction=0.024,
    pile_up_fraction=0.024,
    threshold_kev=0.4,
    scatter_scale=1.7,
)
"""Epsilon 1 at 50 kV behind silver, in air. Fitted as `EPSILON1_12KV`."""

PIXL = InstrumentModel(
    name="PIXL (simulated)",
    anode="Rh",
    tube_kv=28.0,
    tube_ua=20.0,
    live_time_s=10.0,
    num_channels=4096,
    gain_kev=0.0079,
    offset_kev=-0.018,
    reference_counts=45e3,
    tube_window_um=276.0,
    tube_takeoff_angle_deg=38.0,
    characteristic_scale=0.76,
    polycapillary_half_kev=10.5,
    polycapillary_power=4.44,
    incidence_angle_deg=90.0,
    exit_angle_deg=67.6,
    scatter_angle_deg=140.0,
    atmosphere="vacuum",
    residual_air=0.08,
    beam_path_mm=30.0,
    exit_path_mm=30.0,
    film_um=0.0,
    contamination_ug_cm2=(("Ni", 0.62), ("Cu", 0.29), ("Zn", 0.12), ("Fe", 0.1)),
    detector_window_um=20.4,
    noise_fwhm_ev=67.0,
    noise_sd_ev=2.0,
    fano=0.125,
    tail_fraction=0.0126,
    tail_kev=1.15,
    shelf_fraction=0.0005,
    pile_up_fraction=0.002,
    threshold_kev=0.3,
    detector_thickness_mm=0.31,
    scatter_scale=1.17,
    intensity_sd=0.1,
)
"""PIXL, the micro-XRF of the Mars rover Perseverance, one of its two detectors, 10 s at a point.

The channels are those of the flight instrument. Fitted to the laboratory breadboard's spectrum of BHVO-2 glass; the
residual air stands for what is left there, and on Mars for carbon dioxide at 7 hPa.
"""

M4_TORNADO = InstrumentModel(
    name="Bruker M4 Tornado (simulated)",
    anode="Rh",
    tube_kv=50.0,
    tube_ua=600.0,
    live_time_s=60.0,
    num_channels=4096,
    gain_kev=0.01,
    offset_kev=-0.955,
    reference_counts=6e6,
    tube_window_um=348.0,
    tube_takeoff_angle_deg=12.0,
    characteristic_scale=1.46,
    polycapillary_half_kev=17.0,
    polycapillary_power=4.56,
    incidence_angle_deg=57.0,
    exit_angle_deg=34.0,
    scatter_angle_deg=128.0,
    atmosphere="vacuum",
    residual_air=0.02,
    beam_path_mm=10.0,
    exit_path_mm=20.0,
    film_um=0.0,
    contamination_ug_cm2=(("Zn", 0.24), ("Cr", 0.17), ("Ni", 0.023), ("Fe", 0.023), ("Cu", 0.016)),
    detector_window_um=14.3,
    noise_fwhm_ev=76.0,
    noise_sd_ev=2.0,
    fano=0.128,
    tail_fraction=0.02,
    tail_kev=0.1135,
    shelf_fraction=0.016,
    pile_up_fraction=0.0004,
    threshold_kev=0.3,
    zero_peak_per_s=20_000.0,
    detector_thickness_mm=0.26,
    scatter_scale=0.95,
    gain_sd=0.0003,
    offset_sd_kev=0.001,
    intensity_sd=0.02,
)
"""M4 Tornado micro-XRF at 50 kV through a polycapillary, in 20 hPa of air; zero peak at channel 96.

Fitted to a spectrum of the glass NIST SRM 1831 of 500 s.
"""

PRESETS = {
    "avaatech_10kv": AVAATECH_10KV,
    "avaatech_30kv": AVAATECH_30KV,
    "avaatech_50kv": AVAATECH_50KV,
    "itrax_mo": ITRAX_MO,
    "itrax_cr": ITRAX_CR,
    "handheld_15kv": HANDHELD_15KV,
    "handheld_40kv": HANDHELD_40KV,
    "epsilon1_10kv": EPSILON1_10KV,
    "epsilon1_12kv": EPSILON1_12KV,
    "epsilon1_50kv": EPSILON1_50KV,
    "pixl": PIXL,
    "m4_tornado": M4_TORNADO,
}
"""Every instrument by the name that recipes and command lines use."""


def instrument_model(name: str) -> InstrumentModel:
    """The preset of this name.

    Raises:
        ValueError: there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no instrument {name!r}; choose one of {', '.join(sorted(PRESETS))}.")
    return PRESETS[name]
