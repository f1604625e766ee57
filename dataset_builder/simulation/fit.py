"""`fit_instrument`: parameters of an `InstrumentModel` from measured spectra of known, or roughly known, samples.

Maximum a posteriori estimate: every parameter has a normal prior around its start, on the scale of its transform and
as wide as instruments differ (`PARAMETERS`), so a parameter that the spectra say nothing about stays where it was and
is reported as such. Channels count with Poisson noise and a relative error of the model in quadrature; the robust loss
keeps lines of elements that nobody named from pulling at everything else.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.optimize import least_squares

from ..spectrum import Spectrum
from .atomic_data import ELEMENTS
from .forward import ForwardModel
from .instrument import InstrumentModel, InstrumentState, draw_states, nominal_state
from .sample import reference_mass_fractions

MODEL_CORRELATION_KEV = 0.15
"""Model errors of neighbouring channels are alike over about one peak width."""
RELATIVE_MODEL_ERROR = 0.05
LOWEST_FREE_FRACTION = 1e-6
"""Mass fraction at which a free element starts that the given composition lacks."""
FREE_ELEMENT_LN_SD = 0.7
MEAN_OF = 1000
"""Spectra that a mean is taken to be over: its counting noise is that much smaller."""
LOW_COUNTS = 100
"""Channels with fewer counts are left out of `median_abs_ln_ratio`: their noise exceeds 10 %."""
SUM_PEAKS = 1.5
"""Channels up to so many times the tube voltage are fitted unless told otherwise."""
DIFFERENCE_STEP = 0.02
"""Step of the numerical derivative in standard deviations of the prior."""
DETERMINED = 0.7
"""A parameter is determined if the spectra shrink its standard deviation below this share of the prior's."""
EXCHANGEABLE = 0.95
"""Correlation above which only a combination of two parameters is known."""


@dataclass(frozen=True)
class FitParameter:
    """How one number of an `InstrumentModel` is fitted.

    Args:
        transform: `"linear"`, `"ln"` or `"logit"`: the scale of the search and of `prior_sd`.
        low, high: bounds; offsets from the start if `relative` (ratios for `"ln"`).
        prior_sd: standard deviation of the prior around the start, on the transform's scale.
    """

    transform: str
    low: float
    high: float
    prior_sd: float
    relative: bool = False


PARAMETERS = {
    "tube_kv": FitParameter("ln", 0.95, 1.05, 0.01, relative=True),
    "gain_kev": FitParameter("ln", 0.95, 1.05, 0.01, relative=True),
    "offset_kev": FitParameter("linear", -0.15, 0.15, 0.03, relative=True),
    "characteristic_scale": FitParameter("ln", 0.05, 20, 0.5),
    "tube_window_um": FitParameter("ln", 5, 1000, 0.5),
    "tube_electron_angle_deg": FitParameter("linear", 5, 90, 15),
    "tube_takeoff_angle_deg": FitParameter("linear", 3, 90, 10),
    "polycapillary_half_kev": FitParameter("ln", 2, 60, 0.5),
    "polycapillary_power": FitParameter("ln", 1, 12, 0.4),
    "scatter_angle_deg": FitParameter("linear", 20, 175, 20),
    "incidence_angle_deg": FitParameter("linear", 10, 90, 10),
    "exit_angle_deg": FitParameter("linear", 10, 90, 10),
    "residual_air": FitParameter("logit", 1e-4, 0.95, 1.0),
    "beam_path_mm": FitParameter("ln", 0.5, 200, 0.5),
    "exit_path_mm": FitParameter("ln", 0.5, 200, 0.5),
    "gas_view_mm": FitParameter("ln", 0.1, 200, 0.7),
    "film_um": FitParameter("ln", 0.3, 100, 0.5),
    "water_film_um": FitParameter("ln", 0.1, 500, 0.7),
    "detector_window_um": FitParameter("ln", 1, 100, 0.5),
    "dead_layer_um": FitParameter("ln", 0.005, 5, 0.7),
    "detector_thickness_mm": FitParameter("ln", 0.1, 3, 0.3),
    "noise_sd_ev": FitParameter("ln", 1, 60, 0.5),
    "noise_fwhm_ev": FitParameter("ln", 20, 300, 0.3),
    "fano": FitParameter("ln", 0.05, 0.5, 0.2),
    "tail_fraction": FitParameter("logit", 1e-4, 0.4, 1.0),
    "tail_kev": FitParameter("ln", 0.02, 3, 0.7),
    "shelf_fraction": FitParameter("logit", 1e-5, 0.2, 1.0),
    "pile_up_fraction": FitParameter("logit", 1e-5, 0.3, 1.0),
    "threshold_kev": FitParameter("linear", -0.5, 3, 0.2),
    "threshold_width_kev": FitParameter("ln", 0.003, 0.5, 0.7),
    "zero_peak_per_s": FitParameter("ln", 1e-3, 1e5, 2.0),
    "scatter_scale": FitParameter("ln", 0.1, 10, 0.5),
}
"""Fields of `InstrumentModel` that can be fitted."""
PAIR_PARAMETERS = {
    "filters": FitParameter("ln", 0.1, 3000, 0.3),
    "contamination_ug_cm2": FitParameter("ln", 1e-5, 1e3, 2.0),
}
"""Fields that hold pairs of a material and a number; `"filters:Al"` is the thickness of the aluminium."""
DEFAULT_PARAMETERS = (
    "gain_kev",
    "offset_kev",
    "noise_fwhm_ev",
    "tail_fraction",
    "shelf_fraction",
    "pile_up_fraction",
    "characteristic_scale",
    "scatter_scale",
)


