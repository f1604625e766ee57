"""Figures a geochemist reads at a glance: reconstructions, parity plots, training curves and maps, as PNG files.

Every figure is a `matplotlib.figure.Figure` of its own, without pyplot and its global state, so the functions work
without a display, in threads and in any process of a distributed run. Colours are those of Okabe & Ito (2008), which
readers with colour-blindness can tell apart; a file appears complete or not at all.

N = spectra, L = channels, P = patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from evaluation_xrf import regression_metrics
from files_xrf import atomic_file

DPI = 150
LOWEST_LINE_KEV = 0.9  # air and detector windows absorb what is softer
RESOLUTION_KEV = 0.13  # peak width at half height of silicon detectors at 2 keV: closer lines make one peak
BLACK, GREY, SHADE = "#222222", "#7f7f7f", "#e4ebf2"
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY_BLUE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY_BLUE, BLACK)
MARKERS = "osD^vPX"
STYLE = {
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": BLACK,
    "ytick.labelcolor": BLACK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
}

# Elements that sediments and rocks show, and rhodium and argon, which the usual tube and the air add.
GEOLOGICAL_ELEMENTS = (
    "Na", "Mg", "Al", "Si", "P", "S", "Cl", "Ar", "K", "Ca", "Ti", "V", "Cr", "Mn", "Fe", "Ni", "Cu", "Zn", "As", "Br",
    "Rb", "Sr", "Y", "Zr", "Nb", "Mo", "Rh", "Ba", "Pb", "Th",
)  # fmt: skip


def element_lines(
    min_kev: float, max_kev: float, elements: Sequence[str] = GEOLOGICAL_ELEMENTS
) -> list[tuple[str, float]]:
    """
    The main emission lines of the elements within an energy range: K-alpha, K-beta and L-alpha.

    Energies are xraylib's, averaged over the lines of a family by their rates. L-alpha is given from rubidium on; the
    L lines of lighter elements lie below 1.6 keV, where air and detector window absorb them.

    Args:
        min_kev (`float`): lower end of the range, in keV.
        max_kev (`float`): upper end of the range, in keV.
        elements (`Sequence[str]`): chemical symbols.

    Returns:
        `list[tuple[str, float]]`: label such as `"Ca Kα"` and energy in keV, by increasing energy.
    """
    import xraylib

    families = (("Kα", xraylib.KA_LINE, 1), ("Kβ", xraylib.KB_LINE, 1), ("Lα", xraylib.LA_LINE, 37))
    lines = []
    for element in elements:
        atomic_number = xraylib.SymbolToAtomicNumber(element)
        for family, line, first_atomic_number in families:
            if atomic_number < first_atomic_number:
                continue
            try:
                energy_kev = xraylib.LineEnergy(atomic_number, line)
            except ValueError:  # the element has no electrons to fill this vacancy, such as Na K-beta
                continue
            if min_kev <= energy_kev <= max_kev:
                lines.append((f"{element} {family}", energy_kev))
    return sorted(lines, key=lambda line: line[1])


def plot_reconstructions(
    path: str,
    energy_kev,
    originals,
    reconstructions,
    masks,
    titles: Sequence[str],
    attention_mask=None,
    y_label: str = "scaled counts",
) -> None:
    """
    Draws what masked pretraining has learnt: a few spectra, one above the other, with their hidden patches filled in.

    Masked patches are shaded, and the reconstruction is drawn there only: elsewhere the usual loss does not look, and
    the decoder's output means nothing. Emission lines are named where a spectrum has a peak, as far as names fit.

    Args:
        path (`str`): the PNG file to write.
        energy_kev (array-like of shape `(L,)`): channel energies in keV, increasing.
        originals (array-like of shape `(N, L)`): spectra as the model sees them.
        reconstructions (array-like of shape `(N, L)`): the model's output on the same scale.
        masks (array-like of shape `(N, P)`): 1 = masked, L a multiple of P.
        titles (`Sequence[str]`): a title per spectrum.
        attention_mask (array-like of shape `(N, P)`, *optional*):
            1 = measured. Other patches stay blank, and the axis ends where no spectrum was measured.
        y_label (`str`, defaults to `"scaled counts"`): name of the vertical axis.

    Raises:
        ValueError: if the shapes do not fit together or nothing was measured.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    energy_kev, originals = np.asarray(energy_kev, dtype=float), np.asarray(originals, dtype=float)
    reconstructions, masks = np.asarray(reconstructions, dtype=float), np.asarray(masks).astype(bool)
    measured = np.ones_like(masks) if attention_mask is None else np.asarray(attention_mask).astype(bool)
    num_spectra, num_channels, num_patches = len(originals), len(energy_kev), masks.shape[-1]
    fits = originals.shape == reconstructions.shape == (num_spectra, num_channels)
    fits &= masks.shape == measured.shape == (num_spectra, num_patches) and num_channels % num_patches == 0
    if not fits or len(titles) != num_spectra:
        raise ValueError(
            f"{len(titles)} titles, originals {originals.shape}, reconstructions {reconstructions.shape}, masks "
            f"{masks.shape} and attention_mask {measured.shape} must agree on spectra, {num_channels} channels and "
            "patches that divide them."
        )
    if not measured.any():
        raise ValueError("attention_mask marks no patch as measured, so there is nothing to draw.")

    patch_size = num_channels // num_patches
    masked_channels = np.repeat(masks & measured, patch_size, axis=1)  # (N, L)
    measured_channels = np.repeat(measured, patch_size, axis=1)
    originals = np.where(measured_channels, originals, np.nan)
    reconstructions = np.where(masked_channels, reconstructions, np.nan)
    in_range = np.flatnonzero(measured_channels.any(axis=0))
    edges_kev = _channel_edges(energy_kev)
    range_kev = edges_kev[in_range[0]], edges_kev[in_range[-1] + 1]

    with rc_context(STYLE):
        figure = Figure(figsize=(9, 0.9 + 2.1 * num_spectra), dpi=DPI, layout="constrained")
        panels = figure.subplots(num_spectra, 1, sharex=True, squeeze=False)[:, 0]
        for row, axes in enumerate(panels):
            for start, stop in _runs(masked_channels[row]):
                axes.axvspan(edges_kev[start], edges_kev[stop], color=SHADE, linewidth=0)
            (original,) = axes.plot(energy_kev, originals[row], color=BLACK, linewidth=0.9)
            (filled,) = axes.plot(energy_kev, reconstructions[row], color=VERMILION, linewidth=1.6)
            axes.text(0.995, 0.95, titles[row], transform=axes.transAxes, ha="right", va="top")
            axes.margins(y=0.08)
            axes.set_xlim(*range_kev)
        panels[-1].set_xlabel("energy (keV)")
        figure.supylabel(y_label, fontsize=10)
        figure.legend(
            [original, Patch(color=SHADE), filled],
            ["original", "masked patch", "reconstruction"],
            loc="outside upper left",
            ncols=3,
        )
        _name_lines(panels, energy_kev, originals, range_kev)
        _save(figure, path)


