"""`InstrumentModel`: everything about an instrument that shapes a spectrum, and how it varies between spectra."""

from dataclasses import dataclass

import numpy as np

from .atomic_data import ELEMENTS, HIGHEST_ENERGY_KEV, LOWEST_ENERGY_KEV
from .detector import fwhm_ev
from .materials import ATMOSPHERES, material

ANODES = ("Rh", "Mo", "Cr", "Ag", "W")
MANGANESE_KALPHA_KEV = 5.895

STATE_TARGETS = {"gain_drift": "%", "zero_drift": "eV", "fwhm_mn_kalpha": "eV", "count_rate": "counts/s"}
"""What `state_labels` knows of each spectrum, and its units."""


@dataclass(frozen=True)
class InstrumentModel:
    """An energy-dispersive spectrometer over a thick sample.

    Materials are elements (`"Al"`) or names of `materials.COMPOUNDS` (`"polypropylene"`).

    Args:
        name: instrument's name, written into every spectrum.
        anode, tube_kv, tube_ua, live_time_s: tube (element symbol, kV, microampere) and counting time.
        num_channels, gain_kev, offset_kev: the native channels.
        reference_counts: total counts of the reference sediment, without the zero peak.
        tube_window_um, tube_electron_angle_deg, tube_takeoff_angle_deg: beryllium window and geometry of the tube.
        characteristic_scale: the tube's characteristic lines relative to Ebel's formula.
        filters: primary filters as pairs of material and thickness in micrometre, `(("Al", 200.0), ("Ti", 25.0))`.
        polycapillary_half_kev, polycapillary_power: energy at which a focusing optic passes half of what it passes at
            low energies, and the steepness of the fall (see `forward.polycapillary_transmission`); no optic if the
            energy is `None`.
        incidence_angle_deg, exit_angle_deg: beam and detector to the sample's surface.
        scatter_angle_deg: between beam and detector; the sum of the two angles if `None` (all in one plane).
        atmosphere: gas in the path, `"air"`, `"helium"` or `"vacuum"`.
        residual_air: volume fraction of air left in helium or vacuum.
        beam_path_mm, exit_path_mm: gas between tube and sample and between sample and detector.
        gas_view_mm: length of the beam in gas that the detector sees: argon there fluoresces, the gas scatters.
        film, film_um: foil on the sample, passed on the way in and out.
        water_film_um, water_film_log_sd: median thickness of the water between film and sediment, and the standard
            deviation of its logarithm from spectrum to spectrum.
        contamination_ug_cm2: pairs of element and thickness in ug/cm2 of thin layers in beam and view (collimator,
            housing) that add their lines, `(("Cu", 0.5), ("Ni", 0.2))`.
        detector_window, detector_window_um, dead_layer_um, detector_thickness_mm: of the silicon detector.
        noise_fwhm_ev, fano: electronic noise (full width at half maximum) and Fano factor.
        tail_fraction, tail_kev, shelf_fraction: incomplete charge collection (see `detector.response_matrix`).
        pile_up_fraction: share of pulses that another one joins within the pulse-pair resolution.
        threshold_kev, threshold_width_kev: low-level discriminator: half of the pulses at this energy are recorded;
            the standard deviation of the step.
        zero_peak_per_s: noise pulses per second recorded around 0 keV, whatever the threshold.
        scatter_scale: scattered tube radiation relative to single scattering at the mean angle.
        gain_sd, offset_sd_kev, noise_sd_ev, intensity_sd, pile_up_sd: relative or absolute standard deviations of the
            drifts between cores; within a core a tenth of gain and offset drift remains.

    Raises:
        ValueError: a field is outside its physical range, or a material is not known.
    """

    name: str
    anode: str
    tube_kv: float
    tube_ua: float
    live_time_s: float
    num_channels: int
    gain_kev: float
    offset_kev: float
    reference_counts: float
    tube_window_um: float = 125.0
    tube_electron_angle_deg: float = 60.0
    tube_takeoff_angle_deg: float = 30.0
    characteristic_scale: float = 1.0
    filters: tuple[tuple[str, float], ...] = ()
    polycapillary_half_kev: float | None = None
    polycapillary_power: float = 2.0
    incidence_angle_deg: float = 45.0
    exit_angle_deg: float = 45.0
    scatter_angle_deg: float | None = None
    atmosphere: str = "air"
    residual_air: float = 0.0
    beam_path_mm: float = 10.0
    exit_path_mm: float = 10.0
    gas_view_mm: float = 5.0
    film: str = "polypropylene"
    film_um: float = 4.0
    water_film_um: float = 0.0
    water_film_log_sd: float = 0.4
    contamination_ug_cm2: tuple[tuple[str, float], ...] = ()
    detector_window: str = "Be"
    detector_window_um: float = 12.5
    dead_layer_um: float = 0.1
    detector_thickness_mm: float = 0.5
    noise_fwhm_ev: float = 100.0
    fano: float = 0.12
    tail_fraction: float = 0.005
    tail_kev: float = 0.3
    shelf_fraction: float = 0.003
    pile_up_fraction: float = 0.01
    threshold_kev: float = 0.0
    threshold_width_kev: float = 0.05
    zero_peak_per_s: float = 0.0
    scatter_scale: float = 1.0
    gain_sd: float = 0.002
    offset_sd_kev: float = 0.004
    noise_sd_ev: float = 4.0
    intensity_sd: float = 0.03
    pile_up_sd: float = 0.1

    def __post_init__(self):
        if self.anode not in ANODES:
            raise ValueError(f"anode must be one of {', '.join(ANODES)}; got {self.anode!r}.")
        if self.atmosphere not in ATMOSPHERES:
            raise ValueError(f"atmosphere must be one of {', '.join(ATMOSPHERES)}; got {self.atmosphere!r}.")
        if not LOWEST_ENERGY_KEV < self.tube_kv <= HIGHEST_ENERGY_KEV:
            raise ValueError(f"tube_kv must lie in ({LOWEST_ENERGY_KEV}, {HIGHEST_ENERGY_KEV}]; got {self.tube_kv}.")
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}.")
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more; got {getattr(self, name)}.")
        for name in _SHARES:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a share and must lie in [0, 1); got {getattr(self, name)}.")
        if self.polycapillary_half_kev is not None and not self.polycapillary_half_kev > 0:
            raise ValueError(f"polycapillary_half_kev must be positive or None; got {self.polycapillary_half_kev}.")
        for name in ("incidence_angle_deg", "exit_angle_deg"):
            if not 0 < getattr(self, name) <= 90:
                raise ValueError(f"{name} must lie in (0, 90]; got {getattr(self, name)}.")
        for name in (self.film, self.detector_window, *(name for name, _ in self.filters)):
            material(name)
        unknown = [element for element, _ in self.contamination_ug_cm2 if element not in ELEMENTS]
        if unknown:
            raise ValueError(f"contamination_ug_cm2 must name elements from H to U; got {unknown[0]!r}.")

    @property
    def channel_edges_kev(self) -> np.ndarray:
        """Energies between channels, shape `(num_channels + 1,)`; channel i reaches half a gain to both sides."""
        return self.offset_kev + self.gain_kev * (np.arange(self.num_channels + 1) - 0.5)

    @property
    def lowest_noise_fwhm_ev(self) -> float:
        """Noise below which no spectrum is drawn: three standard deviations under the mean."""
        return max(self.noise_fwhm_ev - 3 * self.noise_sd_ev, 1.0)

    @property
    def scattering_angle_rad(self) -> float:
        """Angle by which a photon is turned from the beam to the detector."""
        angle_deg = self.scatter_angle_deg
        return np.radians(self.incidence_angle_deg + self.exit_angle_deg if angle_deg is None else angle_deg)

    @property
    def filter_name(self) -> str:
        """The filters as a label, such as `"Al 200 um + Ti 25 um"`; empty without a filter."""
        return " + ".join(f"{name} {thickness_um:g} um" for name, thickness_um in self.filters)


