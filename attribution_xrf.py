"""Which energies drive a prediction: integrated gradients over the channels of a spectrum, and what the element lines,
escape peaks and sum peaks have of them.

Attributions are in the standardised, transformed space of a target, in which predictions are neither clamped nor
exponentiated: 1 is one `target_std` of the model's configuration. Positive ones raise the prediction.

N = spectra, L = channels, P = patches, T = targets, R = rows of the table of lines.
"""

import copy
import csv
import itertools
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from dataset_builder.spectrum import Spectrum
from feature_extraction_xrf import XRFFeatureExtractor
from figures_xrf import GEOLOGICAL_ELEMENTS
from inference_xrf import measured_patches_only
from peers_xrf import fwhm_kev

BASELINES = ("continuum", "mean")
STRIPPED_WIDTH = 3.0  # FWHM on either side over which a peak, or several that overlap, is stripped
NUM_STRONGEST = 5  # lines whose escape and sum peaks are looked for
WIDTHS = (
    0.9,
    1.0,
    1.1,
    1.2,
    1.3,
    1.4,
    1.5,
    1.6,
)  # of peaks, in units of `fwhm_kev`, and shifts from tabulated energies
SHIFTS_KEV = (-0.03, -0.02, -0.01, 0.0, 0.01, 0.02, 0.03)
MISFIT = 0.02  # share of the counts that the fitted peaks may miss
PLAUSIBLE = 10.0  # times the share that the Earth's crust would have of all line counts
OTHER = "other"
COLUMNS = ("element", "line", "energy_kev", "attribution", "share")


@dataclass(frozen=True)
class LineAttribution:
    """What one line of an element has of the attribution, or what is left: element `"other"`.

    Args:
        element, line (`str`): such as `"Ca"` and `"Kα"`, `"Fe"` and `"Kα escape"`, `"Ca + Fe"` and `"Kα + Kα sum"`.
        energy_kev (`float`): tabulated, of the strongest component, in keV; NaN for what is left.
        attribution (`float`): signed, mean over the spectra, in standard deviations of the target.
        share (`float`): of the absolute attribution of all channels.
    """

    element: str
    line: str
    energy_kev: float
    attribution: float
    share: float

    @property
    def kind(self) -> str:
        """`"line"`, `"escape"`, `"sum"` or `"other"`."""
        if self.element == OTHER:
            return OTHER
        return self.line.rpartition(" ")[2] if " " in self.line else "line"

    @property
    def label(self) -> str:
        """Such as `"Ca Kα"`, `"Fe Kα escape"`, `"Ca Kα + Fe Kα"`."""
        if self.kind != "sum":
            return f"{self.element} {self.line}".strip()
        pairs = zip(self.element.split(" + "), self.line.removesuffix(" sum").split(" + "), strict=True)
        return " + ".join(" ".join(pair) for pair in pairs)


