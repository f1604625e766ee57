"""S1PXRF text exports that a test writes."""

HEADER = (
    "Bruker AXS Handheld Inc. S1PXRF Spectrum ",
    'Label,"MUD-1"',
    "Duration Time,60.5",
    "Live Time,58.25",
    "HV DAC,105",
    "HV ADC,15.000000",
    "Filament ADC,25.0",
    "Filter,2",
    "eV per channel,19.8374",
)


def s1pxrf(counts=(0, 7, 3, 4), header=HEADER, num_channels=None, valid_counts=None, end="\r", quote='"') -> bytes:
    lines = [*header]
    if valid_counts is not None:
        lines.append(f'Valid Accumulated Counts,"{valid_counts}"')
    lines += [f"Number of Channels,{num_channels or len(counts)}", "Channel#,Intensity"]
    lines += [f"{channel},{quote}{count}{quote}" for channel, count in enumerate(counts)]
    return (end.join(lines) + end).encode("latin-1")


def examples() -> dict[str, bytes]:
    decimal_comma = [line.replace("58.25", '"58,25"') for line in HEADER]
    return {
        "a.CSV": s1pxrf(valid_counts=14),
        "lf.csv": s1pxrf(end="\n", quote=""),
        "crlf.csv": s1pxrf(end="\r\n", header=decimal_comma),
    }
