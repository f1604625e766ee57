"""`Spectrum`: one measured or simulated XRF spectrum with its energy calibration, acquisition and position."""

from dataclasses import dataclass, field

import numpy as np


class SpectrumFileError(ValueError):
    """A file, or one spectrum in it, cannot be used.

    Attributes:
        path (`str`): the file.
        place (`str` or `None`): row, field or line inside the file.
        reason (`str`): what is wrong and what to do.
    """

    def __init__(self, path, reason: str, place: str | None = None):
        self.path, self.place, self.reason = str(path), place, reason
        super().__init__(f"{path}{f', {place}' if place else ''}: {reason}")

    def __reduce__(self):
        return type(self), (self.path, self.reason, self.place)


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """One spectrum as the instrument recorded it.

    Args:
        counts (`np.ndarray` of shape `(channels,)`): counts per native channel, finite and not negative.
        gain_kev (`float`, *optional*): channel width in keV; the centre of channel i is `offset_kev + gain_kev * i`.
        offset_kev (`float`, *optional*): energy of channel 0 in keV.
        live_time_s, real_time_s (`float`, *optional*): counting time in seconds.
        tube_kv, tube_ua (`float`, *optional*): tube voltage in kV and current in microampere.
        anode, filter, instrument, detector (`str`, *optional*): as the file names them; `anode` is an element symbol.
        sample, core (`str`, *optional*): what was measured; splits keep the spectra of one core together.
        depth_mm (`float`, *optional*): depth in the core, or position along it.
        x_mm, y_mm (`float`, *optional*): position on the sample or of the stage.
        targets (`dict[str, float]`): reference values by target name, each in the unit that `target_units` gives.
        target_units (`dict[str, str]`): unit by target name, for example `"wt%"`.
        metadata (`dict[str, str]`): whatever else the file says.
        source (`str`, *optional*): name of the file.

    Raises:
        ValueError: the counts are not one-dimensional, empty, not finite or negative, or the gain is not positive.
    """

    counts: np.ndarray
    gain_kev: float | None = None
    offset_kev: float | None = None
    live_time_s: float | None = None
    real_time_s: float | None = None
    tube_kv: float | None = None
    tube_ua: float | None = None
    anode: str | None = None
    filter: str | None = None
    instrument: str | None = None
    detector: str | None = None
    sample: str | None = None
    core: str | None = None
    depth_mm: float | None = None
    x_mm: float | None = None
    y_mm: float | None = None
    targets: dict[str, float] = field(default_factory=dict)
    target_units: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    source: str | None = None

    def __post_init__(self):
        counts = np.asarray(self.counts)
        if counts.dtype.kind not in "iuf":
            try:
                counts = counts.astype(np.float64)
            except (TypeError, ValueError):
                raise ValueError(f"counts must be numbers; {self._name} holds {counts.dtype}.") from None
        object.__setattr__(self, "counts", counts)
        if counts.ndim != 1 or counts.size == 0:
            raise ValueError(
                f"counts must be one-dimensional with at least one channel; {self._name} has shape {counts.shape}."
            )
        # A single sum is finite only if every count is, so the slower search for the place runs only on bad input.
        if not np.isfinite(counts.sum(dtype=np.float64)):
            channel = int(np.flatnonzero(~np.isfinite(counts))[0])
            raise ValueError(
                f"counts must be finite; {self._name} has {counts[channel]} in channel {channel}: remove the spectrum."
            )
        if counts.min() < 0:
            channel = int(np.argmin(counts))
            raise ValueError(
                f"counts must not be negative; {self._name} has {counts[channel]} in channel {channel}: "
                "use the raw spectrum, before any background is subtracted."
            )
        if self.gain_kev is not None and not (np.isfinite(self.gain_kev) and self.gain_kev > 0):
            raise ValueError(
                f"gain_kev must be positive; {self._name} has {self.gain_kev}: check the energy calibration."
            )
        if self.offset_kev is not None and not np.isfinite(self.offset_kev):
            raise ValueError(
                f"offset_kev must be finite; {self._name} has {self.offset_kev}: check the energy calibration."
            )

    @property
    def _name(self) -> str:
        return self.sample or self.core or self.source or "the spectrum"

    @property
    def total_counts(self) -> float:
        """Sum over all channels."""
        return float(self.counts.sum(dtype=np.float64))

    @property
    def energy_kev(self) -> np.ndarray:
        """Energy of every channel's centre in keV, shape `(channels,)`."""
        if self.gain_kev is None or self.offset_kev is None:
            raise ValueError(f"{self._name} has no energy calibration: give gain_kev and offset_kev.")
        return self.offset_kev + self.gain_kev * np.arange(self.counts.size)

    def __repr__(self):
        label = " ".join(part for part in (self.core, self.sample) if part) or self.source
        parts = [label] if label else []
        parts.append(f"{self.counts.size} channels")
        if self.gain_kev is not None and self.offset_kev is not None:
            energy_kev = self.energy_kev
            parts.append(f"{energy_kev[0]:.2f}-{energy_kev[-1]:.1f} keV")
        if self.depth_mm is not None:
            parts.append(f"{self.depth_mm:g} mm")
        if self.tube_kv is not None:
            parts.append(f"{self.tube_kv:g} kV")
        if self.live_time_s is not None:
            parts.append(f"{self.live_time_s:.1f} s")
        total = self.total_counts
        if total >= 1e6:
            parts.append(f"{total / 1e6:.2f} M counts")
        elif total >= 1e3:
            parts.append(f"{total / 1e3:.1f} k counts")
        else:
            parts.append(f"{total:.0f} counts")
        return f"Spectrum({', '.join(parts)})"
