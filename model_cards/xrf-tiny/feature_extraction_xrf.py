"""From counts with an energy calibration to the inputs of the XRF models: rebin, mark what was measured, scale."""

import numpy as np
from transformers import BatchFeature
from transformers.feature_extraction_utils import FeatureExtractionMixin

SCALINGS = ("standardize", "sqrt", "log", "channel")
ROWS_AT_ONCE = 16  # spectra that are worked on together: few enough to stay in the processor's cache


class XRFFeatureExtractor(FeatureExtractionMixin):
    r"""
    Puts spectra of any instrument onto the model's energy grid and scales them. Channel `i` of a spectrum is centred
    at `offset_kev + gain_kev * i`; channel `j` of the grid at `first_channel_kev + channel_width_kev * j`.

    Rebinning conserves counts: a native channel's counts spread evenly over its width, and counts outside the grid
    are reported, not moved. A patch counts as measured where the instrument's range covers it (a missing edge of up
    to one grid channel is forgiven) and, with `limit_to_tube_kv`, where it begins below the tube voltage, above
    which nothing is excited. With `lowest_energy_kev` it must begin there or higher: below lie the noise peak around
    0 keV and what air and windows swallow, which differ from instrument to instrument. Unmeasured patches are set to
    zero and take no part in the scaling. A patch begins at the lower edge of its first channel, half a channel below
    its centre.

    Scalings, with x the counts on the grid and means over the measured channels of one spectrum:

    - `standardize`: (x - mean) / sd, with the unbiased sd, as in MAX (arXiv 2410.12330);
    - `sqrt`: sqrt(x / mean), the variance-stabilising transform of counting noise (Bartlett 1936), whatever the
      counting time;
    - `log`: ln(1 + x);
    - `channel`: (x / mean - channel_mean) / channel_std, with the corpus' mean and standard deviation per channel.

    Args:
        spectrum_length (`int`, defaults to 2048): number of channels of the grid.
        patch_size (`int`, defaults to 16): channels in one patch of the model.
        channel_width_kev (`float`, defaults to 0.02): width of a grid channel in keV.
        first_channel_kev (`float`, defaults to 0.0): energy of the centre of the first grid channel in keV.
        scaling (`str`, defaults to `"sqrt"`): one of the scalings above.
        limit_to_tube_kv (`bool`, defaults to `True`): count patches above the tube voltage as unmeasured.
        lowest_energy_kev (`float`, defaults to 0.0): count patches that begin below this energy in keV as unmeasured;
            0 sets no limit.
        channel_mean, channel_std (`list[float]`, *optional*): `spectrum_length` values each, for `channel` only.
    """

    model_input_names = ["input_values", "attention_mask"]

    def __init__(
        self,
        spectrum_length: int = 2048,
        patch_size: int = 16,
        channel_width_kev: float = 0.02,
        first_channel_kev: float = 0.0,
        scaling: str = "sqrt",
        limit_to_tube_kv: bool = True,
        channel_mean: list[float] | None = None,
        channel_std: list[float] | None = None,
        lowest_energy_kev: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if scaling not in SCALINGS:
            raise ValueError(
                f"scaling must be one of {', '.join(SCALINGS)}, but is {scaling!r}; 'sqrt' is the default."
            )
        if spectrum_length % patch_size:
            raise ValueError(f"spectrum_length ({spectrum_length}) must be a multiple of patch_size ({patch_size}).")
        if scaling == "channel":
            for name, values in (("channel_mean", channel_mean), ("channel_std", channel_std)):
                if values is None or len(values) != spectrum_length:
                    raise ValueError(
                        f"scaling 'channel' needs {name} with {spectrum_length} values, one per channel, but got "
                        f"{0 if values is None else len(values)}; compute them over the training corpus."
                    )
            for channel in np.flatnonzero(~(np.asarray(channel_std, dtype=np.float64) > 0)):
                raise ValueError(
                    f"channel_std must be positive, but is {channel_std[channel]} in channel {channel}; give 1 where "
                    "the corpus never varies."
                )
        self.spectrum_length = spectrum_length
        self.patch_size = patch_size
        self.channel_width_kev = channel_width_kev
        self.first_channel_kev = first_channel_kev
        self.scaling = scaling
        self.limit_to_tube_kv = limit_to_tube_kv
        self.channel_mean = channel_mean
        self.channel_std = channel_std
        self.lowest_energy_kev = lowest_energy_kev
        last_patch_kev = self.channel_edges_kev[-1 - patch_size]
        if not (lowest_energy_kev == 0 or 0 < lowest_energy_kev <= last_patch_kev):
            raise ValueError(
                f"lowest_energy_kev must lie between 0, no limit, and {last_patch_kev:.4g} keV, where the grid's last "
                f"patch begins, but is {lowest_energy_kev}; 0.6 is usual."
            )

    @classmethod
    def for_config(cls, config, **kwargs) -> "XRFFeatureExtractor":
        """The extractor whose grid is that of a model configuration; `kwargs` give the scaling."""
        return cls(
            spectrum_length=config.spectrum_length,
            patch_size=config.patch_size,
            channel_width_kev=config.channel_width_kev,
            first_channel_kev=config.first_channel_kev,
            **kwargs,
        )

    @property
    def channel_edges_kev(self) -> np.ndarray:
        """Edges of the grid's channels in keV, shape `(spectrum_length + 1,)`."""
        return self.first_channel_kev + self.channel_width_kev * (np.arange(self.spectrum_length + 1) - 0.5)

    @property
    def energy_kev(self) -> np.ndarray:
        """Centres of the grid's channels in keV, shape `(spectrum_length,)`."""
        return self.first_channel_kev + self.channel_width_kev * np.arange(self.spectrum_length)

    def __call__(
        self,
        counts,
        gain_kev=None,
        offset_kev=None,
        tube_kv=None,
        return_tensors=None,
        return_statistics=False,
        names=None,
    ) -> BatchFeature:
        """
        Args:
            counts: one spectrum `(channels,)`, a batch `(batch_size, channels)`, a list of spectra of different
                lengths, or one or several `Spectrum` objects, which bring their own calibration and tube voltage.
            gain_kev, offset_kev (`float` or `(batch_size,)`): energy per channel and energy of channel 0, in keV.
            tube_kv (`float` or `(batch_size,)`, *optional*): tube voltage in kV; `None` or NaN where unknown.
            return_tensors (`str`, *optional*): `"pt"` for torch tensors; numpy arrays otherwise.
            return_statistics (`bool`, defaults to `False`): also return `center` and `scale` `(batch_size,)`, which
                [`~XRFFeatureExtractor.inverse`] needs, and `outside_counts` `(batch_size,)`, the counts that fell
                outside the grid.
            names (sequence of `str`, *optional*): what messages call the spectra; by default their place, from 0.

        Returns:
            `BatchFeature` with `input_values` `(batch_size, spectrum_length)` float32 and `attention_mask`
            `(batch_size, num_patches)` int64, 1 = measured.

        Raises:
            `ValueError`: no or impossible calibration; NaN, infinite, negative or no counts; no overlap with the grid.
        """
        spectra, gain_kev, offset_kev, tube_kv, names = _as_batch(counts, gain_kev, offset_kev, tube_kv, names)
        values = np.zeros((len(spectra), self.spectrum_length), dtype=np.float32)
        attention_mask = np.zeros((len(spectra), self.spectrum_length // self.patch_size), dtype=np.int64)
        statistics = {name: np.zeros(len(spectra)) for name in ("center", "scale", "outside_counts")}
        edges_kev, channel_statistics = self.channel_edges_kev, None
        if self.scaling == "channel":
            channel_statistics = np.array([self.channel_mean, self.channel_std], dtype=np.float64)
        for rows, (length, gain, offset, tube) in _alike(spectra, gain_kev, offset_kev, tube_kv):
            measured = self._measured_patches(edges_kev, length, gain, offset, tube, names[rows[0]])
            attention_mask[rows] = measured
            # measured patches follow each other: an instrument's range has no gap, and the limits cut its ends
            first, last = self.patch_size * (np.flatnonzero(measured)[[0, -1]] + [0, 1])
            rebinning = _Rebinning(edges_kev[first : last + 1], length, gain, offset)
            for start in range(0, len(rows), ROWS_AT_ONCE):
                chunk = rows[start : start + ROWS_AT_ONCE]
                counts = _stacked(spectra, chunk, names)
                on_grid = rebinning(counts)
                total = on_grid.sum(axis=1)
                for index in np.flatnonzero(total == 0):
                    raise ValueError(
                        f"Spectrum {names[chunk[index]]} has no counts in the measured range; leave it out."
                    )
                scaled, center, scale = self._scale(on_grid, total, first, last, channel_statistics)
                values[chunk, first:last] = scaled
                if return_statistics:
                    statistics["center"][chunk], statistics["scale"][chunk] = center, scale
                    inside = _Rebinning(edges_kev[[0, -1]], length, gain, offset)(counts)[:, 0]
                    statistics["outside_counts"][chunk] = counts.sum(axis=1) - inside
        data = {"input_values": values, "attention_mask": attention_mask}
        if return_statistics:
            data.update(statistics)
        return BatchFeature(data, tensor_type=return_tensors)

    def rebin(self, spectra, gain_kev, offset_kev) -> tuple[np.ndarray, np.ndarray]:
        """Spectra on the model's grid, counts conserved.

        Args:
            spectra (`(batch_size, channels)` array or sequence of `(channels,)` arrays): counts; lengths may differ.
            gain_kev, offset_kev (`(batch_size,)`): the calibration of each, in keV.

        Returns:
            counts on the grid `(batch_size, spectrum_length)` and counts outside it `(batch_size,)`, float64.
        """
        spectra, gain_kev, offset_kev, tube_kv, names = _as_batch(spectra, gain_kev, offset_kev, None, None)
        edges_kev = self.channel_edges_kev
        on_grid = np.empty((len(spectra), self.spectrum_length))
        outside = np.empty(len(spectra))
        for rows, (length, gain, offset, _) in _alike(spectra, gain_kev, offset_kev, tube_kv):
            rebinning = _Rebinning(edges_kev, length, gain, offset)
            for start in range(0, len(rows), ROWS_AT_ONCE):
                chunk = rows[start : start + ROWS_AT_ONCE]
                counts = _stacked(spectra, chunk, names)
                on_grid[chunk] = rebinning(counts)
                outside[chunk] = counts.sum(axis=1) - on_grid[chunk].sum(axis=1)
        return on_grid, outside

    def inverse(self, input_values, center, scale) -> np.ndarray:
        """Scaled values `(batch_size, spectrum_length)` back to counts on the grid, given the statistics of the call
        that scaled them (`return_statistics=True`), each `(batch_size,)`. Unmeasured channels come back meaningless
        where the scaling has an offset."""
        values = np.asarray(input_values, dtype=np.float64)
        center, scale = np.asarray(center).reshape(-1, 1), np.asarray(scale).reshape(-1, 1)
        if self.scaling == "standardize":
            return values * scale + center
        if self.scaling == "sqrt":
            return np.square(values) * scale
        if self.scaling == "log":
            return np.expm1(values)
        return (values * self.channel_std + self.channel_mean) * scale

    def _measured_patches(self, edges_kev, length, gain_kev, offset_kev, tube_kv, name) -> np.ndarray:
        """Which patches `(num_patches,)` spectra of one instrument measured, given the grid's channel edges."""
        edges = edges_kev[:: self.patch_size]
        lower, upper = offset_kev - 0.5 * gain_kev, offset_kev + (length - 0.5) * gain_kev
        tolerance = self.channel_width_kev * (1 + 1e-9)
        measured = (edges[:-1] >= lower - tolerance) & (edges[1:] <= upper + tolerance)
        if self.limit_to_tube_kv:
            measured &= edges[:-1] < tube_kv
        if self.lowest_energy_kev > 0:
            measured &= edges[:-1] >= self.lowest_energy_kev - 1e-9 * self.channel_width_kev
        if not measured.any():
            at_tube = f" at {tube_kv:g} kV" if tube_kv < np.inf else ""
            lowest_kev = max(edges[0], self.lowest_energy_kev or edges[0])
            raise ValueError(
                f"Spectrum {name} covers {lower:.2f} to {upper:.2f} keV{at_tube} and so no whole patch of the model's "
                f"grid, {lowest_kev:.2f} to {edges[-1]:.2f} keV; check its calibration and tube voltage."
            )
        return measured

    def _scale(self, on_grid, total, first, last, channel_statistics):
        """Scaled values, centers and scales of the measured channels, `first` to `last`, of spectra of one instrument.
        Overwrites `on_grid`."""
        mean = total / (last - first)
        center, scale = np.zeros_like(mean), mean
        if self.scaling == "standardize":
            values = np.subtract(on_grid, mean[:, None], out=on_grid)
            sd = np.sqrt(np.square(values).sum(axis=1) / max(last - first - 1, 1))
            center, scale = mean, np.where(sd > 0, sd, 1.0)  # a flat spectrum becomes zeros
            values /= scale[:, None]
        elif self.scaling == "sqrt":
            values = np.divide(on_grid, mean[:, None], out=on_grid)
            np.sqrt(values, out=values)
        elif self.scaling == "log":
            scale = np.ones_like(mean)
            values = np.log1p(on_grid, out=on_grid)
        else:
            channel_mean, channel_std = channel_statistics[:, first:last]
            values = np.divide(on_grid, mean[:, None], out=on_grid)
            values -= channel_mean
            values /= channel_std
        return values, center, scale


class _Rebinning:
    """From the native channels of one calibration to channels with the given edges; called with counts
    `(rows, length)`, float64, it returns a new array `(rows, len(edges_kev) - 1)`."""

    def __init__(self, edges_kev, length, gain_kev, offset_kev):
        # the grid's edges in native channels: an edge at x has int(x) whole channels below it and a part of one
        edges = np.clip((edges_kev - offset_kev) / gain_kev + 0.5, 0, length)
        # a grid equal to the native one must copy the counts exactly, whatever the rounding of the division
        nearest = np.round(edges)
        edges = np.where(np.abs(edges - nearest) < 1e-6, nearest, edges)
        self.whole = np.minimum(edges.astype(np.int64), length - 1)
        self.part = edges - self.whole
        # where every channel of the grid is one native channel, or lies outside the instrument's range
        self.first_native, self.last_native = int(edges[0]), int(edges[-1])
        steps = np.diff(edges)
        self.copied = np.flatnonzero(steps)
        self.copies = (edges == nearest).all() and len(self.copied) > 0 and (steps[self.copied] == 1).all()

    def __call__(self, counts):
        if self.copies:
            on_grid = np.zeros((len(counts), len(self.whole) - 1))
            on_grid[:, self.copied[0] : self.copied[-1] + 1] = counts[:, self.first_native : self.last_native]
            return on_grid
        below = np.zeros((len(counts), counts.shape[1] + 1))
        np.cumsum(counts, axis=1, out=below[:, 1:])
        at_edges = np.take(counts, self.whole, axis=1)
        at_edges *= self.part
        at_edges += np.take(below, self.whole, axis=1)
        return np.maximum(np.diff(at_edges, axis=1), 0)


def _as_batch(counts, gain_kev, offset_kev, tube_kv, names):
    """Of equal length: spectra, one `(batch_size, channels)` array or a list of `(channels,)` arrays, their gains,
    offsets, tube voltages (infinite where unknown) and names."""
    if hasattr(counts, "gain_kev"):  # one Spectrum object
        counts = [counts]
    if len(counts) and hasattr(counts[0], "gain_kev"):
        gain_kev = [spectrum.gain_kev for spectrum in counts]
        offset_kev = [spectrum.offset_kev for spectrum in counts]
        tube_kv = [spectrum.tube_kv for spectrum in counts]
        counts = [spectrum.counts for spectrum in counts]
    if len(counts) == 0:
        raise ValueError("There is no spectrum to extract features from; give at least one.")
    if np.ndim(counts[0]) == 0:
        counts = [counts]
    spectra = np.asarray(counts) if hasattr(counts, "ndim") else [np.asarray(spectrum) for spectrum in counts]
    names = range(len(spectra)) if names is None else names
    for name, spectrum in zip(names, spectra, strict=True):
        if spectrum.ndim != 1 or len(spectrum) == 0:
            raise ValueError(
                f"Spectrum {name} must be a row of counts, but has shape {spectrum.shape}; give (channels,) or "
                "(batch_size, channels)."
            )
    gain_kev = _per_spectrum(gain_kev, len(spectra), "gain_kev")
    offset_kev = _per_spectrum(offset_kev, len(spectra), "offset_kev")
    tube_kv = _per_spectrum(np.nan if tube_kv is None else tube_kv, len(spectra), "tube_kv")
    tube_kv = np.where(np.isnan(tube_kv), np.inf, tube_kv)  # an unknown voltage limits nothing
    for index in np.flatnonzero(~(np.isfinite(gain_kev) & np.isfinite(offset_kev))):
        raise ValueError(
            f"Spectrum {names[index]} has no energy calibration; supply gain_kev (keV per channel) and offset_kev "
            "(energy of channel 0 in keV) from the instrument's settings, or look at what "
            "dataset_builder.guess_calibration(spectrum) proposes."
        )
    for index in np.flatnonzero(gain_kev <= 0):
        raise ValueError(
            f"gain_kev must be positive, but spectrum {names[index]} has {gain_kev[index]:g}; check its calibration."
        )
    for index in np.flatnonzero(tube_kv <= 0):
        raise ValueError(
            f"tube_kv must be positive, but spectrum {names[index]} has {tube_kv[index]:g}; give None where it is "
            "unknown."
        )
    return spectra, gain_kev, offset_kev, tube_kv, names


def _alike(spectra, gain_kev, offset_kev, tube_kv):
    """Spectra of one length, calibration and tube voltage together: pairs of their rows and these four numbers."""
    groups = {}
    lengths = map(len, spectra)
    for row, key in enumerate(zip(lengths, gain_kev.tolist(), offset_kev.tolist(), tube_kv.tolist(), strict=True)):
        groups.setdefault(key, []).append(row)
    return ((np.array(rows), key) for key, rows in groups.items())


def _stacked(spectra, rows, names) -> np.ndarray:
    """The counts of some spectra of one length, `(rows, channels)` float64, once they are known to be counts."""
    if isinstance(spectra, np.ndarray):
        counts = spectra[rows].astype(np.float64)
    else:
        counts = np.stack([spectra[row] for row in rows]).astype(np.float64)
    if not (counts.min() >= 0 and counts.max() < np.inf):  # the minimum of anything with NaN is NaN
        index, channel = np.argwhere(~(np.isfinite(counts) & (counts >= 0)))[0]
        raise ValueError(
            f"Counts must be finite and not negative, but spectrum {names[rows[index]]} has "
            f"{counts[index, channel]:g} in channel {channel}; repair or leave out the spectrum."
        )
    return counts


def _per_spectrum(values, count, name) -> np.ndarray:
    values = [np.nan if value is None else value for value in np.atleast_1d(np.asarray(values, dtype=object))]
    values = np.asarray(values, dtype=np.float64)
    if len(values) not in (1, count):
        raise ValueError(f"{name} must be one number or one per spectrum ({count}), but has {len(values)} entries.")
    return np.broadcast_to(values, (count,))


XRFFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")

__all__ = ["XRFFeatureExtractor"]
