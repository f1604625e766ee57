"""GSECARS `.mca` files that a test writes: one or two detector elements."""

COUNTS = ((0, 0), (1, 0), (12, 9), (40, 33), (8, 11), (2, 1))
HEADER = {
    "DATE": "Jan 30, 2013 15:25:17.766",
    "REAL_TIME": "120.011093 120.004974",
    "LIVE_TIME": "96.360748 96.160698",
    "CAL_OFFSET": "-1.068655e-02 -9.660292e-003",
    "CAL_SLOPE": "1.465549e-02 1.463605e-02",
    "CAL_QUAD": "0.000000e+00 0.000000e+00",
    "ROIS": "1 1",
    "ROI_0_LEFT": "1 2",
    "ROI_0_RIGHT": "3 4",
    "ROI_0_LABEL": "Ca Ka &  Ti Ka & ",
}
ENVIRONMENT = (
    'ENVIRONMENT: 13BMA:E:Energy.VAL="35000.0000" (Mono Energy)',
    'ENVIRONMENT: 13BMD:m81.VAL="131.3602" (Sample Stage Y (vert))',
    'ENVIRONMENT: 13IDC:IP="  V9   " (I0 input)',
)


def content(counts=COUNTS, num_elements=2, num_channels=None, end="\n", **changes) -> bytes:
    """One file; `changes` are header values by key, `None` leaves the line out."""
    num_channels = len(counts) if num_channels is None else num_channels
    lines = ["VERSION:    3.1", f"ELEMENTS:   {num_elements}", f"CHANNELS:   {num_channels}"]
    lines += [f"{key}: {value}" for key, value in (HEADER | changes).items() if value is not None]
    rows = [" " + " ".join(map(str, row)) for row in counts]
    return (end.join([*lines, *ENVIRONMENT, "DATA: ", *rows]) + end).encode()


def one_element(**changes) -> bytes:
    """One element; each header value keeps its first part."""
    first = {key: value.split()[0] for key, value in HEADER.items() if key not in ("DATE", "ROI_0_LABEL")}
    first["ROI_0_LABEL"] = "Ca Ka & "
    return content([row[:1] for row in COUNTS], 1, **(first | changes))


def examples() -> dict[str, bytes]:
    return {
        "two_elements.mca": content(),
        "one_element.mca": one_element(end="\r\n"),
        "curved.mca": content(CAL_QUAD="2.0e-06 -3.0e-06"),
    }