def plot_spectra(path: str, spectra, titles: Sequence[str] | None = None) -> None:
    """
    Draws measured spectra one above the other on a common energy axis, with the lines of the elements at their peaks.

    Counts are drawn on a logarithmic axis, so that weak peaks and background show. The energy axis ends where the
    counts do. Spectra without energy calibration are drawn over their channels and get no lines.

    Args:
        path (`str`): the PNG file to write.
        spectra (sequence of `dataset_builder.Spectrum`): all with an energy calibration, or all without.
        titles (`Sequence[str]`, *optional*): a title per spectrum; by default what the spectrum says of itself.

    Raises:
        ValueError: there is no spectrum, some have a calibration and others not, or titles do not fit.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    titles = [_measurement(spectrum) for spectrum in spectra] if titles is None else titles
    calibrated = {spectrum.gain_kev is not None and spectrum.offset_kev is not None for spectrum in spectra}
    if len(calibrated) != 1 or len(titles) != len(spectra):
        raise ValueError(
            f"{len(spectra)} spectra and {len(titles)} titles cannot be drawn; give at least one spectrum and a title "
            "for each, and draw spectra with an energy calibration and those without apart."
        )
    has_energy = calibrated.pop()
    positions = [spectrum.energy_kev if has_energy else np.arange(spectrum.counts.size) for spectrum in spectra]
    ends = [_range_of_counts(x, spectrum.counts) for x, spectrum in zip(positions, spectra, strict=True)]
    axis_range = min(first for first, _ in ends), max(last for _, last in ends)

    with rc_context(STYLE):
        figure = Figure(figsize=(9, 0.9 + 2.1 * len(spectra)), dpi=DPI, layout="constrained")
        panels = figure.subplots(len(spectra), 1, sharex=True, squeeze=False)[:, 0]
        for axes, x, spectrum, title in zip(panels, positions, spectra, titles, strict=True):
            lowest = spectrum.counts[spectrum.counts > 0].min()  # one count, or one count's rate
            axes.step(x, np.maximum(spectrum.counts, lowest / 2), where="mid", color=BLACK, linewidth=0.8)
            axes.set_yscale("log")
            axes.set_ylim(lowest / 2, 3 * spectrum.counts.max())
            axes.text(0.995, 0.97, title, transform=axes.transAxes, ha="right", va="top")
        panels[0].set_xlim(*axis_range)
        panels[-1].set_xlabel("energy (keV)" if has_energy else "channel (no energy calibration)")
        figure.supylabel("counts per channel", fontsize=10)
        if has_energy:
            grid_kev = np.arange(max(axis_range[0], LOWEST_LINE_KEV), axis_range[1], 0.01)
            on_grid = [np.interp(grid_kev, x, np.sqrt(s.counts)) for x, s in zip(positions, spectra, strict=True)]
            _name_lines(panels, grid_kev, np.array(on_grid), axis_range)
        _save(figure, path)


def _measurement(spectrum) -> str:
    parts = [spectrum.core, spectrum.sample, spectrum.detector and f"detector {spectrum.detector}"]
    parts += [
        spectrum.tube_kv and f"{spectrum.tube_kv:g} kV",
        spectrum.live_time_s and f"{spectrum.live_time_s:.4g} s",
    ]
    parts.append("energy_calibration" in spectrum.metadata and "energy scale guessed")
    return ", ".join(part for part in parts if part) or spectrum.source or ""


def _range_of_counts(x: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Where the counts are, all but one in 10,000 at either end, and a little margin."""
    share = np.cumsum(counts) / np.sum(counts)
    first, last = np.searchsorted(share, [1e-4, 1 - 1e-4])
    margin = 0.03 * (x[last] - x[first]) + (x[-1] - x[0]) / len(x)
    return float(x[first] - margin), float(x[last] + margin)


