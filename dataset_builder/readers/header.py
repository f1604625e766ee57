"""Headers of text files: fields as `key : value` lines, with the limits of what can be true of a measurement."""

from .checks import optional_number

MAX_SPECTRUM_BYTES = 8 * 2**20
"""Room for `MAX_CHANNELS` channels in four columns, or 4096 channels of 250 detector elements."""

MAX_TIME_S = 1e8
MAX_TUBE_KV = 1000.0
MAX_TUBE_UA = 1e7


def header_fields(lines, separator: str = ":") -> dict[str, str]:
    """The fields of a header, one a line; a key that comes again keeps all its values, joined by `; `."""
    values: dict[str, list[str]] = {}
    for line in lines:
        key, _, value = line.partition(separator)
        if key.strip():
            values.setdefault(key.strip(), []).append(value.strip())
    return {key: "; ".join(texts) for key, texts in values.items()}


def metadata_without(fields: dict[str, str], used) -> dict[str, str]:
    """The fields that are not empty and not already fields of the `Spectrum`."""
    return {key: value for key, value in fields.items() if value and key not in used}


def positive_number(path, place: str | None, text, name: str, highest: float) -> float | None:
    """The number in a field, at most `highest`; `None` where it is empty, or 0 and so was not recorded.

    Raises:
        SpectrumFileError: it is no number from 0 to `highest`.
    """
    return optional_number(path, place, text, name, 0.0, highest) or None