@dataclass(frozen=True)
class Explanation:
    """Why a model predicts what it does for a set of spectra.

    Args:
        target (`str`): name of the target.
        energy_kev (`np.ndarray` of shape `(L,)`): channels of the model's grid, in keV.
        measured (`np.ndarray` of shape `(L,)`): whether any of the spectra has the channel.
        mean_counts (`np.ndarray` of shape `(L,)`): mean over the spectra that measured the channel.
        attribution (`np.ndarray` of shape `(L,)`): signed, mean over the spectra.
        absolute_attribution (`np.ndarray` of shape `(L,)`): mean over the spectra of the absolute attribution.
        difference (`float`): mean of prediction less prediction of the baseline, which `attribution` adds up to.
        lines (`list[LineAttribution]`): by decreasing share, what is left last.
    """

    target: str
    energy_kev: np.ndarray
    measured: np.ndarray
    mean_counts: np.ndarray
    attribution: np.ndarray
    absolute_attribution: np.ndarray
    difference: float
    lines: list[LineAttribution]

    def save_channels(self, path) -> None:
        """Writes the measured channels as CSV: energy_kev, mean_counts, attribution, absolute_attribution."""
        columns = ("energy_kev", "mean_counts", "attribution", "absolute_attribution")
        rows = zip(*(getattr(self, name)[self.measured].tolist() for name in columns))
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *([f"{energy:.6g}", *values] for energy, *values in rows)])

    def save_lines(self, path) -> None:
        """Writes the lines as CSV: element, line, energy_kev, attribution, share."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            for line in self.lines:
                energy = "" if line.kind == OTHER else f"{line.energy_kev:.4f}"
                table.writerow({**asdict(line), "energy_kev": energy})


def explain(
    model,
    feature_extractor: XRFFeatureExtractor,
    spectra: Sequence[Spectrum],
    target: str,
    baseline: str = "continuum",
    steps: int = 32,
    batch_size: int = 16,
) -> Explanation:
    """
    Attributes a model's predictions of one target to channels and element lines.

    Args:
        model (`XRFForRegression`): a fine-tuned model.
        feature_extractor (`XRFFeatureExtractor`): the model's own.
        spectra (sequence of N `Spectrum`): with an energy calibration.
        target (`str`): one of the model's `target_names`.
        baseline (`str`, defaults to `"continuum"`):
            What spectra are compared with. `"continuum"` is each spectrum with its peaks stripped, so that
            attribution belongs to peaks and does not cancel over the set: what builds up the value. `"mean"` is the
            mean input of the set: what makes its spectra differ. Signed attributions nearly cancel then, shares do
            not.
        steps (`int`, defaults to 32): points on the way from baseline to spectrum.
        batch_size (`int`, defaults to 16): spectra that go through the model together.

    Raises:
        ValueError: an unknown target or baseline, or spectra that the extractor refuses.
    """
    column_of(model.config, target)
    if baseline not in BASELINES:
        raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, but is {baseline!r}.")
    features = feature_extractor(list(spectra))
    values, attention_mask = features["input_values"], features["attention_mask"]
    measured = _measured_channels(values, attention_mask)  # (N, L)
    if baseline == "mean":
        baseline_values = np.broadcast_to(_mean(values, measured), values.shape)
    else:
        baseline_values = continuum(values, attention_mask, feature_extractor)
    channels, difference = integrated_gradients(
        model, target, values, baseline_values, attention_mask, steps, batch_size
    )
    counts, _ = feature_extractor.rebin(
        [spectrum.counts for spectrum in spectra],
        [spectrum.gain_kev for spectrum in spectra],
        [spectrum.offset_kev for spectrum in spectra],
    )
    mean_counts = _mean(counts, measured)
    attribution, absolute = channels.mean(axis=0), np.abs(channels).mean(axis=0)
    tubes_kv = [spectrum.tube_kv for spectrum in spectra if spectrum.tube_kv is not None]
    lines = attribute_lines(
        feature_extractor.energy_kev,
        mean_counts,
        attribution,
        absolute,
        measured.any(axis=0),
        max(tubes_kv, default=None),
        _elements_of(spectra, target),
    )
    return Explanation(
        target,
        feature_extractor.energy_kev,
        measured.any(axis=0),
        mean_counts,
        attribution,
        absolute,
        float(difference.mean()),
        lines,
    )


def column_of(config, target: str) -> int:
    """Place of a target among those of a model's configuration.

    Raises:
        ValueError: the model has no such target.
    """
    if target not in config.target_names:
        raise ValueError(f"The model has no target {target!r}; it has {', '.join(config.target_names)}.")
    return config.target_names.index(target)


# --- integrated gradients ---


def standardized_view(model):
    """A model that shares all weights with `model` and whose `predictions` are the standardised, transformed target:
    not restored to its unit and not clamped, so that gradients exist everywhere. `model` stays as it is."""
    config, count = copy.deepcopy(model.config), len(model.config.target_names)
    config.target_mean, config.target_std = [0.0] * count, [1.0] * count
    config.target_min, config.target_max = [None] * count, [None] * count
    config.target_transform = ["linear"] * count
    config.interval_coverages = config.interval_factors = config.interval_floors = None
    view = copy.copy(model)
    view.config = config
    # what accelerate and torch.compile put in the place of these would run the model itself
    view.__dict__.pop("forward", None)
    view._compiled_call_impl = None
    return view


def integrated_gradients(
    model,
    target: str,
    input_values,
    baseline,
    attention_mask,
    steps: int = 32,
    batch_size: int = 16,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Integrated gradients of the standardised target with respect to the scaled counts (Sundararajan, Taly & Yan 2017,
    arXiv 1703.01365): (x - x') times the mean gradient on the straight way from the baseline x' to x, by
    Gauss-Legendre quadrature. They add up to f(x) - f(x') as far as the quadrature goes. What a spectrum was divided
    by to scale it is the same all the way.

    Args:
        model (`XRFForRegression`): stays on its device and is not changed.
        target (`str`): one of the model's `target_names`.
        input_values (array-like of shape `(N, L)`): spectra as the extractor returns them.
        baseline (array-like of shape `(N, L)`): what they are compared with, on the same scale.
        attention_mask (array-like of shape `(N, P)`): 1 = measured; the other patches have no attribution.
        steps (`int`, defaults to 32): points of the quadrature.
        batch_size (`int`, defaults to 16): spectra that go through the model together.

    Returns:
        attributions `(N, L)` and f(x) - f(x') `(N,)`, float64.
    """
    from tqdm import tqdm

    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps ({steps}) and batch_size ({batch_size}) must be at least 1; 32 and 16 are usual.")
    column, view = column_of(model.config, target), standardized_view(model)
    device = next(model.parameters()).device
    values, baseline = (torch.from_numpy(np.array(rows, dtype=np.float32)) for rows in (input_values, baseline))
    attention_mask = torch.from_numpy(np.array(attention_mask))
    measured = torch.from_numpy(_measured_channels(values.numpy(), attention_mask.numpy()))
    way = torch.where(measured, values - baseline, 0.0)  # (N, L)

    nodes, weights = np.polynomial.legendre.leggauss(steps)
    quadrature = list(zip(((nodes + 1) / 2).tolist(), (weights / 2).tolist(), strict=True))

    def output(inputs, features):
        return view(**{**features, "input_values": inputs}).predictions[:, column]

    attributions, differences = np.empty(values.shape), np.empty(len(values))
    with tqdm(total=len(values) * steps, unit=" gradients", disable=None) as progress:
        for start in range(0, len(values), batch_size):
            rows = slice(start, start + batch_size)
            end, step, mask = (tensor[rows].to(device) for tensor in (values, way, attention_mask))
            features = measured_patches_only({"input_values": end, "attention_mask": mask})
            mean_gradient = torch.zeros_like(end)
            for position, weight in quadrature:
                inputs = (end - (1 - position) * step).requires_grad_()
                with torch.enable_grad():
                    (gradient,) = torch.autograd.grad(output(inputs, features).sum(), inputs)
                mean_gradient += weight * gradient
                progress.update(len(end))
            with torch.no_grad():
                difference = output(end, features) - output(end - step, features)
            attributions[rows] = (step * mean_gradient).cpu().numpy()
            differences[rows] = difference.cpu().numpy()
    return attributions, differences


