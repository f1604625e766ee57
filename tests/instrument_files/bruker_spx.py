"""Bruker `.spx` files that a test writes, with few channels."""

COUNTS = (0, 2, 31, 7, 0, 1)
AXES = (("X", "1.2345E1", "mm"), ("Y", "6.5E0", "mm"), ("Z", "9E4", "\xb5m"))


def background(values="0.5,22.76") -> str:
    """The computed spectrum that the software stores inside a measured one."""
    return (
        '<ChildClassInstances><ClassInstance Type="TRTSpectrumList">'
        '<ClassInstance Type="TRTSpectrum" Name="Background">'
        f"<Channels>{values}</Channels></ClassInstance></ClassInstance></ChildClassInstances>"
    )


def spectrum(
    counts=COUNTS, name="Point 1", channel_count=None, calib_abs="-9.55E-1", calib_lin="1E-2", live_ms="28046",
    anode="45", after="",
) -> str:  # fmt: skip
    axes = "".join(
        f'<Axis{i} AxisName="{axis}" AxisPosition="{position}" AxisUnit="{unit}"/>'
        for i, (axis, position, unit) in enumerate(AXES)
    )
    return f"""<ClassInstance Type="TRTSpectrum" Name="{name}">
<TRTHeaderedClass>
<ClassInstance Type="TRTSpectrumHardwareHeader"><RealTime>30000</RealTime><LifeTime>{live_ms}</LifeTime>
<PulseDensity>28913</PulseDensity></ClassInstance>
<ClassInstance Type="TRTDetectorHeader"><Serial>11_36</Serial><Type>XFlash 430</Type>
<ResponseFunction>0,1</ResponseFunction><ResponseFunction>2,3</ResponseFunction></ClassInstance>
<ClassInstance Type="TRTXrfHeader"><ChassisType>XS-51</ChassisType><ChassisNumber>0032</ChassisNumber>
<Voltage>50</Voltage><Current>199</Current><Anode>{anode}</Anode>
<ExcitationFilter><FilterId>AlTi</FilterId></ExcitationFilter></ClassInstance>
<ClassInstance Type="TRTAxesHeader"><AxesParameter>{axes}</AxesParameter></ClassInstance>
</TRTHeaderedClass>
<ClassInstance Type="TRTSpectrumHeader"><Date>23.3.2021</Date>
<ChannelCount>{len(counts) if channel_count is None else channel_count}</ChannelCount>
<CalibAbs>{calib_abs}</CalibAbs><CalibLin>{calib_lin}</CalibLin></ClassInstance>
<Channels>{",".join(map(str, counts))}</Channels>
{after}</ClassInstance>"""


def spx(*spectra: str, doctype="", end="\r\n") -> bytes:
    text = f"""<?xml version="1.0" encoding="WINDOWS-1252" standalone="yes"?>{doctype}
<TRTSpectrum>
{"".join(spectra)}
</TRTSpectrum>
"""
    return text.replace("\n", end).encode("cp1252")


def examples() -> dict[str, bytes]:
    compact = '<ClassInstance Type="TRTSpectrum"><Channels>0,5</Channels></ClassInstance>'
    return {
        "a.spx": spx(spectrum()),
        "background.spx": spx(spectrum(after=background()), end="\n"),
        "two.spx": spx(compact, compact.replace("0,5", "3,4")),
    }