def _channel_edges(energy_kev: np.ndarray) -> np.ndarray:
    """Edges `(L + 1,)` halfway between channel energies `(L,)`."""
    middles = (energy_kev[1:] + energy_kev[:-1]) / 2
    return np.concatenate([[2 * energy_kev[0] - middles[0]], middles, [2 * energy_kev[-1] - middles[-1]]])


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """Start and stop (exclusive) of every unbroken run of true flags."""
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return list(zip(changes[::2], changes[1::2], strict=True))


def _name_lines(panels, energy_kev: np.ndarray, spectra: np.ndarray, range_kev: tuple[float, float]) -> None:
    """Names emission lines above the first panel, the clearest first, leaving out names for which there is no room."""
    spacing_kev = (range_kev[1] - range_kev[0]) / 62  # the height of one rotated name on a 9-inch figure
    named = []
    for line in _lines_by_clarity(energy_kev, spectra, range_kev):
        if any(abs(line[1] - line_kev) < RESOLUTION_KEV for _, line_kev in named):  # this peak has its name
            continue
        candidate = sorted([*named, line], key=lambda line: line[1])
        lines_kev = np.array([line_kev for _, line_kev in candidate])
        if np.abs(_spread(lines_kev, spacing_kev) - lines_kev).max() <= spacing_kev:
            named = candidate
    positions_kev = _spread(np.array([line_kev for _, line_kev in named]), spacing_kev)
    leader = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0, "relpos": (0.5, 0)}
    for (label, line_kev), position_kev in zip(named, positions_kev, strict=True):
        for axes in panels:
            axes.axvline(line_kev, color=GREY, linewidth=0.6, linestyle=(0, (1, 3)), zorder=1.5)
        panels[0].annotate(
            label,
            (line_kev, 1),
            xytext=(position_kev, 1.08),
            xycoords=panels[0].get_xaxis_transform(),
            textcoords=panels[0].get_xaxis_transform(),
            arrowprops=leader,
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=8.5,
        )


def _lines_by_clarity(energy_kev: np.ndarray, spectra: np.ndarray, range_kev: tuple[float, float]) -> list:
    """The lines at which some spectrum has a peak, the clearest first."""
    weights = {"Kα": 1.0, "Kβ": 0.2, "Lα": 0.4}  # where lines overlap, the K-alpha line is the likelier one
    lines = element_lines(*range_kev)
    heights = {
        label: max(_peak_height(energy_kev, spectrum, line_kev) for spectrum in spectra) for label, line_kev in lines
    }
    clarity = {}
    for label, height in heights.items():
        element, family = label.split()
        if family == "Kβ" and heights.get(f"{element} Kα", 1) < height:  # K-beta is always the weaker one
            continue
        if height > 0:
            clarity[label] = height * weights[family]
    return sorted([line for line in lines if line[0] in clarity], key=lambda line: -clarity[line[0]])


def _spread(positions: np.ndarray, spacing: float) -> np.ndarray:
    """Moves increasing positions apart, by equal shares, until neighbours are `spacing` from each other."""
    positions = positions.copy()
    for _ in range(100):
        overlap = np.maximum(spacing - np.diff(positions), 0)
        if overlap.max(initial=0) < 1e-3 * spacing:
            break
        positions[:-1] -= overlap / 2
        positions[1:] += overlap / 2
    return positions


def _peak_height(energy_kev: np.ndarray, spectrum: np.ndarray, line_kev: float) -> float:
    """Height of a peak at a line over its feet, as a share of the spectrum's range; 0 where there is no clear peak."""
    measured = ~np.isnan(spectrum)
    near = measured & (np.abs(energy_kev - line_kev) <= 0.2)  # a peak and its feet
    if near.sum() < 7:
        return 0.0
    energies, values = energy_kev[near], spectrum[near]
    values = np.convolve(np.pad(values, 2, mode="edge"), np.full(5, 0.2), mode="valid")  # a bump of noise is no peak
    tops = 1 + np.flatnonzero((values[1:-1] >= values[:-2]) & (values[1:-1] > values[2:]))
    tops = tops[np.abs(energies[tops] - line_kev) <= 0.05]  # farther tops belong to neighbouring lines
    if len(tops) == 0:
        return 0.0
    top = tops[np.argmax(values[tops])]
    height = (values[top] - max(values[:top].min(), values[top:].min())) / np.ptp(spectrum[measured])
    return float(height) if height > 0.01 else 0.0


