"""What every reader checks before a spectrum leaves it."""

from collections.abc import Callable

import numpy as np

from ..spectrum import Spectrum, SpectrumFileError

Reject = Callable[[SpectrumFileError], None]
"""Called with the error of every spectrum a reader leaves out; without one the reader raises it."""


def checked_spectrum(path, place: str | None, on_reject: Reject | None, counts, **fields) -> Spectrum | None:
    """Make the spectrum, or say which file and place it cannot be made from.

    Returns:
        `Spectrum`, or `None` where the spectrum was rejected and `on_reject` has been told.

    Raises:
        SpectrumFileError: the spectrum is not valid and there is no `on_reject`.
    """
    try:
        spectrum = Spectrum(counts=counts, source=path.name, **fields)
        if not np.any(spectrum.counts):
            raise ValueError("the spectrum must hold counts; all its channels are zero: was the shutter closed?")
        return spectrum
    except ValueError as error:
        reject(SpectrumFileError(path, str(error), place), on_reject)
        return None


def reject(error: SpectrumFileError, on_reject: Reject | None) -> None:
    """Hand the error to `on_reject`, or raise it."""
    if on_reject is None:
        raise error
    on_reject(error)


def number(path, place: str, text, name: str) -> float:
    """The number in a text field, or a `SpectrumFileError` that names it."""
    try:
        return float(str(text).strip().strip('"'))
    except ValueError:
        raise SpectrumFileError(path, f"{name} must be a number; found {text!r}.", place) from None


def optional_number(path, place: str, text, name: str) -> float | None:
    """Like `number`; an empty field or NaN gives `None`."""
    if text is None or str(text).strip().strip('"').lower() in ("", "nan", "none", "null"):
        return None
    value = number(path, place, text, name)
    return None if np.isnan(value) else value