_POSITIVE = (
    "tube_ua",
    "live_time_s",
    "num_channels",
    "gain_kev",
    "reference_counts",
    "tube_electron_angle_deg",
    "tube_takeoff_angle_deg",
    "polycapillary_power",
    "detector_thickness_mm",
    "fano",
    "tail_kev",
)
_NOT_NEGATIVE = (
    "tube_window_um",
    "characteristic_scale",
    "beam_path_mm",
    "exit_path_mm",
    "gas_view_mm",
    "film_um",
    "water_film_um",
    "water_film_log_sd",
    "detector_window_um",
    "dead_layer_um",
    "noise_fwhm_ev",
    "threshold_width_kev",
    "zero_peak_per_s",
    "scatter_scale",
    "gain_sd",
    "offset_sd_kev",
    "noise_sd_ev",
    "intensity_sd",
    "pile_up_sd",
)
_SHARES = ("residual_air", "tail_fraction", "shelf_fraction", "pile_up_fraction")


@dataclass(frozen=True)
class InstrumentState:
    """The instrument at the moment of each of B spectra; every array has shape `(B,)`."""

    gain_kev: np.ndarray
    offset_kev: np.ndarray
    noise_fwhm_ev: np.ndarray
    intensity: np.ndarray
    pile_up_fraction: np.ndarray
    water_film_um: np.ndarray

    def __getitem__(self, rows) -> "InstrumentState":
        return InstrumentState(**{name: values[rows] for name, values in vars(self).items()})