@dataclass(frozen=True)
class ParameterEstimate:
    """One fitted parameter.

    Args:
        name: as in `PARAMETERS`, or `"abundance:Fe"` for the mass fraction of a free element relative to its start.
        start, value: before and after.
        sd: standard deviation of the estimate, on the scale of `transform`.
        prior_share: that standard deviation relative to the prior's: near 1 where the spectra say nothing.
        at_bound: whether the search ended at a bound.
    """

    name: str
    start: float
    value: float
    transform: str
    sd: float
    prior_share: float
    at_bound: bool

    @property
    def determined(self) -> bool:
        return self.prior_share < DETERMINED and not self.at_bound


@dataclass(frozen=True, eq=False)
class FittedInstrument:
    """What `fit_instrument` found (B spectra).

    Args:
        instrument (`InstrumentModel`): the start with fitted parameters and `reference_counts`.
        mass_fractions (`np.ndarray` of shape `(B, 92)`): with the free elements as fitted.
        expected_counts (`np.ndarray` of shape `(B, channels)`): the model's spectra, on the scale of the measured.
        fitted_channels (`np.ndarray` of `bool`, shape `(channels,)`): those in `energy_range_kev`.
        median_abs_ln_ratio (`float`): median |ln(measured / expected)| over fitted channels of at least `LOW_COUNTS`
            measured counts; fewer in a mean.
        estimates (`tuple[ParameterEstimate, ...]`): every fitted number.
        exchangeable (`tuple[tuple[str, str, float], ...]`): pairs of parameters and their correlation where only a
            combination of the two is known.
    """

    instrument: InstrumentModel
    mass_fractions: np.ndarray
    expected_counts: np.ndarray
    fitted_channels: np.ndarray
    median_abs_ln_ratio: float
    estimates: tuple[ParameterEstimate, ...]
    exchangeable: tuple[tuple[str, str, float], ...]

    @property
    def report(self) -> str:
        """The fit in words: a line for each parameter, then what the spectra left open."""
        lines = [f"median |ln(measured / expected)| {self.median_abs_ln_ratio:.3f}"]
        lines += [
            f"{each.name:28s} {each.start:10.4g} -> {each.value:10.4g}{_remark(each)}" for each in self.estimates
        ]
        lines += [
            f"{first} and {second} are exchangeable (correlation {correlation:+.2f}): only a combination is known."
            for first, second, correlation in self.exchangeable
        ]
        return "\n".join(lines)


