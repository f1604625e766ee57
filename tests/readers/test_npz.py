"""NumPy archives: what they hold arrives, and an archive that claims or hides too much is refused before it costs."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from instrument_files.npz import archive, examples

from dataset_builder import SpectrumFileError, iter_spectra, read_spectra


def write_npz(path, **changes):
    path.write_bytes(archive(**changes))
    return path


def test_npz(tmp_path):
    first, second = read_spectra(write_npz(tmp_path / "a.npz", operator=np.array(["Ada", ""])))
    np.testing.assert_array_equal(first.counts, [1, 2, 3])
    np.testing.assert_array_equal(second.counts, [4, 5, 6, 7])
    assert (first.gain_kev, first.offset_kev, first.sample, first.anode) == (0.01, -0.9, "a", "Mo")
    assert (first.live_time_s, second.live_time_s, second.tube_kv) == (10.0, None, 50.0)
    assert first.targets == {"Ca": 1.5, "Ba": 0.2}  # 0 means not determined
    assert second.targets == {"Fe": 2.5}
    assert second.target_units == {"Fe": "wt%"}
    assert (first.metadata, second.metadata) == ({"operator": "Ada"}, {})


def test_npz_with_rates_and_oxides_by_computation(tmp_path):
    path = write_npz(
        tmp_path / "a.npz",
        counts=None,
        counts_per_second=np.array([[0.5, 1.5], [2.0, 0.0]]),
        num_channels=None,
        elements=None,
        weight_percent=None,
        sample=None,
        point=np.array([7, 8]),
        oxides=np.array(["CaO_%", "FeO-T_%"]),
        weight_percent_by_fundamental_parameters=np.array([[10.0, 0.0], [0.0, 20.0]]),
    )
    first, second = read_spectra(path)
    assert first.metadata == {"counts_unit": "counts per second", "point": "7"}
    assert (first.sample, first.targets, second.targets) == ("point 7", {"CaO": 10.0}, {"FeO-T": 20.0})
    assert first.target_units == {"CaO": "wt% (fundamental parameters)"}


def test_archives_are_known_by_content_and_by_any_order_of_bytes(tmp_path):
    for name, content in examples().items():
        (tmp_path / name).with_suffix(".dat").write_bytes(content)
    compressed, fortran, plain, rates = (
        [spectrum.counts.tolist() for spectrum in read_spectra(path)] for path in sorted(tmp_path.iterdir())
    )
    assert compressed == fortran == plain == [[1, 2, 3], [4, 5, 6, 7]]
    assert rates == [[0.5, 1.5], [2, 0]]


def test_rows_are_read_in_blocks(tmp_path):
    counts = np.random.default_rng(0).poisson(3, (5000, 2048)).astype(np.int32)  # 39 MiB, ten blocks
    np.savez(tmp_path / "a.npz", counts=counts)
    tracemalloc.start()
    for row, spectrum in enumerate(iter_spectra(tmp_path / "a.npz")):
        assert row % 500 or np.array_equal(spectrum.counts, counts[row])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert row == 4999
    assert peak < 2**24, "the block before, the present one and zipfile's copy of it"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": None}, "counts or counts_per_second must be there"),
        ({"counts": np.ones(4)}, r"shape \(spectra, channels\)"),
        ({"counts": np.ones((1, 70_000))}, "at most 65536 channels"),
        ({"counts": np.ones((2, 0))}, r"shape \(spectra, channels\)"),
        ({"counts": np.array([["a", "b"]])}, "counts must hold numbers; found <U1"),
        ({"gain_kev": np.ones(3)}, "gain_kev must have one value a spectrum"),
        ({"gain_kev": np.array(["a", "b"])}, "gain_kev must hold numbers; found <U1"),
        ({"gain_kev": np.array([0.01, -0.02])}, "row 1: gain_kev must be positive; b has -0.02"),
        ({"num_channels": np.array([3, 9])}, "row 1: num_channels must lie between 1 and 4; found 9"),
        ({"num_channels": np.array([3, np.nan])}, "row 1: num_channels must lie between 1 and 4; found nan"),
        ({"anode_z": np.array([45, 200])}, "row 1: anode_z must be a whole number from 1 to 107; found '200'"),
        ({"weight_percent": np.ones((2, 3))}, "weight_percent must have shape"),
        ({"weight_percent": np.array([["1"] * 4] * 2)}, "weight_percent must hold numbers"),
        ({"counts": np.array([[0, 0, 0, 5], [1, 1, 1, 1]])}, "row 0: .*all its channels are zero"),
        ({"counts": np.array([[1, 1, np.inf, 5], [1, 1, 1, 1]])}, "row 0: counts must be finite"),
        ({"counts": np.array([[1, 1, 1, 5], [1, 1, 1e15, 1]])}, "row 1: counts must be plausible"),
        ({"sample": np.array(["a", None], dtype=object)}, "plain arrays"),
        ({"extra": np.zeros(2, "i4,f4")}, "plain arrays"),
    ],
)
def test_bad_npz_is_refused(tmp_path, changes, message):
    with pytest.raises(SpectrumFileError, match=message):
        read_spectra(write_npz(tmp_path / "a.npz", **changes))


def test_truncated_npz_is_refused(tmp_path):
    path = write_npz(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(SpectrumFileError, match="complete"):
        read_spectra(path)


def test_a_bad_row_does_not_cost_the_others(tmp_path):
    rejected = []
    path = write_npz(tmp_path / "a.npz", num_channels=np.array([9, 4]))
    assert [spectrum.sample for spectrum in iter_spectra(path, on_reject=rejected.append)] == ["b"]
    assert [error.place for error in rejected] == ["row 0"]


def write_member(path, header: str, data: bytes, compression=zipfile.ZIP_DEFLATED):
    """An archive whose only array has this header and these data."""
    stream = io.BytesIO()
    text = header.ljust(118).encode() + b"\n"
    stream.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("counts.npy", stream.getvalue())
    return path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 2048)}", "declares 16384000000 bytes but the"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -8)}", "declares 64 bytes|must have shape|complete"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1, 8)}", "plain arrays"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (1, 8)", "complete"),
        ("[" * 100, "complete"),
    ],
)
def test_lying_headers_are_refused(tmp_path, header, message):
    with pytest.raises(SpectrumFileError, match=message):
        read_spectra(write_member(tmp_path / "a.npz", header, bytes(64)))


def test_archive_that_unpacks_to_a_thousand_times_its_size_costs_little(tmp_path):
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (4096, 65536)}"
    path = write_member(tmp_path / "a.npz", header, bytes(2**28))
    assert path.stat().st_size < 2**19
    tracemalloc.start()
    with pytest.raises(SpectrumFileError, match="row 0: .*all its channels are zero"):
        read_spectra(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**25


def test_other_compressions_are_refused(tmp_path):
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 8)}"
    with pytest.raises(SpectrumFileError, match="written by numpy.savez"):
        read_spectra(write_member(tmp_path / "a.npz", header, bytes(64), zipfile.ZIP_LZMA))


def test_genuine_archives(real_data):
    for path, number in (("unlabelled/m4_tornado_elements_and_glass.npz", 343), ("unlabelled/pixl_beaujeu.npz", 450)):
        assert len(read_spectra(real_data / path)) == number
    for spectrum in read_spectra(real_data / "labelled" / "mudrock_light_instrument_a.npz"):
        assert 0 < spectrum.targets["Ca"] < 40
