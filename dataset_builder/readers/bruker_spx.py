"""Bruker `.spx`: XML of the M4, M6 and other Esprit instruments, one or several spectra a file.

A spectrum is a `ClassInstance` of type `TRTSpectrum` with headers, `ChannelCount` and comma-separated `Channels`.

- A `TRTSpectrum` inside another one is not measured: it is the background that the software fitted, with fractional
  counts. Only the outermost ones are read.
- Some files declare and hold 4091 to 4095 channels instead of 4096. All 22 that were looked at end with a channel that
  is not zero: the software leaves out empty channels at the end. The spectrum keeps the channels of the file, and a
  number of channels that is not the declared one is refused.
- `CalibAbs` (keV) is the centre of the first channel: the zero peak of genuine files lies within 1 eV of 0 keV.

Results (regions, concentrations, deconvolution) are not read. The encoding is Windows-1252. A document type, and with
it every entity, is refused, as is XML with more levels or elements than an instrument writes.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ..spectrum import Spectrum, SpectrumFileError
from .checks import (
    MAX_CHANNELS,
    Reject,
    check_declared,
    checked_spectrum,
    element_symbol,
    numbers,
    optional_number,
    reject,
    whole_counts,
    whole_number,
)
from .text import decode, read_text

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 64
MAX_ELEMENTS = 1_000_000
FIELDS_OF_SPECTRUM = (
    "TRTSpectrumHardwareHeader RealTime",
    "TRTSpectrumHardwareHeader LifeTime",
    "TRTXrfHeader Voltage",
    "TRTXrfHeader Current",
    "TRTXrfHeader Anode",
    "TRTXrfHeader ExcitationFilter FilterId",
    "TRTSpectrumHeader CalibAbs",
    "TRTSpectrumHeader CalibLin",
)


def is_bruker_spx(path: Path, head: bytes) -> bool:
    """Whether the file is XML with a `TRTSpectrum` near its beginning."""
    text = decode(head)
    return text.lstrip().startswith("<") and "TRTSpectrum" in text


def read_bruker_spx(path: Path, on_reject: Reject | None = None) -> Iterator[Spectrum]:
    """Read the measured spectra of an `.spx` file.

    Raises:
        SpectrumFileError: the file is no complete and plain XML, holds no measured spectrum, or a spectrum has no
            channels, other ones than it declares, or a field that is no number.
    """
    instances = list(_measured_spectra(_parse_xml(path, read_text(path, MAX_BYTES))))
    if not instances:
        raise SpectrumFileError(path, "the file must hold a measured spectrum; no TRTSpectrum found.")
    for index, instance in enumerate(instances):
        try:
            spectrum = _read_instance(path, f"spectrum {index}", on_reject, instance)
        except SpectrumFileError as error:
            reject(error, on_reject)
            continue
        if spectrum is not None:
            yield spectrum


def _parse_xml(path, text) -> Element:
    """The root element. Expat itself knows no limits and expands entities, so the handlers keep to what is plain."""
    builder, parser = TreeBuilder(), expat.ParserCreate("utf-8")
    depth = num_elements = 0

    def refuse(reason):
        raise SpectrumFileError(path, reason, f"line {parser.CurrentLineNumber}")

    def start(name, attributes):
        nonlocal depth, num_elements
        depth, num_elements = depth + 1, num_elements + 1
        if depth > MAX_DEPTH or num_elements > MAX_ELEMENTS:
            refuse(f"the XML must have at most {MAX_DEPTH} levels and {MAX_ELEMENTS} elements: it is no spectrum.")
        builder.start(name, attributes)

    def end(name):
        nonlocal depth
        depth -= 1
        builder.end(name)

    def doctype(*_):
        refuse("the XML must have no document type or entities: remove the DOCTYPE.")

    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = doctype
    try:
        parser.Parse(text.encode(), True)
    except expat.ExpatError as error:
        raise SpectrumFileError(path, f"the XML must be complete and well-formed ({error}): copy it again.") from None
    return builder.close()


def _measured_spectra(element) -> Iterator[Element]:
    """The outermost spectra in the order of the file."""
    if element.get("Type") == "TRTSpectrum":
        yield element
        return
    for child in element:
        yield from _measured_spectra(child)


def _read_instance(path, place, on_reject, instance):
    header = _header(instance)

    def value(name, unit=1.0, lowest=0.0):
        number = optional_number(path, place, header.get(name), name, lowest=lowest)
        return None if number is None else number * unit

    channels = instance.findtext("Channels")
    if channels is None:
        raise SpectrumFileError(path, "a TRTSpectrum must have Channels; there are none.", place)
    texts = channels.split(",", MAX_CHANNELS)
    counts = whole_counts(path, place, numbers(path, place, [text.strip() for text in texts], "the count of channel"))
    check_declared(path, place, "channels", value("TRTSpectrumHeader ChannelCount"), counts.size)
    anode = header.get("TRTXrfHeader Anode")
    if anode is not None:
        anode = element_symbol(path, place, whole_number(path, place, anode, "TRTXrfHeader Anode", 1, 107))
    position_mm = _position_mm(path, place, instance)
    return checked_spectrum(
        path,
        place,
        on_reject,
        counts,
        gain_kev=value("TRTSpectrumHeader CalibLin"),
        offset_kev=value("TRTSpectrumHeader CalibAbs", lowest=-math.inf),
        live_time_s=value("TRTSpectrumHardwareHeader LifeTime", unit=1e-3),
        real_time_s=value("TRTSpectrumHardwareHeader RealTime", unit=1e-3),
        tube_kv=value("TRTXrfHeader Voltage"),
        tube_ua=value("TRTXrfHeader Current"),
        anode=anode,
        filter=header.get("TRTXrfHeader ExcitationFilter FilterId"),
        instrument=_joined("Bruker", header, "TRTXrfHeader ChassisType", "TRTXrfHeader ChassisNumber"),
        detector=_joined("", header, "TRTDetectorHeader Type", "TRTDetectorHeader Serial") or None,
        sample=instance.get("Name") or path.stem,
        x_mm=position_mm.get("X"),
        y_mm=position_mm.get("Y"),
        metadata={name: text for name, text in header.items() if name not in FIELDS_OF_SPECTRUM},
    )


def _header(instance):
    """Texts and attributes of the headers, named by the path to them; values of one name are joined by `; `."""
    fields = defaultdict(list)

    def collect(element, name):
        for child in element:
            child_name = f"{name} {child.tag}"
            text = (child.text or "").strip() or ", ".join(f"{key}={value}" for key, value in child.attrib.items())
            if text:
                fields[child_name].append(text)
            collect(child, child_name)

    for block in instance.iterfind("TRTHeaderedClass/ClassInstance"):
        collect(block, block.get("Type", ""))
    for block in instance.iterfind("ClassInstance[@Type='TRTSpectrumHeader']"):
        collect(block, "TRTSpectrumHeader")
    return {name: "; ".join(texts) for name, texts in fields.items()}


def _joined(first, header, *names):
    return " ".join(filter(None, (first, *(header.get(name) for name in names))))


def _position_mm(path, place, instance):
    """Position of the stage by axis name; other units than mm are left to the metadata."""
    axes = instance.iterfind("TRTHeaderedClass/ClassInstance/AxesParameter/*")
    return {
        axis.get("AxisName"): optional_number(path, place, axis.get("AxisPosition"), "AxisPosition")
        for axis in axes
        if axis.get("AxisUnit") == "mm"
    }