def fit_instrument(
    spectra,
    mass_fractions,
    start: InstrumentModel,
    parameters=DEFAULT_PARAMETERS,
    free_elements=(),
    energy_range_kev: tuple[float, float] | None = None,
    mean: bool = False,
    relative_model_error: float = RELATIVE_MODEL_ERROR,
    max_steps: int = 40,
) -> FittedInstrument:
    """Fit an instrument to measured spectra.

    Each spectrum has its own overall scale, so absolute intensities need not agree; `reference_counts` of the result
    takes the median scale (for equal live time, where the spectra state theirs). Gain and offset are searched on a
    grid first, so a calibration that is off by some peak widths is found.

    Args:
        spectra (`Spectrum` or list of `Spectrum`): measured counts (B spectra of equally many channels). Where they
            have a calibration, it replaces that of `start`; differences between the spectra are taken as drift.
        mass_fractions (`np.ndarray` of shape `(B, 92)` or `(92,)`, *optional*): what the beam sees of each sample, H
            to U; the wet marine mud of `reference_mass_fractions` if `None`. With `mean`, a population of M samples,
            of shape `(M, 92)`.
        start (`InstrumentModel`): first guess, with tube, filters and geometry as far as known.
        parameters (sequence of `str`): names in `PARAMETERS`, or `"filters:Al"`, `"contamination_ug_cm2:Cu"`.
        free_elements (sequence of `str`): elements whose mass fractions are multiplied by a fitted factor, the same
            for all samples; rows are closed to 1 again.
        energy_range_kev (`tuple[float, float]`, *optional*): channels to fit; from 0.9 keV to 1.5 times the tube
            voltage, where sum peaks are, if `None`.
        mean (`bool`): the one spectrum is the mean over a population of samples under the drifting instrument; only
            such a mean has the right sum peaks (of lines that exclude each other) and peak shapes.
        relative_model_error (`float`): relative error of the model over a peak width: about 0.05 for genuine spectra.
        max_steps (`int`): most steps of the search.

    Raises:
        ValueError: spectra and compositions do not match, a parameter is not known, or there is nothing to fit.
    """
    spectra = [spectra] if isinstance(spectra, Spectrum) else list(spectra)
    counts = _counts(spectra)
    if mean and len(spectra) != 1:
        raise ValueError(f"with mean=True give one spectrum, the mean itself; got {len(spectra)}.")
    fractions = _mass_fractions(mass_fractions, None if mean else len(spectra))
    start = _with_calibration(start, spectra)
    problem = _Problem(
        counts=counts,
        fractions=fractions,
        start=start,
        calibrations=_calibrations(start, spectra),
        mean=mean,
        names=_checked_names(parameters, free_elements, start),
        num_elements=len(free_elements),
        channels=_fitted_channels(start, counts, energy_range_kev),
        relative_model_error=relative_model_error,
    )
    first = problem.calibrated() if {"gain_kev", "offset_kev"} <= set(parameters) else problem.centre
    solution = least_squares(
        problem.residuals,
        np.clip(first, problem.low, problem.high),
        jac=problem.jacobian,
        bounds=(problem.low, problem.high),
        x_scale=problem.prior_sd,
        xtol=1e-4,
        ftol=1e-4,
        max_nfev=max_steps,
    )
    return _result(problem, solution, spectra)


