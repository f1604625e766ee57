"""From counts with an energy calibration to the inputs of the XRF models: rebin, mark what was measured, scale."""

import numpy as np
from transformers import BatchFeature
from transformers.feature_extraction_utils import FeatureExtractionMixin

SCALINGS = ("standardize", "sqrt", "log", "channel")


class XRFFeatureExtractor(FeatureExtractionMixin):
    r"""
    Puts spectra of any instrument onto the model's energy grid and scales them. Channel `i` of a spectrum is centred
    at `offset_kev + gain_kev * i`; channel `j` of the grid at `first_channel_kev + channel_width_kev * j`.

    Rebinning conserves counts: a native channel's counts spread evenly over its width, and counts outside the grid
    are reported, not moved. A patch counts as measured where the instrument's range covers it (a missing edge of up
    to one grid channel is forgiven) and, with `limit_to_tube_kv`, where it begins below the tube voltage, above
    which nothing is excited. Unmeasured patches are set to zero and take no part in the scaling.

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
        on_grid, outside_counts = self.rebin(spectra, gain_kev, offset_kev)
        lengths = np.array([len(spectrum) for spectrum in spectra])
        measured = self._measured_patches(lengths, gain_kev, offset_kev, tube_kv)
        for index in np.flatnonzero(~measured.any(axis=1)):
            lower, upper = _range_kev(lengths[index], gain_kev[index], offset_kev[index])
            tube = "" if np.isnan(tube_kv[index]) else f" at {tube_kv[index]:g} kV"
            raise ValueError(
                f"Spectrum {names[index]} covers {lower:.2f} to {upper:.2f} keV{tube} and so no whole patch of the "
                f"model's grid, {self.channel_edges_kev[0]:.2f} to {self.channel_edges_kev[-1]:.2f} keV; check its "
                "calibration and tube voltage."
            )
        on_grid *= np.repeat(measured, self.patch_size, axis=1)
        for index in np.flatnonzero(on_grid.sum(axis=1) == 0):
            raise ValueError(f"Spectrum {names[index]} has no counts in the measured range; leave it out.")
        values, center, scale = self._scale(on_grid, np.repeat(measured, self.patch_size, axis=1))
        data = {"input_values": values.astype(np.float32), "attention_mask": measured.astype(np.int64)}
        if return_statistics:
            data.update(center=center, scale=scale, outside_counts=outside_counts)
        return BatchFeature(data, tensor_type=return_tensors)

    def rebin(self, spectra, gain_kev, offset_kev) -> tuple[np.ndarray, np.ndarray]:
        """Spectra on the model's grid, counts conserved.

        Args:
            spectra (sequence of `(channels,)` arrays): counts; lengths may differ.
            gain_kev, offset_kev (`(batch_size,)`): the calibration of each, in keV.

        Returns:
            counts on the grid `(batch_size, spectrum_length)` and counts outside it `(batch_size,)`, float64.
        """
        on_grid = np.empty((len(spectra), self.spectrum_length))
        total = np.empty(len(spectra))
        calibrations = {}
        for index, spectrum in enumerate(spectra):
            calibrations.setdefault((len(spectrum), gain_kev[index], offset_kev[index]), []).append(index)
        for (length, gain, offset), members in calibrations.items():
            counts = np.stack([spectra[index] for index in members])
            # the grid's edges in native channels: an edge at x has int(x) whole channels below it and a part of one
            edges = np.clip((self.channel_edges_kev - offset) / gain + 0.5, 0, length)
            # a grid equal to the native one must copy the counts exactly, whatever the rounding of the division
            edges = np.where(np.abs(edges - np.round(edges)) < 1e-6, np.round(edges), edges)
            whole = np.minimum(edges.astype(np.int64), length - 1)
            below = np.concatenate([np.zeros((len(counts), 1)), np.cumsum(counts, axis=1)], axis=1)
            on_grid[members] = np.diff(below[:, whole] + counts[:, whole] * (edges - whole), axis=1)
            total[members] = below[:, -1]
        return np.maximum(on_grid, 0), total - on_grid.sum(axis=1)

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

    def _measured_patches(self, lengths, gain_kev, offset_kev, tube_kv) -> np.ndarray:
        edges = self.channel_edges_kev[:: self.patch_size]
        lower, upper = _range_kev(lengths[:, None], gain_kev[:, None], offset_kev[:, None])
        tolerance = self.channel_width_kev * (1 + 1e-9)
        measured = (edges[:-1] >= lower - tolerance) & (edges[1:] <= upper + tolerance)
        if self.limit_to_tube_kv:
            measured &= ~(edges[:-1] >= tube_kv[:, None])  # an unknown voltage, NaN, limits nothing
        return measured

    def _scale(self, on_grid, measured_channels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        number = measured_channels.sum(axis=1)
        mean = on_grid.sum(axis=1) / number
        center, scale = np.zeros_like(mean), mean
        if self.scaling == "standardize":
            squares = np.square((on_grid - mean[:, None]) * measured_channels).sum(axis=1)
            sd = np.sqrt(squares / np.maximum(number - 1, 1))
            center, scale = mean, np.where(sd > 0, sd, 1.0)  # a flat spectrum becomes zeros
            values = (on_grid - center[:, None]) / scale[:, None]
        elif self.scaling == "sqrt":
            values = np.sqrt(on_grid / mean[:, None])
        elif self.scaling == "log":
            scale = np.ones_like(mean)
            values = np.log1p(on_grid)
        else:
            values = (on_grid / mean[:, None] - self.channel_mean) / np.asarray(self.channel_std)
        return values * measured_channels, center, scale


def _as_batch(counts, gain_kev, offset_kev, tube_kv, names):
    """Of equal length: float64 spectra `(channels,)`, gains, offsets, tube voltages (NaN = unknown) and names."""
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
    spectra = [np.asarray(spectrum, dtype=np.float64) for spectrum in counts]
    names = range(len(spectra)) if names is None else names
    for name, spectrum in zip(names, spectra, strict=True):
        if spectrum.ndim != 1 or len(spectrum) == 0:
            raise ValueError(
                f"Spectrum {name} must be a row of counts, but has shape {spectrum.shape}; give (channels,) or "
                "(batch_size, channels)."
            )
        bad = ~(np.isfinite(spectrum) & (spectrum >= 0))
        if bad.any():
            channel = int(np.argmax(bad))
            raise ValueError(
                f"Counts must be finite and not negative, but spectrum {name} has {spectrum[channel]:g} in channel "
                f"{channel}; repair or leave out the spectrum."
            )
    gain_kev = _per_spectrum(gain_kev, len(spectra), "gain_kev")
    offset_kev = _per_spectrum(offset_kev, len(spectra), "offset_kev")
    tube_kv = _per_spectrum(np.nan if tube_kv is None else tube_kv, len(spectra), "tube_kv")
    for index in np.flatnonzero(~(np.isfinite(gain_kev) & np.isfinite(offset_kev))):
        raise ValueError(
            f"Spectrum {names[index]} has no energy calibration; supply gain_kev (keV per channel) and offset_kev "
            "(energy of channel 0 in keV) from the instrument's settings."
        )
    for index in np.flatnonzero(gain_kev <= 0):
        raise ValueError(
            f"gain_kev must be positive, but spectrum {names[index]} has {gain_kev[index]:g}; check its calibration."
        )
    for index in np.flatnonzero(tube_kv <= 0):  # an unknown voltage is NaN
        raise ValueError(
            f"tube_kv must be positive, but spectrum {names[index]} has {tube_kv[index]:g}; give None where it is "
            "unknown."
        )
    return spectra, gain_kev, offset_kev, tube_kv, names


def _per_spectrum(values, count, name) -> np.ndarray:
    values = [np.nan if value is None else value for value in np.atleast_1d(np.asarray(values, dtype=object))]
    values = np.asarray(values, dtype=np.float64)
    if len(values) not in (1, count):
        raise ValueError(f"{name} must be one number or one per spectrum ({count}), but has {len(values)} entries.")
    return np.broadcast_to(values, (count,))


def _range_kev(length, gain_kev, offset_kev):
    """Lower and upper edge of an instrument's range in keV."""
    return offset_kev - 0.5 * gain_kev, offset_kev + (length - 0.5) * gain_kev


XRFFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")

__all__ = ["XRFFeatureExtractor"]
