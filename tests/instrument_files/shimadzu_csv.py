"""Shimadzu profile CSV files that a test writes: two analysis channels, of which one or both have points."""

COUNTS_NA = (0, 1, 7, 50, 24, 3)
COUNTS_U = (2, 9, 31, 4)


def condition(name, tube_kv=50, timing="Live -  959", filter_name="Al") -> str:
    return f"{name:<21} Rh {tube_kv} 1000-Auto {filter_name}  0 - 20    0.8 - 1.2   {timing}    6"


def profile(name, counts, step=0.01, start=0.0, points=None, end=None) -> list[str]:
    end = start + step * len(counts) if end is None else end
    return [
        "Channel_info_start",
        f"Channel : {name}",
        f"Points : {len(counts) if points is None else points}",
        f"Range : {start:.6f} - {end:.6f}",
        f"Step : {step:.6f}",
        "Channel_info_end",
        *map(str, counts),
    ]


CONDITIONS = (condition("Na"), condition("U", 15, "Real -  100", "----"))


def content(profiles, conditions=CONDITIONS, end="\n") -> bytes:
    lines = [
        "Sample    : filter 02f",
        "Operator  : somebody",
        "Comment  : ",
        "Date       : 2020-10-13 13:17:08",
        "",
        "Mesurement Condition",
        "-" * 40,
        "Instrument : 700HS2   Atmosphere : Vac.   Collimator : 10(mm)   Spin : No",
        "-" * 40,
        "Analyte               TG kV   uA      FI Acq.(keV)  Anal.(keV)  Time(sec)     DT(%)",
        "-" * 40,
        *conditions,
        "",
        "<Profile>",
        *profiles,
        "",
        "Qualitative Result",
        "Element :  Ca, Fe",
    ]
    return (end.join(f'"{line}",' for line in lines) + end).encode()


def examples() -> dict[str, bytes]:
    return {
        "one_profile.csv": content(profile("Na", COUNTS_NA) + profile("U", (), end=0.0)),
        "two_profiles.csv": content(profile("Na", COUNTS_NA) + profile("U", COUNTS_U, step=0.02), end="\r\n"),
    }