class _Problem:
    """Residuals of the fit as a function of the vector of transformed parameters: free elements, then instrument."""

    def __init__(
        self, counts, fractions, mean, start, calibrations, names, num_elements, channels, relative_model_error
    ):
        self.counts, self.fractions, self.mean, self.start = counts, fractions, mean, start
        self.gains, self.offsets = calibrations
        self.names, self.num_elements, self.channels = names, num_elements, channels
        self.elements = [ELEMENTS.index(name.split(":")[1]) for name in names[:num_elements]]
        self.kinds = [_ABUNDANCE] * num_elements + [_parameter(name) for name in names[num_elements:]]
        self.start_values = np.array([1.0] * num_elements + [_get(start, name) for name in names[num_elements:]])
        bounds = [_bounds(kind, value) for kind, value in zip(self.kinds, self.start_values, strict=True)]
        inside = [np.clip(value, *each) for value, each in zip(self.start_values, bounds, strict=True)]
        self.low, self.high = np.array([self._transformed(edge) for edge in zip(*bounds, strict=True)])
        margin = 1e-6 * (self.high - self.low)  # least_squares wants to begin inside
        self.centre = np.clip(self._transformed(inside), self.low + margin, self.high - margin)
        self.prior_sd = np.array([kind.prior_sd for kind in self.kinds])
        # Model errors of the channels of one peak width are one error, not many.
        alike = max(1.0, MODEL_CORRELATION_KEV / start.gain_kev)
        noise = 1 / MEAN_OF if mean else 1.0
        self.weight = 1 / np.sqrt(noise + alike * relative_model_error**2 * counts)  # (B, channels)
        self.model = lru_cache(maxsize=2)(ForwardModel)  # steps in the elements alone keep the instrument

    def _transformed(self, values):
        return np.array([_TRANSFORMS[kind.transform][0](v) for kind, v in zip(self.kinds, values, strict=True)])

    def values(self, vector):
        return np.array([_TRANSFORMS[kind.transform][1](x) for kind, x in zip(self.kinds, vector, strict=True)])

    def at(self, vector):
        """Instrument, mass fractions, expected counts and scales (B, 1) at a vector."""
        values = self.values(vector)
        fractions = self.fractions.copy()
        fractions[:, self.elements] = np.maximum(fractions[:, self.elements], LOWEST_FREE_FRACTION)
        fractions[:, self.elements] *= values[: self.num_elements]
        fractions /= fractions.sum(axis=1, keepdims=True)
        instrument = self.start
        for name, value in zip(self.names[self.num_elements :], values[self.num_elements :], strict=True):
            instrument = _set(instrument, name, float(value))
        if self.mean:
            state = population_states(instrument, len(fractions))
            expected = self.model(instrument).expected_counts(fractions, state).mean(axis=0, keepdims=True)
        else:
            state = nominal_state(instrument, len(fractions))
            state = replace(state, gain_kev=state.gain_kev * self.gains, offset_kev=state.offset_kev + self.offsets)
            expected = self.model(instrument).expected_counts(fractions, state)
        scale = self.scale(expected)
        return instrument, fractions, scale * expected, scale

    def scale(self, expected):
        """Factor of each spectrum that makes weighted sums over the fitted channels agree, shape `(B, 1)`."""
        weight = np.where(self.channels, self.weight**2, 0.0)
        above = (weight * self.counts).sum(axis=1, keepdims=True)
        return above / np.maximum((weight * expected).sum(axis=1, keepdims=True), 1e-300)

    def misfit(self, expected):
        """Residuals, shape `(B, fitted channels)`, in standard deviations where they are small.

        Signed roots of the Poisson deviance (P. McCullagh and J. A. Nelder, "Generalized Linear Models" (1989), 2.4),
        made robust: the sum of squares is P. J. Huber's loss in its smooth form 2 (sqrt(1 + r**2) - 1), linear for
        large deviations r.
        """
        counts, expected = self.counts[:, self.channels], np.maximum(expected[:, self.channels], 1e-6)
        excess = expected - counts
        deviance = 2 * (excess + counts * np.log(np.maximum(counts, 1e-6) / expected))
        deviation = np.maximum(deviance, 0) * self.weight[:, self.channels] ** 2
        return np.copysign(np.sqrt(2 * (np.sqrt(1 + deviation) - 1)), excess)

    def residuals(self, vector):
        _, _, expected, _ = self.at(vector)
        return np.concatenate([self.misfit(expected).ravel(), (vector - self.centre) / self.prior_sd])

    def jacobian(self, vector):
        """By differences, shape `(residuals, parameters)`; the steps are large because the model is float32."""
        here = self.residuals(vector)
        columns = []
        for i, step in enumerate(DIFFERENCE_STEP * self.prior_sd):
            moved = vector.copy()
            moved[i] += step if vector[i] + step <= self.high[i] else -step
            columns.append((self.residuals(moved) - here) / (moved[i] - vector[i]))
        return np.stack(columns, axis=1)

    def calibrated(self):
        """The first vector with gain and offset from a grid: the start's spectrum, stretched, against the measured."""
        _, _, expected, _ = self.at(self.centre)
        gain, offset = self.names.index("gain_kev"), self.names.index("offset_kev")
        channel = np.arange(self.counts.shape[1])
        best, vector = np.inf, self.centre.copy()
        for ln_ratio in np.linspace(-0.03, 0.03, 61):
            for shift_kev in np.linspace(-0.08, 0.08, 17):
                gain_kev = self.start.gain_kev * np.exp(ln_ratio)
                kev = self.start.offset_kev + shift_kev + gain_kev * channel
                place = (kev - self.start.offset_kev) / self.start.gain_kev
                moved = np.stack([np.interp(place, channel, row, left=0, right=0) for row in expected])
                moved *= self.scale(moved)
                prior = (ln_ratio / self.prior_sd[gain]) ** 2 + (shift_kev / self.prior_sd[offset]) ** 2
                cost = (self.misfit(moved) ** 2).sum() + prior
                if cost < best:
                    best = cost
                    vector[gain], vector[offset] = np.log(gain_kev), self.start.offset_kev + shift_kev
        return vector


