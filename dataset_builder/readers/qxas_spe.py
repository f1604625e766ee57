"""QXAS `.spe`, the IAEA's text spectrum, which many gamma and X-ray programs write too: one spectrum a file.

The file is made of `$NAME:` sections (`spe_sections`). `$SPEC_ID:` names the sample; the energy scale stands in
`$MCA_CAL:` or `$ENER_FIT:` where it was calibrated, and nowhere else.
"""

from collections.abc import Iterator
from pathlib import Path

from ..spectrum import Spectrum
from .checks import Reject, checked_spectrum
from .header import MAX_TUBE_KV
from .spe_sections import SpeSections, has_section


def is_qxas_spe(path: Path, head: bytes) -> bool:
    """Whether it has one of the sections of the layout; Avaatech's own dialect comes before it."""
    return has_section(head, ("DATA", "SPEC_ID", "SPEC_REM", "DATE_MEA", "MEAS_TIM"))


def read_qxas_spe(path: Path, on_reject: Reject | None = None) -> Iterator[Spectrum]:
    """Read one file.

    Raises:
        SpectrumFileError: channels are missing, a number cannot be read, or the counts are no valid spectrum.
    """
    sections = SpeSections.read(path)
    first_channel, counts = sections.counts()
    live_time_s, real_time_s = sections.times()
    gain_kev, offset_kev, calibration = sections.energy_calibration(first_channel, counts.size)
    yield checked_spectrum(
        path,
        None,
        None,
        counts,
        gain_kev=gain_kev,
        offset_kev=offset_kev,
        live_time_s=live_time_s,
        real_time_s=real_time_s,
        tube_kv=sections.positive_number("ACC_VOLT", MAX_TUBE_KV),
        sample=sections.text("SPEC_ID") or path.stem,
        metadata={**sections.metadata(without=("DATA", "SPEC_ID", "ACC_VOLT")), "calibration": calibration},
    )
