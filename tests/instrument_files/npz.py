"""NumPy archives that a test writes."""

import io

import numpy as np


def archive(compressed=False, **changes) -> bytes:
    """Two spectra with references, or the same with some arrays changed; `None` leaves an array out."""
    arrays = {
        "counts": np.array([[1, 2, 3, 0], [4, 5, 6, 7]], np.int32),
        "gain_kev": np.array([0.01, 0.02]),
        "offset_kev": np.array([-0.9, 0.0]),
        "live_time_s": np.array([10.0, np.nan]),
        "tube_kv": np.array(50.0),
        "sample": np.array(["a", "b"]),
        "num_channels": np.array([3, 4]),
        "elements": np.array(["Ca", "Fe", "Ba", "Ba"]),
        "weight_percent": np.array([[1.5, 0, 0, 0.2], [0, 2.5, np.nan, 0]]),
        "anode_z": np.array([42.0, 45.0]),
    }
    arrays = {name: array for name, array in (arrays | changes).items() if array is not None}
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def examples() -> dict[str, bytes]:
    fewer = dict.fromkeys(("offset_kev", "live_time_s", "tube_kv", "elements", "weight_percent", "anode_z"))
    rates = {"counts": None, "counts_per_second": np.array([[0.5, 1.5], [2.0, 0.0]]), "num_channels": None}
    return {
        "plain.npz": archive(**fewer),
        "compressed.npz": archive(compressed=True, **fewer, operator=np.array(["Ada", "Ben"])),
        "rates.npz": archive(**fewer | rates, point=np.array([7, 8])),
        "fortran.npz": archive(**fewer, counts=np.asfortranarray([[1, 2, 3, 0], [4, 5, 6, 7]])),
    }
