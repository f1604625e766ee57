"""Instruments by name."""

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
    characteristic_scale=1.5,
    atmosphere="helium",
    residual_air=0.1,
    gas_view_mm=6.0,
    water_film_um=12.0,
    noise_fwhm_ev=140.0,
    noise_sd_ev=25.0,
    fano=0.18,
    tail_fraction=0.035,
    tail_kev=0.22,
    shelf_fraction=0.001,
    pile_up_fraction=0.02,
    threshold_kev=0.48,
    threshold_width_kev=0.01,
    scatter_scale=1.3,
    gain_sd=0.001,
    offset_sd_kev=0.002,
)
"""Avaatech at 10 kV without filter, 10 s: the condition MAX was trained on.

Noise, Fano factor (an effective one: short shaping widens peaks beyond charge statistics), tail, pile-up, water film
and the scales were fitted, with the mean composition, to the mean of 55,211 measured spectra and then rounded; such a
fit is degenerate, so they describe spectra, not the hardware.
"""

PRESETS = {"avaatech_10kv": AVAATECH_10KV}
"""Every instrument by the name that recipes and command lines use."""


def instrument_model(name: str) -> InstrumentModel:
    """The preset of this name.

    Raises:
        ValueError: there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no instrument {name!r}; choose one of {', '.join(sorted(PRESETS))}.")
    return PRESETS[name]