def plot_parity(
    path: str,
    references,
    predictions,
    target_name: str,
    unit: str,
    standard_deviation=None,
    metrics=None,
    groups=None,
    intervals=None,
) -> None:
    """
    Plots predicted against laboratory values of one target, with the 1:1 line and the numbers that judge them.

    Several sets of predictions (a model and its baselines) stand side by side on the same scale. Each panel is square
    and both of its axes cover the same range, so that the 1:1 line is the diagonal.

    Args:
        path (`str`): the PNG file to write.
        references (array-like of shape `(N,)`): laboratory values, NaN where missing; those rows are left out.
        predictions (array-like of shape `(N,)`, or `dict` of name to such an array): predicted values.
        target_name (`str`): what was measured, such as `"CaCO3"`.
        unit (`str`): unit of both axes, such as `"wt%"`.
        standard_deviation (array-like of shape `(N,)`, or `dict` of name to such an array, *optional*):
            Predicted standard deviations, drawn as bars of one of them up and down. In a dict, names may be absent.
        metrics (`dict`, or `dict` of name to `dict`, *optional*):
            The numbers to print, keyed like those of `regression_metrics`, which computes them from the drawn points
            otherwise. Give them where they were measured on more than is drawn.
        groups (array-like of shape `(N,)`, *optional*): core of each spectrum, told apart by colour and marker.
        intervals (pair of array-like of shape `(N,)`, or `dict` of name to such a pair, *optional*):
            Lower and upper ends of prediction intervals, drawn as bars in the place of standard deviations.

    Raises:
        ValueError: if lengths differ or no row has a reference.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    several = isinstance(predictions, Mapping)
    predictions = predictions if several else {"": predictions}
    deviations = standard_deviation if several else {"": standard_deviation}
    intervals = (intervals if several else {"": intervals} if intervals is not None else None) or {}
    metrics = (metrics if several else {"": metrics}) or {}
    references = np.asarray(references, dtype=float)
    groups = np.full(len(references), "") if groups is None else np.asarray(groups).astype(str)
    predictions = {name: np.asarray(values, dtype=float) for name, values in predictions.items()}
    deviations = {name: np.asarray(bars, dtype=float) for name, bars in (deviations or {}).items() if bars is not None}
    for values in (*predictions.values(), *deviations.values(), groups):
        if values.shape != references.shape:
            raise ValueError(
                f"predictions, standard deviations and groups need one value per reference; there are "
                f"{len(references)} references and an array of shape {values.shape}."
            )
    labelled = ~np.isnan(references)
    if not labelled.any():
        raise ValueError(f"no spectrum has a laboratory value of {target_name}, so there is nothing to compare.")

    num_panels, named_groups = len(predictions), np.unique(groups[labelled])
    with rc_context(STYLE):
        longest = max((len(group) for group in named_groups), default=0)
        legend_width = 0 if len(named_groups) == 1 else max(1.3, 0.5 + 0.085 * longest)
        figure = Figure(figsize=(0.6 + 4 * num_panels + legend_width, 4.9), dpi=DPI, layout="compressed")
        panels = figure.subplots(1, num_panels, sharex=True, sharey=True, squeeze=False)[0]
        for axes, (name, values) in zip(panels, predictions.items(), strict=True):
            bars = deviations[name][labelled] if name in deviations else None
            if name in intervals:
                lower, upper = (np.asarray(end, dtype=float)[labelled] for end in intervals[name])
                bars = np.maximum([values[labelled] - lower, upper - values[labelled]], 0)
            if bars is not None:
                look = {"fmt": "none", "ecolor": GREY, "elinewidth": 0.8, "alpha": 0.7, "zorder": 1.5}
                axes.errorbar(references[labelled], values[labelled], yerr=bars, **look)
            for number, group in enumerate(named_groups):
                rows = labelled & (groups == group)
                axes.scatter(
                    references[rows],
                    values[rows],
                    s=34,
                    color=COLOURS[number % len(COLOURS)],
                    marker=MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
                    edgecolor="white",
                    linewidth=0.4,
                    label=group,
                    zorder=2,
                )
            numbers = metrics.get(name) or regression_metrics(values, references)
            axes.text(
                0.04,
                0.96,
                _metrics_text(numbers, unit),
                transform=axes.transAxes,
                va="top",
                linespacing=1.35,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2},
                zorder=3,
            )
            axes.set_title(name)
            axes.set_box_aspect(1)
        limits = (
            min(panels[0].get_xlim()[0], panels[0].get_ylim()[0]),
            max(panels[0].get_xlim()[1], panels[0].get_ylim()[1]),
        )
        if intervals:  # a wide one may leave the frame, lest the points crowd in a corner
            drawn = np.concatenate([references[labelled], *(values[labelled] for values in predictions.values())])
            room = 0.2 * np.ptp(drawn)
            limits = max(limits[0], drawn.min() - room), min(limits[1], drawn.max() + room)
        for axes in panels:
            axes.axline((limits[0], limits[0]), slope=1, color=GREY, linewidth=1, zorder=1)
            axes.set_xlim(limits)
            axes.set_ylim(limits)
            axes.locator_params(nbins=6)
        figure.supxlabel(f"laboratory {_with_unit(target_name, unit)}", fontsize=10)
        figure.supylabel(f"predicted {_with_unit(target_name, unit)}", fontsize=10)
        if len(named_groups) > 1:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", handletextpad=0.1)
        _save(figure, path)


def plot_profile(path: str, profiles: Sequence[Mapping], target_name: str, unit: str) -> None:
    """
    Plots a target down cores, one panel a core, depth increasing downwards as in the ground.

    Args:
        path (`str`): the PNG file to write.
        profiles (`Sequence[Mapping]`):
            For each core `core` (`str`), `depth_mm`, `values` and, where there are any, `lower` and `upper`
            (array-likes of shape `(n,)`: predictions and the ends of their intervals) and `references` `(n,)`, NaN
            where nothing was measured.
        target_name (`str`), unit (`str`): of the horizontal axes.

    Raises:
        ValueError: if there is no core.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if not profiles:
        raise ValueError(f"there is no core whose {target_name} could be drawn; give at least one.")
    deepest_mm = max(np.max(profile["depth_mm"]) for profile in profiles)
    unit_mm, unit_name = (1000, "m") if deepest_mm >= 5000 else (10, "cm") if deepest_mm >= 100 else (1, "mm")
    with rc_context(STYLE):
        figure = Figure(figsize=(max(3.4, 0.8 + 2.3 * len(profiles)), 6.2), dpi=DPI, layout="constrained")
        panels = figure.subplots(1, len(profiles), sharex=True, squeeze=False)[0]
        for axes, profile in zip(panels, profiles, strict=True):
            order = np.argsort(profile["depth_mm"], kind="stable")
            depth = np.asarray(profile["depth_mm"], dtype=float)[order] / unit_mm
            values, references = (np.asarray(profile[key], dtype=float)[order] for key in ("values", "references"))
            if "lower" in profile:
                lower, upper = (np.asarray(profile[key], dtype=float)[order] for key in ("lower", "upper"))
                axes.fill_betweenx(depth, lower, upper, color=BLUE, alpha=0.16, linewidth=0, label="interval")
            look = {"marker": "o", "markersize": 3} if len(depth) <= 60 else {}
            axes.plot(values, depth, color=BLUE, linewidth=1.3, label="predicted", **look)
            axes.scatter(
                references,
                depth,
                s=30,
                color=VERMILION,
                edgecolor="white",
                linewidth=0.5,
                zorder=3,
                label="laboratory",
            )
            axes.set_title(_ending(profile["core"], 18 if len(profiles) > 1 else 40), fontsize=9)
            axes.invert_yaxis()
            axes.locator_params(axis="x", nbins=4)
            axes.grid(axis="x", color=SHADE, linewidth=0.8)
            axes.set_axisbelow(True)
        panels[0].set_ylabel(f"depth ({unit_name})")
        figure.supxlabel(_with_unit(target_name, unit), fontsize=10)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, handletextpad=0.4)
        _save(figure, path)