def _result(problem, solution, spectra):
    vector = solution.x
    instrument, fractions, expected, scale = problem.at(vector)
    sd, correlation = _uncertainty(problem.jacobian(vector))
    values = problem.values(vector)
    span = problem.high - problem.low
    at_bound = (vector < problem.low + 1e-3 * span) | (vector > problem.high - 1e-3 * span)
    estimates = tuple(
        ParameterEstimate(
            name=name,
            start=float(problem.start_values[i]),
            value=float(values[i]),
            transform=problem.kinds[i].transform,
            sd=float(sd[i]),
            prior_share=float(sd[i] / problem.prior_sd[i]),
            at_bound=bool(at_bound[i]),
        )
        for i, name in enumerate(problem.names)
    )
    exchangeable = tuple(
        (problem.names[i], problem.names[j], float(correlation[i, j]))
        for i in range(len(vector))
        for j in range(i)
        if abs(correlation[i, j]) > EXCHANGEABLE
    )
    live_s = np.array([each.live_time_s or problem.start.live_time_s for each in spectra])
    reference_counts = instrument.reference_counts * float(np.median(scale[:, 0] * instrument.live_time_s / live_s))
    return FittedInstrument(
        instrument=replace(instrument, reference_counts=reference_counts),
        mass_fractions=fractions,
        expected_counts=expected,
        fitted_channels=problem.channels,
        median_abs_ln_ratio=median_abs_ln_ratio(
            problem.counts, expected, problem.channels, LOW_COUNTS / MEAN_OF if problem.mean else LOW_COUNTS
        ),
        estimates=estimates,
        exchangeable=exchangeable,
    )


def population_states(instrument: InstrumentModel, num_spectra: int) -> InstrumentState:
    """States of spectra of as many cores, always the same draws, shape `(num_spectra,)` each."""
    rng = np.random.default_rng(0)
    states = [draw_states(instrument, 1, rng) for _ in range(num_spectra)]
    return InstrumentState(**{name: np.concatenate([vars(each)[name] for each in states]) for name in vars(states[0])})


def median_abs_ln_ratio(counts, expected_counts, channels=None, low_counts: float = LOW_COUNTS) -> float:
    """Median |ln(measured / expected)| over channels with at least `low_counts` measured counts.

    Args:
        counts, expected_counts (`np.ndarray` of shape `(..., channels)`): measured and expected.
        channels (`np.ndarray` of `bool`, shape `(channels,)`, *optional*): channels to compare.
        low_counts (`float`): fewer counts are not compared.

    Returns:
        NaN if no channel is left.
    """
    counts, expected_counts = np.asarray(counts, dtype=np.float64), np.asarray(expected_counts, dtype=np.float64)
    compared = (counts >= low_counts) & (expected_counts > 0)
    if channels is not None:
        compared &= channels
    if not compared.any():
        return float("nan")
    return float(np.median(np.abs(np.log(counts[compared] / expected_counts[compared]))))


def _uncertainty(jacobian):
    """Standard deviations and correlations of the estimate; the prior's rows make the matrix invertible."""
    covariance = np.linalg.inv(jacobian.T @ jacobian)
    sd = np.sqrt(np.diag(covariance))
    return sd, covariance / np.outer(sd, sd)


def _remark(estimate):
    if estimate.at_bound:
        return "  at its bound"
    if not estimate.determined:
        return f"  not determined by the spectra (sd {estimate.prior_share:.2f} of the prior's)"
    return ""


_ABUNDANCE = FitParameter("ln", 0.01, 100, FREE_ELEMENT_LN_SD)
_TRANSFORMS = {
    "linear": (lambda value: value, lambda x: x),
    "ln": (np.log, np.exp),
    "logit": (lambda value: np.log(value / (1 - value)), lambda x: 1 / (1 + np.exp(-x))),
}


def _parameter(name):
    field, _, _ = name.partition(":")
    return PAIR_PARAMETERS[field] if ":" in name else PARAMETERS[field]


def _bounds(kind, start_value):
    if not kind.relative:
        return kind.low, kind.high
    if kind.transform == "ln":
        return kind.low * start_value, kind.high * start_value
    return start_value + kind.low, start_value + kind.high


def _get(instrument, name):
    field, _, key = name.partition(":")
    value = getattr(instrument, field)
    return dict(value)[key] if key else value


