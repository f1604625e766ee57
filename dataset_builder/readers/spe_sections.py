"""The `$NAME:` sections of text `.spe` files: the layout that QXAS and Avaatech share.

A line `$NAME:` opens a section and the lines below it, up to the next one, are its value. `$DATA:` holds the numbers
of the first and the last channel and then the counts, one or several to a line; `$MEAS_TIM:` live and real time in
seconds; `$MCA_CAL:` and `$ENER_FIT:` an energy calibration, where one was made.
"""

import re
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..spectrum import SpectrumFileError
from .checks import MAX_CHANNELS, check_declared, number, numbers, whole_counts, whole_number
from .energy_scale import MAX_CHANNEL_WIDTH_KEV, MAX_ENERGY_KEV, MIN_CHANNEL_WIDTH_KEV
from .header import MAX_SPECTRUM_BYTES, MAX_TIME_S, metadata_without, positive_number
from .text import parse_number, read_text, split_lines

KEV = {"ev": 1e-3, "kev": 1.0, "mev": 1e3}
MAX_SECTIONS = 1000
_HEADING = re.compile(r"^[ \t]*\$(\w+)[ \t]*(?::(.*))?$", re.MULTILINE)


class EnergyCalibration(NamedTuple):
    """Energy of channel 0 and channel width in keV, and the section they come from; `None` where there is none."""

    gain_kev: float | None
    offset_kev: float | None
    origin: str


def has_section(head: bytes, names: tuple[str, ...]) -> bool:
    """Whether the first bytes of a file have a line `$NAME:` with one of the names."""
    pattern = rf"(?:^|[\r\n])[ \t]*\$(?:{'|'.join(names)})[ \t]*:".encode()
    return re.search(pattern, head.replace(b"\0", b"").removeprefix(b"\xef\xbb\xbf"), re.IGNORECASE) is not None


@dataclass(frozen=True)
class SpeSections:
    """A parsed file: the text of every section, by name as the file writes it and without `$` and colon."""

    path: Path
    texts: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> "SpeSections":
        """Split a file into its sections.

        Raises:
            SpectrumFileError: the file cannot be read, or has several `$DATA:` sections or very many others.
        """
        content = "\n".join(split_lines(read_text(path, MAX_SPECTRUM_BYTES)))
        headings = list(islice(_HEADING.finditer(content), MAX_SECTIONS + 1))
        if len(headings) > MAX_SECTIONS:
            raise SpectrumFileError(path, f"a file must have at most {MAX_SECTIONS} sections; this one has more.")
        if sum(heading[1].upper() == "DATA" for heading in headings) > 1:
            raise SpectrumFileError(path, "the file must have one $DATA: section; it has more: split it.")
        texts: dict[str, str] = {}
        for heading, following in zip_longest(headings, headings[1:]):
            body = content[heading.end() : following.start() if following else None]
            text = f"{heading[2] or ''}{body}".strip()
            texts[heading[1]] = f"{texts[heading[1]]}\n{text}".strip() if heading[1] in texts else text
        return cls(path, texts)

    def text(self, name: str) -> str | None:
        """What stands in a section, upper and lower case alike; `None` where it is empty or missing."""
        return next((text for key, text in self.texts.items() if key.upper() == name.upper()), None) or None

    def positive_number(self, name: str, highest: float) -> float | None:
        """The number in a section, at most `highest`; `None` where it is missing, or 0 and so was not recorded.

        Raises:
            SpectrumFileError: it is no number from 0 to `highest`.
        """
        return positive_number(self.path, f"${name}", self.text(name), name, highest)

    def counts(self) -> tuple[int, np.ndarray]:
        """The number of the first channel, and the counts of shape `(channels,)`.

        Raises:
            SpectrumFileError: there are other than the declared channels, or one holds no whole number of counts.
        """
        place = "$DATA"
        first_line, _, rest = (self.text("DATA") or "").partition("\n")
        limits = first_line.split()
        if len(limits) != 2:
            raise SpectrumFileError(
                self.path,
                f"the first and the last channel must stand below $DATA:; found {first_line[:80]!r}: "
                "the file is cut off or damaged.",
                place,
            )
        first = whole_number(self.path, place, limits[0], "the first channel", 0, MAX_CHANNELS)
        last = whole_number(self.path, place, limits[1], "the last channel", first, first + MAX_CHANNELS - 1)
        values = rest.split()
        check_declared(self.path, place, "channels", last - first + 1, len(values))
        return first, whole_counts(self.path, place, numbers(self.path, place, values, "the count of channel"))

    def times(self) -> tuple[float | None, float | None]:
        """Live and real time in seconds, `None` where missing or 0.

        Raises:
            SpectrumFileError: a time is no number from 0 to `MAX_TIME_S`.
        """
        texts = [*(self.text("MEAS_TIM") or "").split(), None, None]
        return (
            positive_number(self.path, "$MEAS_TIM", texts[0], "the live time", MAX_TIME_S),
            positive_number(self.path, "$MEAS_TIM", texts[1], "the real time", MAX_TIME_S),
        )

    def energy_calibration(self, first_channel: int, num_channels: int) -> EnergyCalibration:
        """The calibration of `$MCA_CAL:`, else of `$ENER_FIT:`, as energy over the index into the counts.

        Both hold the coefficients of a polynomial in the channel's number, from the constant on; in `$MCA_CAL:` a line
        above says how many there are, and a unit may follow them (keV where none does). A channel width that no X-ray
        detector has gives no calibration (programs write 0, or 1 for energy = channel, where there is none), and
        neither does a polynomial more than a channel off its line.

        Raises:
            SpectrumFileError: a coefficient is no number.
        """
        for name in ("MCA_CAL", "ENER_FIT"):
            terms_kev = self._polynomial_kev(name)
            if len(terms_kev) < 2:
                continue
            offset_kev, gain_kev = terms_kev[0] + terms_kev[1] * first_channel, terms_kev[1]
            if not MIN_CHANNEL_WIDTH_KEV <= gain_kev <= MAX_CHANNEL_WIDTH_KEV or abs(offset_kev) > MAX_ENERGY_KEV:
                continue
            channels = first_channel + np.arange(num_channels)
            with np.errstate(all="ignore"):
                bend_kev = np.polynomial.polynomial.polyval(channels, [0.0, 0.0, *terms_kev[2:]])
                is_straight = bool(np.abs(bend_kev).max() <= gain_kev)
            if not is_straight:
                return EnergyCalibration(None, None, f"none: the polynomial of ${name}: is curved")
            return EnergyCalibration(gain_kev, offset_kev, f"${name}:")
        return EnergyCalibration(None, None, "none: the file states no energy scale")

    def _polynomial_kev(self, name):
        lines = (self.text(name) or "").split("\n")
        if name == "MCA_CAL" and len(lines) > 1 and parse_number(lines[0]) is not None:
            lines = lines[1:]
        tokens = " ".join(lines).split()[:8]
        unit_kev = KEV.get(tokens[-1].lower()) if tokens else None
        if unit_kev is not None:
            tokens = tokens[:-1]
        terms = [number(self.path, f"${name}", token, "a coefficient") for token in tokens]
        return [term * (unit_kev or 1.0) for term in terms]

    def metadata(self, without: tuple[str, ...]) -> dict[str, str]:
        """The sections that are not empty, except those named."""
        used = {name for name in self.texts if name.upper() in without}
        return metadata_without(self.texts, used)
