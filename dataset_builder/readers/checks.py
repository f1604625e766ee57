"""What every reader checks before a spectrum leaves it."""

import contextlib
from collections.abc import Callable

import numpy as np

from ..spectrum import Spectrum, SpectrumFileError
from .text import parse_number

_PLAIN_NUMBER = frozenset("0123456789+-.eE")

Reject = Callable[[SpectrumFileError], None]
"""Called with the error of every spectrum a reader leaves out; without one the reader raises it."""

MAX_CHANNELS = 65_536
MAX_COUNT = 2**40
"""More counts in a channel than any detector makes in a year: the number is something else."""


def checked_spectrum(path, place: str | None, on_reject: Reject | None, counts, **fields) -> Spectrum | None:
    """Make the spectrum, or say which file and place it cannot be made from.

    Returns:
        `Spectrum`, or `None` where the spectrum was rejected and `on_reject` has been told.

    Raises:
        SpectrumFileError: the spectrum is not valid and there is no `on_reject`.
    """
    try:
        spectrum = Spectrum(counts=counts, source=path.name, **fields)
        check_plausible(spectrum)
        return spectrum
    except ValueError as error:
        reject(SpectrumFileError(path, str(error), place), on_reject)
        return None


def check_plausible(spectrum: Spectrum) -> None:
    """Raise `ValueError` where a spectrum is possible but no measurement: no counts, or too many."""
    if not np.any(spectrum.counts):
        raise ValueError("the spectrum must hold counts; all its channels are zero: was the shutter closed?")
    if spectrum.counts.size > MAX_CHANNELS:
        raise ValueError(f"a spectrum must have at most {MAX_CHANNELS} channels; found {spectrum.counts.size}.")
    if spectrum.counts.max() > MAX_COUNT:
        channel = int(np.argmax(spectrum.counts))
        raise ValueError(
            f"counts must be plausible, below {MAX_COUNT:.1e}; found {spectrum.counts[channel]:.4g} in channel "
            f"{channel}: the file is damaged or this is not its column of counts."
        )


def reject(error: SpectrumFileError, on_reject: Reject | None) -> None:
    """Hand the error to `on_reject`, or raise it."""
    if on_reject is None:
        raise error
    on_reject(error)


def check_declared(path, place: str | None, name: str, declared: float | None, found: float, tolerance: float = 0.0):
    """Raise `SpectrumFileError` where the header declares another number than was found; `None` declares nothing.

    Args:
        name: what is counted, for example `"channels"` or `"total counts"`.
        tolerance: largest relative difference that passes.
    """
    if declared is not None and abs(declared - found) > tolerance * max(abs(declared), abs(found)):
        message = f"the header declares {declared:.15g} {name} but {found:.15g} were found: the file is damaged."
        raise SpectrumFileError(path, message, place)


def whole_counts(path, place: str | None, values) -> np.ndarray:
    """The values as integer counts, shape `(channels,)`.

    Raises:
        SpectrumFileError: a value is no whole number from 0 to `MAX_COUNT`; the error names its channel.
    """
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        wrong = ~((values >= 0) & (values <= MAX_COUNT) & (values == np.round(values)))
    if wrong.any():
        channel = int(np.argmax(wrong))
        raise SpectrumFileError(
            path,
            f"counts must be whole numbers from 0 to {MAX_COUNT:.1e}; found {values[channel]:.6g} in channel "
            f"{channel}: the file is damaged or this is not its column of counts.",
            place,
        )
    return values.astype(np.int64)


def number(path, place: str | None, text, name: str) -> float:
    """The number in a text field (a decimal comma is allowed), or a `SpectrumFileError` that names it."""
    value = parse_number(text)
    if value is None:
        raise SpectrumFileError(path, f"{name} must be a number; found {str(text)[:80]!r}.", place)
    return value


def optional_number(
    path, place: str | None, text, name: str, lowest: float = -np.inf, highest: float = np.inf
) -> float | None:
    """Like `number`, and it must lie from `lowest` to `highest`; an empty field or NaN gives `None`."""
    if text is None or str(text).strip().strip('"').lower() in ("", "nan", "none", "null"):
        return None
    value = number(path, place, text, name)
    if not lowest <= value <= highest:
        raise SpectrumFileError(
            path, f"{name} must lie from {lowest:g} to {highest:g}; found {str(text)[:80]!r}.", place
        )
    return value


def numbers(path, place: str | None, texts: list[str], name: str) -> np.ndarray:
    """`number` of every text, much faster for the usual ones; shape `(texts,)`."""
    with contextlib.suppress(ValueError):  # one of them is no number: the slower way below says which
        if set("".join(texts)) <= _PLAIN_NUMBER:
            return np.array([float(text) for text in texts])
    return np.array([number(path, place, text, f"{name} {i}") for i, text in enumerate(texts)])


def whole_number(path, place: str | None, text, name: str, lowest: int, highest: int) -> int:
    """The whole number in a text field, from `lowest` to `highest`, or a `SpectrumFileError` that names it."""
    value = number(path, place, text, name)
    if value != int(value) or not lowest <= value <= highest:
        raise SpectrumFileError(
            path, f"{name} must be a whole number from {lowest} to {highest}; found {str(text)[:80]!r}.", place
        )
    return int(value)


def element_symbol(path, place: str | None, atomic_number: int) -> str:
    """The symbol of the element with this atomic number, or a `SpectrumFileError`."""
    import xraylib

    try:
        return xraylib.AtomicNumberToSymbol(atomic_number)
    except ValueError:
        message = f"an atomic number must lie from 1 to 107; found {atomic_number}: the file is damaged."
        raise SpectrumFileError(path, message, place) from None