def _set(instrument, name, value):
    field, _, key = name.partition(":")
    if key:
        value = tuple((each, value if each == key else old) for each, old in getattr(instrument, field))
    return replace(instrument, **{field: value})


def _checked_names(parameters, free_elements, start):
    unknown = [element for element in free_elements if element not in ELEMENTS]
    if unknown:
        raise ValueError(f"free_elements must name elements from H to U; got {unknown[0]!r}.")
    for name in parameters:
        field, _, key = name.partition(":")
        if key and field in PAIR_PARAMETERS:
            if key not in dict(getattr(start, field)):
                raise ValueError(f"{name} can only be fitted if {field} of the start names {key}; add it there.")
        elif name not in PARAMETERS:
            raise ValueError(
                f"{name!r} cannot be fitted; choose from {', '.join(PARAMETERS)}, or filters:<material> and "
                "contamination_ug_cm2:<element>."
            )
        elif getattr(start, name) is None:
            raise ValueError(f"{name} is None in the start, so it cannot be fitted; give it a first value.")
    names = [*(f"abundance:{element}" for element in free_elements), *parameters]
    if len(set(names)) != len(names) or not names:
        raise ValueError("parameters and free_elements must name each quantity once, and at least one in all.")
    return names


def _counts(spectra):
    if not spectra:
        raise ValueError("fit_instrument needs at least one spectrum; got none.")
    sizes = sorted({each.counts.size for each in spectra})
    if len(sizes) > 1:
        raise ValueError(f"all spectra of a fit must have equally many channels; got {sizes[0]} and {sizes[-1]}.")
    counts = np.stack([each.counts for each in spectra]).astype(np.float64)
    empty = np.flatnonzero(counts.sum(axis=1) == 0)
    if len(empty):
        raise ValueError(f"every spectrum of a fit must have counts; spectrum {empty[0]} is empty: leave it out.")
    return counts


def _mass_fractions(mass_fractions, num_spectra):
    fractions = reference_mass_fractions() if mass_fractions is None else np.asarray(mass_fractions, dtype=np.float64)
    if fractions.ndim == 1:
        fractions = np.tile(fractions, (num_spectra or 1, 1))
    num_samples = len(fractions) if num_spectra is None else num_spectra
    if num_samples == 0 or fractions.shape != (num_samples, len(ELEMENTS)):
        raise ValueError(
            f"mass_fractions must have shape ({num_spectra or 'samples'}, {len(ELEMENTS)}), H to U; got "
            f"{fractions.shape}."
        )
    total = fractions.sum(axis=1)
    if not (np.isfinite(total).all() and (fractions >= 0).all() and np.allclose(total, 1, atol=0.01)):
        raise ValueError(
            f"each row of mass_fractions must be 0 or more and add up to 1; the sums lie between {total.min():.3g} "
            f"and {total.max():.3g}: give fractions, not percent, with the oxygen of oxides."
        )
    return fractions / total[:, None]


def _with_calibration(start, spectra):
    changes = {"num_channels": spectra[0].counts.size}
    if all(each.gain_kev is not None for each in spectra):
        changes["gain_kev"] = float(np.mean([each.gain_kev for each in spectra]))
    if all(each.offset_kev is not None for each in spectra):
        changes["offset_kev"] = float(np.mean([each.offset_kev for each in spectra]))
    return replace(start, **changes)


def _calibrations(start, spectra):
    """Gain of each spectrum relative to the start's and difference of offsets in keV, each of shape `(B,)`."""
    gains = [start.gain_kev if each.gain_kev is None else each.gain_kev for each in spectra]
    offsets = [start.offset_kev if each.offset_kev is None else each.offset_kev for each in spectra]
    return np.array(gains) / start.gain_kev, np.array(offsets) - start.offset_kev


def _fitted_channels(start, counts, energy_range_kev):
    low, high = energy_range_kev or (0.9, SUM_PEAKS * start.tube_kv)
    kev = start.offset_kev + start.gain_kev * np.arange(start.num_channels)
    channels = (kev >= low) & (kev <= high)
    if not channels.any() or counts[:, channels].sum() == 0:
        raise ValueError(
            f"there must be counts between {low:g} and {high:g} keV to fit; the spectra reach from {kev[0]:.2f} to "
            f"{kev[-1]:.2f} keV: check energy_range_kev and the calibration."
        )
    return channels