def plot_samples(
    path: str, references, predictions, names: Sequence[str], target_name: str, unit: str, lower=None, upper=None
) -> None:
    """
    Plots each sample's laboratory value beside its prediction, ordered by laboratory value.

    Up to 40 samples stand below each other with their names; more stand side by side without.

    Args:
        path (`str`): the PNG file to write.
        references, predictions, lower, upper (array-like of shape `(N,)`): laboratory values (all known), predictions
            and, *optional*, the ends of their intervals.
        names (`Sequence[str]`): of the samples.
        target_name (`str`), unit (`str`): of the axis of values.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    references, predictions = np.asarray(references, dtype=float), np.asarray(predictions, dtype=float)
    order, place = np.argsort(references, kind="stable"), np.arange(len(references))
    few = len(references) <= 40
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 1.1 + 0.21 * len(references)) if few else (9, 4.2), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        if lower is not None:
            ends = np.asarray(lower, dtype=float)[order], np.asarray(upper, dtype=float)[order]
            (axes.hlines if few else axes.vlines)(place, *ends, color=BLUE, alpha=0.3, linewidth=3.5, label="interval")
        for values, colour, label in ((predictions, BLUE, "predicted"), (references, VERMILION, "laboratory")):
            points = (values[order], place) if few else (place, values[order])
            axes.scatter(*points, s=30 if few else 14, color=colour, edgecolor="white", linewidth=0.5, label=label)
        if few:
            axes.set_yticks(place, [names[row] for row in order])
            axes.set_xlabel(_with_unit(target_name, unit))
            axes.grid(axis="x", color=SHADE, linewidth=0.8)
            axes.set_ylim(-0.7, len(place) - 0.3)
        else:
            axes.set_xlabel(f"{len(place)} samples by laboratory value")
            axes.set_ylabel(_with_unit(target_name, unit))
            axes.grid(axis="y", color=SHADE, linewidth=0.8)
            axes.set_xlim(-1, len(place))
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper left", ncols=3, handletextpad=0.4)
        _save(figure, path)


def plot_residuals(path: str, references, predictions, target_name: str, unit: str, groups=None) -> None:
    """
    Plots prediction minus laboratory value over the prediction, with a band of one RMSE, and their histogram.

    Args:
        path (`str`): the PNG file to write.
        references, predictions (array-like of shape `(N,)`): laboratory values, NaN where missing, and predictions.
        target_name (`str`), unit (`str`): of both axes.
        groups (array-like of shape `(N,)`, *optional*): core of each spectrum, told apart as in `plot_parity`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    references, predictions = np.asarray(references, dtype=float), np.asarray(predictions, dtype=float)
    labelled = ~np.isnan(references)
    groups = np.full(len(references), "") if groups is None else np.asarray(groups).astype(str)
    residuals = predictions - references
    rmse = float(np.sqrt(np.mean(residuals[labelled] ** 2)))
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 3.6), dpi=DPI, layout="constrained")
        axes, histogram = figure.subplots(1, 2, sharey=True, width_ratios=[4, 1])
        axes.axhspan(-rmse, rmse, color=SHADE, linewidth=0)
        for number, group in enumerate(np.unique(groups[labelled])):
            rows = labelled & (groups == group)
            marker = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
            look = {"color": COLOURS[number % len(COLOURS)], "marker": marker, "edgecolor": "white", "linewidth": 0.4}
            axes.scatter(predictions[rows], residuals[rows], s=30, label=group, **look)
        largest = 1.15 * max(np.abs(residuals[labelled]).max(), 1.2 * rmse)
        axes.set_ylim(-largest, largest)
        axes.set_xlabel(f"predicted {_with_unit(target_name, unit)}")
        axes.set_ylabel(f"predicted \N{MINUS SIGN} laboratory{f' ({unit})' if unit else ''}")
        bins = np.linspace(-largest, largest, int(np.clip(np.sqrt(labelled.sum()) * 2, 8, 40)) + 1)
        histogram.hist(residuals[labelled], bins, orientation="horizontal", color=BLUE, alpha=0.6)
        histogram.set_xlabel("spectra")
        histogram.locator_params(axis="x", nbins=3, integer=True)
        for panel in (axes, histogram):
            panel.axhline(0, color=GREY, linewidth=1)
        _save(figure, path)


