"""A tree as MAX's dataset has it, which a test writes."""

import numpy as np

HEADER = "dirname,composite_id,cps,core,composite_depth_mm,section_depth_mm,filename,section\n"


def counts() -> np.ndarray:
    """Counts of the three spectra `(3, 2048)`."""
    return np.random.default_rng(0).poisson(20, (3, 2048))


def write_max_tree(folder, targets=None) -> np.ndarray:
    """Write three spectra, two in `info.csv` and one in `val.csv`, and return their counts."""
    (folder / "spe").mkdir(parents=True)
    for i, row in enumerate(counts()):
        (folder / "spe" / f"{i}.csv").write_text("\n".join(f"{count}.0" for count in row) + "\n")
    rows = [f"{i}.csv,id_{i},105000,PS75-056-1,{10 * i}.0,{10 * i},file {i},0\n" for i in range(3)]
    (folder / "info.csv").write_text(HEADER + "".join(rows[:2]))
    (folder / "val.csv").write_text(HEADER + rows[2])
    if targets is not None:
        (folder / "target").mkdir()
        for i, target in enumerate(targets):
            (folder / "target" / f"{i}.csv").write_text(str(target))
    return counts()