def nominal_state(instrument: InstrumentModel, num_spectra: int) -> InstrumentState:
    """The instrument without any drift."""
    return InstrumentState(
        gain_kev=np.full(num_spectra, instrument.gain_kev),
        offset_kev=np.full(num_spectra, instrument.offset_kev),
        noise_fwhm_ev=np.full(num_spectra, instrument.noise_fwhm_ev),
        intensity=np.ones(num_spectra),
        pile_up_fraction=np.full(num_spectra, instrument.pile_up_fraction),
        water_film_um=np.full(num_spectra, instrument.water_film_um),
    )


def draw_states(instrument: InstrumentModel, num_spectra: int, rng: np.random.Generator) -> InstrumentState:
    """Drifting states of the spectra of one core: an offset of its own, and a tenth of it between spectra."""

    def drift(standard_deviation):
        return standard_deviation * (rng.standard_normal() + 0.1 * rng.standard_normal(num_spectra))

    noise_fwhm_ev = instrument.noise_fwhm_ev + drift(instrument.noise_sd_ev)
    return InstrumentState(
        gain_kev=instrument.gain_kev * (1 + drift(instrument.gain_sd)),
        offset_kev=instrument.offset_kev + drift(instrument.offset_sd_kev),
        noise_fwhm_ev=np.maximum(noise_fwhm_ev, instrument.lowest_noise_fwhm_ev),
        intensity=np.exp(drift(instrument.intensity_sd)),
        pile_up_fraction=instrument.pile_up_fraction * np.exp(drift(instrument.pile_up_sd)),
        water_film_um=instrument.water_film_um
        * np.exp(instrument.water_film_log_sd * rng.standard_normal(num_spectra)),
    )


def state_labels(instrument: InstrumentModel, state: InstrumentState, total_counts) -> dict[str, np.ndarray]:
    """The instrument's state as labels, in the units of `STATE_TARGETS`; each array has shape `(B,)`.

    Args:
        total_counts (`np.ndarray` of shape `(B,)`): recorded counts of each spectrum.
    """
    return {
        "gain_drift": 100 * (state.gain_kev / instrument.gain_kev - 1),
        "zero_drift": 1e3 * (state.offset_kev - instrument.offset_kev),
        "fwhm_mn_kalpha": fwhm_ev(MANGANESE_KALPHA_KEV, state.noise_fwhm_ev, instrument.fano),
        "count_rate": np.asarray(total_counts) / instrument.live_time_s,
    }