def continuum(input_values, attention_mask, feature_extractor: XRFFeatureExtractor) -> np.ndarray:
    """Scaled spectra `(N, L)` without their peaks, on the same scale, by `strip_peaks`. Values scaled per channel are
    stripped of their peaks as counts."""
    values = np.asarray(input_values, dtype=np.float64)
    if feature_extractor.scaling == "channel":
        mean, std = np.asarray(feature_extractor.channel_mean), np.asarray(feature_extractor.channel_std)
    else:
        mean, std = 0.0, 1.0
    measured = _measured_channels(values, attention_mask)
    stripped = (strip_peaks(values * std + mean, measured, feature_extractor.energy_kev) - mean) / std
    return np.where(measured, stripped, values)


def strip_peaks(values: np.ndarray, measured: np.ndarray, energy_kev: np.ndarray) -> np.ndarray:
    """
    The continuum below the peaks of spectra by SNIP, statistics-sensitive non-linear iterative peak-clipping (Ryan et
    al. 1988, Nucl. Instrum. Meth. B 34, 396), with falling window (Morháč et al. 1997, Nucl. Instrum. Meth. A 401,
    113): each channel becomes at most the mean of the two p channels away, p from 3 FWHM down to 1. A running mean
    over one FWHM goes before, so that the continuum lies little below the noise.

    Args:
        values (`np.ndarray` of shape `(N, L)`): counts, their square roots, or a linear function of either.
        measured (`np.ndarray` of shape `(N, L)`): other channels take no part.
        energy_kev (`np.ndarray` of shape `(L,)`): evenly spaced, in keV.
    """
    width_kev = fwhm_kev(energy_kev) / (energy_kev[1] - energy_kev[0])  # in channels
    reach = np.maximum(np.round(STRIPPED_WIDTH * width_kev), 1).astype(int)  # (L,)
    result = np.where(measured, _running_mean(values, measured, int(np.median(width_kev)) // 2), np.inf)
    for p in range(reach.max(), 0, -1):
        padded = np.pad(result, ((0, 0), (p, p)), constant_values=np.inf)
        neighbours = (padded[:, : -2 * p] + padded[:, 2 * p :]) / 2
        result = np.where(p <= reach, np.minimum(result, neighbours), result)
    return np.where(measured, result, values)


def _running_mean(values, measured, half_width: int) -> np.ndarray:
    """Mean of the measured channels at most `half_width` away."""
    window = np.ones(2 * half_width + 1)

    def sums(rows):
        rows = np.pad(rows, ((0, 0), (half_width, half_width)))
        return np.stack([np.convolve(row, window, mode="valid") for row in rows])

    return sums(np.where(measured, values, 0.0)) / np.maximum(sums(measured.astype(float)), 1.0)


def _measured_channels(values, attention_mask) -> np.ndarray:
    mask = np.asarray(attention_mask).astype(bool)
    return np.repeat(mask, values.shape[1] // mask.shape[1], axis=1)


def _mean(values, measured) -> np.ndarray:
    """Mean `(L,)` over the spectra that measured a channel, 0 where none did."""
    return np.where(measured, values, 0).sum(axis=0) / np.maximum(measured.sum(axis=0), 1)


# --- element lines ---


def attribute_lines(
    energy_kev: np.ndarray,
    mean_counts: np.ndarray,
    attribution: np.ndarray,
    absolute_attribution: np.ndarray,
    measured: np.ndarray,
    tube_kv: float | None = None,
    elements: Sequence[str] = GEOLOGICAL_ELEMENTS,
) -> list[LineAttribution]:
    """
    Shares the attribution of channels out among lines of elements.

    A line has the channels within one FWHM of its components, a family such as L-beta being one line. Where several
    lines claim a channel, they share it in proportion to their counts there in a fit to the mean spectrum (see
    `fit_lines`), so that a line whose element is not in the spectrum has nothing. What no line claims is `"other"`:
    continuum, Compton scatter, shelf and tails.

    Args:
        energy_kev, mean_counts, attribution, absolute_attribution (`np.ndarray` of shape `(L,)`): channels in keV,
            mean counts, and mean signed and mean absolute attribution.
        measured (`np.ndarray` of shape `(L,)`): channels that may belong to lines.
        tube_kv (`float`, *optional*): lines with an absorption edge above are not excited; by default, the end of the
            measured range limits them.
        elements (sequence of `str`): chemical symbols.

    Returns:
        `list[LineAttribution]`: lines with a share, the largest first, and what is left.
    """
    names, claims = fit_lines(energy_kev, mean_counts, measured, tube_kv, elements)  # (R, L)
    claims = claims / np.maximum(claims.sum(axis=0), np.finfo(float).tiny)
    total = max(absolute_attribution.sum(), np.finfo(float).tiny)
    signed, shares = claims @ attribution, claims @ absolute_attribution / total
    lines = [
        LineAttribution(element, line, float(components_kev[0]), float(value), float(share))
        for (element, line, components_kev), value, share in zip(names, signed, shares, strict=True)
        if share > 0
    ]
    lines.sort(key=lambda line: (-line.share, line.energy_kev))
    rest = 1 - claims.sum(axis=0)
    left = LineAttribution(
        OTHER, "", float("nan"), float(rest @ attribution), float(rest @ absolute_attribution / total)
    )
    return [*lines, left]


def fit_lines(
    energy_kev: np.ndarray,
    mean_counts: np.ndarray,
    measured: np.ndarray,
    tube_kv: float | None = None,
    elements: Sequence[str] = GEOLOGICAL_ELEMENTS,
) -> tuple[list[tuple[str, str, np.ndarray]], np.ndarray]:
    """
    The counts of each line in a mean spectrum: non-negative least squares of Gaussian peaks above the continuum.

    The lines of one shell (K, L or M) of an element keep their ratios, by xraylib's rates and, for subshells, its
    production at the highest energy. One width and one shift of all peaks are fitted too. Where lines of two elements
    cannot be told apart, abundance decides: a shell with ten times its share of the photons of the upper continental
    crust costs as much as a misfit of one standard deviation in a channel, and ever more beyond. The strongest lines
    have silicon escape peaks, in proportion to `detector.escape_fraction`, and sum peaks, in proportion to chance
    coincidence: A_i A_j, twice that for different lines.

    Returns:
        rows (element, line, tabulated energies of its components in keV with the strongest first), and their counts
        `(R, L)` within one FWHM of a component.
    """
    from dataset_builder.simulation.detector import SILICON_KALPHA_KEV, escape_fraction

    range_kev = energy_kev[measured].min(), energy_kev[measured].max()
    highest_kev = range_kev[1] if tube_kv is None else tube_kv
    rows, photons, owners, expected = _expected_lines(elements, range_kev, highest_kev)
    if not rows:
        return [], np.zeros((0, len(energy_kev)))
    counts = np.maximum(mean_counts, 0).astype(float)
    background = strip_peaks(np.sqrt(counts)[None], measured[None], energy_kev)[0] ** 2
    # counting noise, and what Gaussian peaks and the continuum miss of the counts
    noise = np.sqrt(counts + 1e-4 * counts.max() + (MISFIT * counts) ** 2 + np.finfo(float).tiny)[measured]
    net = (counts - background)[measured]
    plausible = PLAUSIBLE * net.clip(0).sum() * expected  # (shells,)

    def fit(width, shift_kev):
        peaks = np.stack([rate @ _peaks(energy_kev, row[2] + shift_kev, width) for row, rate in zip(rows, photons)])
        areas, misfit = _areas(peaks[:, measured], owners, net, noise, plausible)
        return misfit, peaks * areas[owners, None]

    width, shift_kev = min(itertools.product(WIDTHS, SHIFTS_KEV), key=lambda candidate: fit(*candidate)[0])
    totals = fit(width, shift_kev)[1].sum(axis=1)
    strongest = [row for row in np.argsort(-totals, kind="stable")[:NUM_STRONGEST] if totals[row] > 0]
    strongest.sort(key=lambda row: rows[row][2][0])
    artefacts = []  # row, photons and owner: one owner for all escape peaks and one for all sum peaks
    for row in strongest:
        element, line, line_kev = rows[row]
        lost = totals[row] * photons[row] / photons[row].sum() * escape_fraction(line_kev)
        artefacts.append(((element, f"{line} escape", line_kev - SILICON_KALPHA_KEV), lost, len(expected)))
    for i, j in itertools.combinations_with_replacement(strongest, 2):
        names = (f"{rows[i][0]} + {rows[j][0]}", f"{rows[i][1]} + {rows[j][1]} sum", rows[i][2][:1] + rows[j][2][:1])
        coincidences = np.array([(1 + (i != j)) * totals[i] * totals[j] / totals.max()])
        artefacts.append((names, coincidences, len(expected) + 1))
    for row, rate, owner in artefacts:
        if rate.sum() > 0 and range_kev[0] <= row[2][0] <= range_kev[1]:
            rows.append(row)
            photons.append(rate)
            owners = np.append(owners, owner)
    plausible = np.append(plausible, [np.inf, np.inf])
    reach_kev = width * fwhm_kev(energy_kev)
    distance_kev = [np.abs(energy_kev - line_kev[:, None] - shift_kev).min(axis=0) for _, _, line_kev in rows]
    return rows, np.where(measured & (distance_kev <= reach_kev), fit(width, shift_kev)[1], 0.0)


def _expected_lines(elements, range_kev, highest_kev: float) -> tuple[list, list, np.ndarray, np.ndarray]:
    """Lines in a range of energies: rows (element, line, energies of its components in keV, the strongest first),
    photons of each component per photon of their shell, and the number of that shell `(R,)`; then, of the photons of
    all shells of the Earth's crust, the share of each shell."""
    shells = _shells(elements, highest_kev)
    abundance = np.array([_crust_ppm(element) * production for element, _, production in shells])
    expected = abundance / max(abundance[np.isfinite(abundance)].sum(initial=0), np.finfo(float).tiny)
    rows, photons, owners = [], [], []
    for number, (element, families, _) in enumerate(shells):
        for family, components in families.items():
            line_kev, rate = np.array(sorted(components, key=lambda component: -component[1])).T
            if range_kev[0] <= line_kev[0] <= range_kev[1]:
                rows.append((element, family, line_kev))
                photons.append(rate)
                owners.append(number)
    return rows, photons, np.array(owners), expected


def _crust_ppm(element: str) -> float:
    """Mass of an element in the upper continental crust in ug/g; infinite where unknown, so that nothing limits it."""
    from dataset_builder.simulation.minerals import CRUST

    main_elements = ("Na", "Mg", "Al", "Si", "K", "Ca", "Ti", "Fe")  # a twentieth of which stands in the table
    return CRUST.get(element, np.inf) * (20 if element in main_elements else 1)


def _areas(peaks, owners, net, noise, plausible) -> tuple[np.ndarray, float]:
    """Non-negative areas of the owners of peaks that together come closest to the net counts, drawn to zero where
    they would exceed the plausible, and the misfit."""
    from scipy.optimize import nnls

    templates = np.zeros((len(plausible), peaks.shape[1]))
    np.add.at(templates, owners, peaks)
    system = np.vstack([(templates / noise).T, np.diag(1 / np.maximum(plausible, np.finfo(float).tiny))])
    return nnls(system, np.append(net / noise, np.zeros(len(plausible))))


def _peaks(energy_kev, line_kev, width: float) -> np.ndarray:
    """Gaussian peaks `(lines, L)` of one count each, their width in units of `fwhm_kev`."""
    sd_kev = width * fwhm_kev(line_kev)[:, None] / np.sqrt(8 * np.log(2))
    height = (energy_kev[1] - energy_kev[0]) / (sd_kev * np.sqrt(2 * np.pi))
    return height * np.exp(-0.5 * ((energy_kev - line_kev[:, None]) / sd_kev) ** 2)


def _shells(elements, highest_kev: float) -> list[tuple[str, dict[str, list[tuple[float, float]]], float]]:
    """For every element and shell K, L or M that photons of up to this energy excite: its families of lines, of each
    the components' energies in keV and photons per photon of the shell; and the photons of the shell per g/cm2."""
    from dataset_builder.simulation.atomic_data import SHELLS, emission_lines, shell_production

    shells = []
    for element in elements:
        excited = [line for line in emission_lines(element) if line.edge_kev < highest_kev]
        if not excited:
            continue
        production = dict(zip(SHELLS, shell_production(element, [highest_kev])[:, 0], strict=True))
        for shell in "KLM":
            lines = [line for line in excited if line.shell[0] == shell]
            total = sum(line.rate * production[line.shell] for line in lines)
            families = {}
            for line in lines if total > 0 else ():
                photons = line.rate * production[line.shell] / total
                families.setdefault(_family(line), []).append((line.energy_kev, photons))
            if families:
                shells.append((element, families, total))
    return shells


def _family(line) -> str:
    """The usual (Siegbahn) name of a line's family: Kα, Kβ, Lα, Lβ, Lγ, Ll, Lη or M."""
    outer = {transition[len(line.shell) :] for transition in line.transitions}
    from_m = any(name[0] == "M" for name in outer)
    if line.shell == "K":
        return "Kα" if any(name[0] == "L" for name in outer) else "Kβ"
    if line.shell == "L3":
        return "Lα" if outer & {"M4", "M5"} else "Ll" if outer == {"M1"} else "Lβ"
    if line.shell == "L2":
        return "Lη" if outer == {"M1"} else "Lβ" if from_m else "Lγ"
    if line.shell == "L1":
        return "Lβ" if from_m else "Lγ"
    return "M"


def _elements_of(spectra, target: str) -> list[str]:
    """The usual elements, those of the tubes' anodes and those in the name of the target."""
    import xraylib

    named = [spectrum.anode for spectrum in spectra if spectrum.anode] + re.findall("[A-Z][a-z]?", target)
    elements = dict.fromkeys(GEOLOGICAL_ELEMENTS)
    for name in named:
        try:
            if xraylib.SymbolToAtomicNumber(name) >= 11:  # lighter ones are not seen
                elements.setdefault(name)
        except ValueError:  # the name is no symbol, such as an anode of an alloy or a T in TOC
            continue
    return list(elements)


def markdown_table(lines: Sequence[LineAttribution], number: int = 10) -> str:
    """The first lines and what is left as a Markdown table."""
    shown = [line for line in lines if line.kind != OTHER][:number]
    table = ["| line | energy (keV) | attribution | share |", "|---|---:|---:|---:|"]
    for line in [*shown, *(line for line in lines if line.kind == OTHER)]:
        energy = "" if line.kind == OTHER else f"{line.energy_kev:.3f}"
        table.append(f"| {line.label} | {energy} | {line.attribution:+.3f} | {line.share:.1%} |")
    return "\n".join(table)


def write_explanation(folder, explanation: Explanation, title: str = "") -> None:
    """Writes `attribution.csv`, `lines.csv` and `attribution.png` into an existing folder."""
    from figures_xrf import plot_attribution

    folder = Path(folder)
    explanation.save_channels(folder / "attribution.csv")
    explanation.save_lines(folder / "lines.csv")
    plot_attribution(
        folder / "attribution.png",
        explanation.energy_kev[explanation.measured],
        explanation.mean_counts[explanation.measured],
        explanation.attribution[explanation.measured],
        explanation.lines,
        explanation.target,
        title,
    )