def _ending(name: str, most: int) -> str:
    """A name, of which the end tells more than the beginning, in at most so many characters."""
    return name if len(name) <= most else f"\N{HORIZONTAL ELLIPSIS}{name[1 - most :]}"


def _with_unit(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _metrics_text(metrics: Mapping[str, float], unit: str) -> str:
    rmse = metrics["rmse"]
    decimals = max(0, 2 - math.floor(math.log10(rmse))) if 0 < rmse < math.inf else 3  # three digits of the RMSE
    bias = f"{metrics['bias']:+.{decimals}f}".replace("-", "\N{MINUS SIGN}")
    return f"n = {metrics['n']}\nR² = {metrics['r2']:.3f}\nRMSE = {rmse:.{decimals}f} {unit}\nbias = {bias} {unit}"


def plot_training_curves(path: str, history: Sequence[Mapping[str, float]]) -> None:
    """
    Plots loss, and learning rate where it was recorded, over optimiser steps.

    Args:
        path (`str`): the PNG file to write.
        history (`Sequence[Mapping[str, float]]`):
            One record per logging event with `step` and any of `loss`, `validation_loss` (or `eval_loss`, as `Trainer`
            calls it) and `learning_rate`. Records need not hold all of them.

    Raises:
        ValueError: if no record holds a loss.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    curves = {
        "training": _curve(history, "loss"),
        "validation": _curve(history, "validation_loss", "eval_loss"),
    }
    curves = {name: curve for name, curve in curves.items() if len(curve)}
    rate = _curve(history, "learning_rate")
    if not curves:
        raise ValueError(f"none of the {len(history)} history records holds a loss, so there is nothing to draw.")

    with rc_context(STYLE):
        figure = Figure(figsize=(7, 4.8 if len(rate) else 3.8), dpi=DPI, layout="constrained")
        ratios = [3, 1] if len(rate) else [1]
        panels = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        looks = {
            "training": {"color": BLUE, "linewidth": 1.4},
            "validation": {"color": VERMILION, "linewidth": 1.4, "marker": "o", "markersize": 4.5},
        }
        for name, curve in curves.items():
            panels[0].plot(curve[:, 0], curve[:, 1], label=name, **looks[name])
        losses = np.concatenate([curve[:, 1] for curve in curves.values()])
        losses = losses[np.isfinite(losses)]
        if len(losses) and losses.min() > 0 and losses.max() > 5 * losses.min():
            panels[0].set_yscale("log")
            panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panels[0].yaxis.set_major_formatter("{x:g}")
            panels[0].yaxis.set_minor_formatter(NullFormatter())
        panels[0].set_ylabel("loss")
        panels[0].legend()
        if len(rate):
            panels[1].plot(rate[:, 0], rate[:, 1], color=GREY, linewidth=1.4)
            panels[1].set_ylabel("learning rate")
            panels[1].set_ylim(bottom=0)
            panels[1].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        panels[-1].set_xlabel("step")
        figure.align_ylabels(panels)
        _save(figure, path)


def _curve(history: Sequence[Mapping[str, float]], *names: str) -> np.ndarray:
    """Steps and values `(n, 2)` of the records that hold a value under one of the names."""
    points = [(record["step"], record[name]) for record in history for name in names if name in record]
    return np.array(sorted(points), dtype=float).reshape(-1, 2)


def plot_attribution(
    path: str,
    energy_kev,
    mean_counts,
    attribution,
    lines: Sequence,
    target_name: str,
    title: str = "",
    num_lines: int = 10,
) -> None:
    """
    Draws which energies drive a prediction: the mean spectrum above, the attribution of its channels below.

    The lines with the largest shares are named, escape and sum peaks in colours and dashes of their own.

    Args:
        path (`str`): the PNG file to write.
        energy_kev (array-like of shape `(L,)`): energies of the measured channels in keV, increasing.
        mean_counts (array-like of shape `(L,)`): mean counts per channel, drawn on a logarithmic axis.
        attribution (array-like of shape `(L,)`): signed attributions, in standard deviations of the target.
        lines (sequence of `attribution_xrf.LineAttribution`): by decreasing share.
        target_name (`str`): what is predicted, such as `"CaCO3"`.
        title (`str`, *optional*): stands in the upper panel.
        num_lines (`int`, defaults to 10): how many lines are named.

    Raises:
        ValueError: lengths differ or there are no counts.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    energy_kev, mean_counts = np.asarray(energy_kev, dtype=float), np.asarray(mean_counts, dtype=float)
    attribution = np.asarray(attribution, dtype=float)
    if not energy_kev.shape == mean_counts.shape == attribution.shape or not (mean_counts > 0).any():
        raise ValueError(
            f"energies {energy_kev.shape}, counts {mean_counts.shape} and attributions {attribution.shape} must have "
            "one value per channel, and some channel must have counts."
        )
    named = sorted([line for line in lines if line.kind != "other"][:num_lines], key=lambda line: line.energy_kev)
    first, last = _range_of_counts(energy_kev, mean_counts)
    range_kev = (
        max(energy_kev[0], min([first, *(line.energy_kev - 0.3 for line in named)])),
        min(energy_kev[-1], max([last, *(line.energy_kev + 0.3 for line in named)])),
    )
    looks = {"line": (BLACK, (0, (1, 3))), "escape": (ORANGE, (0, (4, 2))), "sum": (PURPLE, (0, (4, 2, 1, 2)))}
    positions_kev = _spread(np.array([line.energy_kev for line in named]), (range_kev[1] - range_kev[0]) / 50)

    with rc_context(STYLE):
        figure = Figure(figsize=(9, 5.6), dpi=DPI, layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        lowest = mean_counts[mean_counts > 0].min()
        upper.step(energy_kev, np.maximum(mean_counts, lowest / 2), where="mid", color=BLACK, linewidth=0.8)
        upper.set_yscale("log")
        upper.set_ylim(max(lowest / 2, 1e-5 * mean_counts.max()), 3 * mean_counts.max())
        upper.set_ylabel("mean counts per channel")
        upper.text(0.995, 0.97, title, transform=upper.transAxes, ha="right", va="top")
        for sign, colour, effect in ((1, BLUE, "raises"), (-1, VERMILION, "lowers")):
            part = np.where(sign * attribution > 0, attribution, 0.0)
            look = {"step": "mid", "color": colour, "linewidth": 0.4, "label": f"{effect} the prediction"}
            lower.fill_between(energy_kev, part, **look)
        lower.axhline(0, color=GREY, linewidth=0.6)
        lower.margins(y=0.08)
        lower.set_xlim(*range_kev)
        lower.set_xlabel("energy (keV)")
        lower.set_ylabel(f"attribution of {target_name}\n(target's sd per channel)")
        handles, _ = lower.get_legend_handles_labels()
        for kind, name in (("escape", "escape peak"), ("sum", "sum peak")):
            if any(line.kind == kind for line in named):
                colour, dashes = looks[kind]
                handles.append(Line2D([], [], color=colour, linestyle=dashes, linewidth=0.9, label=name))
        lower.legend(handles=handles, loc="best")
        for line, position_kev in zip(named, positions_kev, strict=True):
            colour, dashes = looks[line.kind]
            for axes in (upper, lower):
                axes.axvline(line.energy_kev, color=colour, linewidth=0.7, linestyle=dashes, zorder=1.5)
            upper.annotate(
                line.label,
                (line.energy_kev, 1),
                xytext=(position_kev, 1.08),
                xycoords=upper.get_xaxis_transform(),
                textcoords=upper.get_xaxis_transform(),
                arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0,
                            "relpos": (0.5, 0)},
                rotation=90,
                ha="center",
                va="bottom",
                fontsize=8.5,
                color=colour,
            )  # fmt: skip
        figure.align_ylabels()
        _save(figure, path)


MAX_GROUPS = 12  # what a legend can hold and eyes can tell apart


def plot_embeddings(
    path: str,
    points,
    axis_names: tuple[str, str],
    values=None,
    value_name: str = "",
    title: str = "",
) -> None:
    """
    Draws a map of embeddings: a point per spectrum, similar spectra close together, coloured by what is known of them.

    Numbers get a colour scale and a colour bar, whose ends leave out the most extreme 1 % on either side if these lie
    far off. Texts get a colour and marker each, the most frequent ones first; what does not fit a legend is "other".

    Args:
        path (`str`): the PNG file to write.
        points (array-like of shape `(N, 2)`): positions on the map.
        axis_names (`tuple[str, str]`): names of the two axes, such as `"PC 1 (62 % of the variance)"`.
        values (array-like of shape `(N,)`, *optional*): numbers (NaN: not known) or texts (`""`: not known).
        value_name (`str`, *optional*): what the values are, such as `"CaCO3 (wt%)"`.
        title (`str`, *optional*): stands above the map.

    Raises:
        ValueError: the shapes do not fit together, or no value is known.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    points = np.asarray(points, dtype=float)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"points must have shape (spectra, 2), but have {points.shape}.")
    values = np.full(len(points), "") if values is None else np.asarray(values)
    is_number = values.dtype.kind in "iufb"
    values = values.astype(float) if is_number else values.astype(str)
    if values.shape != (len(points),):
        raise ValueError(f"values must have one entry per point ({len(points)}), but have shape {values.shape}.")
    known = np.isfinite(values) if is_number else values != ""
    if value_name and not known.any():
        raise ValueError(f"no spectrum has a value of {value_name}, so there is nothing to colour the map by.")
    look = {"s": float(np.clip(12000 / len(points), 5, 34)), "linewidth": 0.3 if len(points) < 2000 else 0}

    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 5.4), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        if value_name and not known.all():
            axes.scatter(*points[~known].T, color="#cccccc", edgecolor="white", label="not known", **look)
        if is_number:
            lower, upper, extend = _colour_limits(values[known])
            order = np.flatnonzero(known)[np.random.default_rng(0).permutation(known.sum())]  # no value hides another
            drawn = axes.scatter(
                *points[order].T, c=values[order], cmap="viridis", vmin=lower, vmax=upper, edgecolor="white", **look
            )
            bar = figure.colorbar(drawn, ax=axes, label=value_name, extend=extend, aspect=30, pad=0.02)
            bar.outline.set_visible(False)
        elif value_name:
            names, counts = np.unique(values[known], return_counts=True)
            names = names[np.argsort(-counts, kind="stable")]
            shown = names if len(names) <= MAX_GROUPS else names[: MAX_GROUPS - 1]
            others = known & ~np.isin(values, shown)
            if others.any():
                label = f"other ({len(names) - len(shown)})"
                axes.scatter(*points[others].T, color=GREY, edgecolor="white", label=label, **look)
            for number, name in enumerate(shown):
                axes.scatter(
                    *points[values == name].T,
                    color=COLOURS[number % len(COLOURS)],
                    marker=MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
                    edgecolor="white",
                    label=name
                    if len(name) <= 28
                    else f"\N{HORIZONTAL ELLIPSIS}{name[-27:]}",  # paths differ at the end
                    **look,
                )
        else:
            axes.scatter(*points.T, color=BLUE, edgecolor="white", **look)
        handles, labels = axes.get_legend_handles_labels()
        if handles and is_number:
            axes.legend(loc="best", handletextpad=0.1)
        elif handles:
            order = sorted(
                range(len(labels)), key=lambda i: (labels[i] == "not known", labels[i].startswith("other ("))
            )
            legend = {"loc": "outside right upper", "title": value_name, "alignment": "left", "handletextpad": 0.1}
            box = figure.legend([handles[i] for i in order], [labels[i] for i in order], **legend)
            for handle in box.legend_handles:
                handle.set_sizes([34])
        axes.set_xlabel(axis_names[0])
        axes.set_ylabel(axis_names[1])
        axes.tick_params(length=0, labelbottom=False, labelleft=False)  # the scale of an embedding says nothing
        axes.margins(0.05)
        axes.set_title(title, loc="left")
        _save(figure, path)


def _colour_limits(values: np.ndarray) -> tuple[float, float, str]:
    """Ends of a colour scale, and which of them values exceed, in matplotlib's words."""
    lower, upper = float(values.min()), float(values.max())
    inner_lower, inner_upper = np.percentile(values, [1, 99])
    margin = 0.25 * (inner_upper - inner_lower)
    beyond = (lower < inner_lower - margin, upper > inner_upper + margin)
    lower, upper = inner_lower if beyond[0] else lower, inner_upper if beyond[1] else upper
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[beyond]
    return float(lower), float(upper), extend


def plot_map(path: str, values, name: str, x_mm=None, y_mm=None, first_row_on_top: bool = False) -> None:
    """
    Draws a map of one quantity over a sample; pixels without a value stay grey.

    Args:
        path (`str`): the PNG file to write.
        values (array-like of shape `(rows, columns)`): NaN where nothing was measured.
        name (`str`): what is mapped, such as `"TiO2 (wt%)"`.
        x_mm (array-like of shape `(columns,)`, *optional*): evenly spaced positions of the columns, in mm.
        y_mm (array-like of shape `(rows,)`, *optional*): those of the rows. Without positions the axes count pixels.
        first_row_on_top (`bool`, defaults to `False`): y grows downwards, as in an image.

    Raises:
        ValueError: the shapes do not fit together, or no pixel has a value.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or not np.isfinite(values).any():
        raise ValueError(f"a map must have rows, columns and a finite value, but {name} has shape {values.shape}.")
    in_mm = x_mm is not None and y_mm is not None
    x, y = (np.asarray(p, dtype=float) if in_mm else np.arange(n) for p, n in zip((x_mm, y_mm), values.shape[::-1]))
    if values.shape != (len(y), len(x)):
        raise ValueError(f"{len(x)} columns and {len(y)} rows must fit the map's shape {values.shape}.")
    step_x, step_y = _pixel_size(x, y)
    extent = [x[0] - step_x / 2, x[-1] + step_x / 2, y[0] - step_y / 2, y[-1] + step_y / 2]
    shape = np.clip(abs((extent[3] - extent[2]) / (extent[1] - extent[0])), 0.15, 4)
    width = min(6.0, 6.5 / shape)
    lower, upper, extend = _colour_limits(values[np.isfinite(values)])

    with rc_context(STYLE):
        figure = Figure(figsize=(width + 1.9, max(width * shape + 0.8, 2.2)), dpi=DPI, layout="compressed")
        axes = figure.subplots()
        axes.set_facecolor("#dddddd")
        image = axes.imshow(
            values,
            origin="lower",
            extent=extent,
            cmap="viridis",
            vmin=lower,
            vmax=upper,
            interpolation="nearest",
            aspect="equal" if 0.15 < shape < 4 else "auto",
        )
        if first_row_on_top:
            axes.invert_yaxis()
        axes.set_xlabel("x (mm)" if in_mm else "column")
        axes.set_ylabel("y (mm)" if in_mm else "row")
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.locator_params(nbins=6)
        bar = figure.colorbar(image, ax=axes, label=name, extend=extend, aspect=25, pad=0.03)
        bar.outline.set_visible(False)
        _save(figure, path)


def _pixel_size(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Width and height of a pixel; a single row or column takes the size of the other direction."""
    sizes = [(p[-1] - p[0]) / (len(p) - 1) if len(p) > 1 else 0 for p in (x, y)]
    fallback = next((size for size in sizes if size), 1)
    return sizes[0] or fallback, sizes[1] or fallback


def _save(figure, path: str) -> None:
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
