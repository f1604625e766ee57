"""scripts/predict_map.py: maps from scanned spectra with positions and from cubes of counts."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_inference import adapted_regressor, save
from test_pipeline import tiny_regressor

import figures_xrf
from inference_xrf import XRFPredictor

ROOT = Path(__file__).parent.parent
SCRIPT = "predict_map.py"
CALIBRATION = {"gain_kev": 0.02, "offset_kev": -0.01, "tube_kv": 10.0}


@pytest.fixture
def predict_map(call_script):
    return call_script


@pytest.fixture
def drawn(monkeypatch):
    """Arguments with which `plot_map` was called."""
    calls = []
    plot = figures_xrf.plot_map
    monkeypatch.setattr(figures_xrf, "plot_map", lambda *a, **k: calls.append((a, k)) or plot(*a, **k))
    return calls


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models") / "adapted", adapted_regressor())


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    model = tiny_regressor(target_min=[None, None], calibration="standardless")
    return save(tmp_path_factory.mktemp("models") / "plain", model)


@pytest.fixture(scope="module")
def counts():
    """Of a map of 3 rows and 4 columns, two detectors each: `(2, 3, 4, channels)`."""
    rng = np.random.default_rng(3)
    centre = rng.uniform(80, 400, (2, 3, 4, 1))
    return rng.poisson(20 + 3000 * np.exp(-0.5 * ((np.arange(500) - centre) / 6) ** 2))


def direct(folder, counts):
    """Predictions of spectra `(..., channels)`, each array `(...)`."""
    result = XRFPredictor(folder)({"counts": counts.reshape(-1, counts.shape[-1]), **CALIBRATION})
    return {name: values.reshape(counts.shape[:-1]) for name, values in result.items()}


def save_scan(path, counts, x_mm, y_mm, **arrays):
    np.savez(path, counts=counts, x_mm=x_mm, y_mm=y_mm, **{**CALIBRATION, **arrays})
    return path


def positions(step_x=0.1, step_y=0.5, jitter=0.0):
    """x and y `(3, 4)` of the raster's pixels."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:3, :4]
    return [7 + step * i + rng.uniform(-jitter, jitter, i.shape) for step, i in ((step_x, x), (step_y, y))]


def test_scan_in_any_order_with_a_gap_and_two_detectors(predict_map, repository, counts, tmp_path, drawn):
    x, y = positions(jitter=0.02)
    measured = np.ones((2, 3, 4), dtype=bool)
    measured[:, 1, 2] = False  # nothing was measured here
    measured[1, 2, 0] = False  # one detector alone
    order = np.random.default_rng(0).permutation(measured.sum())
    scan = [np.broadcast_to(array, measured.shape)[measured][order] for array in (x, y)]
    source = save_scan(tmp_path / "scan.npz", counts[measured][order], *scan)
    output = tmp_path / "out" / "map.npz"
    code, printed, _ = predict_map(repository, source, "--output", output, "--batch_size", 5)
    assert code == 0 and f"21 spectra predicted, in 11 of 3 x 4 pixels: {output}" in printed
    assert "standardless" not in printed
    arrays = np.load(output)
    np.testing.assert_array_equal(arrays["num_spectra"], measured.sum(0))
    expected = direct(repository, counts)
    assert set(arrays) == {*expected, "num_spectra", "x_mm", "y_mm"}
    for name in set(expected) - {"unfamiliar"}:
        mean = np.where(measured, expected[name], 0).sum(0) / np.where(measured.any(0), measured.sum(0), np.nan)
        np.testing.assert_allclose(arrays[name], mean, rtol=1e-3, atol=1e-3, err_msg=name)  # NaN in the gap too
    unfamiliar = (expected["unfamiliar"] & measured).any(0)
    assert 0 < unfamiliar.sum() < 11
    np.testing.assert_array_equal(arrays["unfamiliar"], unfamiliar)
    assert f"{unfamiliar.sum()} pixels are unfamiliar" in printed
    np.testing.assert_allclose(arrays["x_mm"], 7 + 0.1 * np.arange(4), atol=0.03)
    np.testing.assert_allclose(arrays["y_mm"], 7 + 0.5 * np.arange(3), atol=0.03)
    assert sorted(p.name for p in output.parent.iterdir()) == ["map.npz", "map_CaCO3.png", "map_TOC.png"]
    (path, values, name, x_mm, y_mm), options = drawn[1]
    assert path == output.parent / "map_TOC.png" and name == "TOC (mg/g)" and options == {"first_row_on_top": False}
    np.testing.assert_array_equal(values, arrays["TOC"])
    np.testing.assert_array_equal(x_mm, arrays["x_mm"])


def test_one_target_of_a_wide_table(predict_map, plain, counts, tmp_path):
    x, y = positions()
    table = pd.DataFrame(counts[0].reshape(12, -1), columns=[str(channel) for channel in range(500)])
    table = table.assign(x_mm=x.ravel(), y_mm=y.ravel(), **CALIBRATION)
    table.to_csv(tmp_path / "scan.csv", index=False)
    output = tmp_path / "map.npz"
    assert predict_map(plain, tmp_path / "scan.csv", "--output", output, "--target", "TOC")[0] == 0
    arrays = np.load(output)
    assert set(arrays) == {"TOC", "num_spectra", "x_mm", "y_mm"}
    np.testing.assert_allclose(arrays["TOC"], direct(plain, counts[0])["TOC"], rtol=1e-3, atol=1e-3)
    assert (tmp_path / "map_TOC.png").exists() and not (tmp_path / "map_CaCO3.png").exists()


@pytest.fixture(params=["npy", "npz", "compressed", "floats"])
def cube(request, counts, tmp_path):
    """A cube with a dead pixel, as a file, and the options it needs."""
    cube = counts[0].astype(np.uint16).copy()
    cube[1, 2] = 0
    options = [part for name, value in CALIBRATION.items() for part in (f"--{name}", value)]
    if request.param in ("npy", "floats"):
        path = tmp_path / "cube.npy"
        np.save(path, cube if request.param == "npy" else cube.astype(np.float32))
        return cube, path, [*options, "--pixel_mm", 0.2]
    path = tmp_path / "cube.npz"
    write = np.savez if request.param == "npz" else np.savez_compressed
    write(path, counts=cube, pixel_mm=0.2, **CALIBRATION)
    return cube, path, []


def test_cube(predict_map, plain, counts, cube, tmp_path, drawn):
    cube, path, options = cube
    output = tmp_path / "map.npz"
    code, printed, _ = predict_map(plain, path, "--output", output, "--batch_size", 5, *options)
    assert code == 0 and "11 spectra predicted, in 11 of 3 x 4 pixels" in printed
    assert "These values are standardless" in printed
    arrays = np.load(output)
    expected = direct(plain, counts[0])
    for name in ("CaCO3", "TOC"):
        expected[name][1, 2] = np.nan
        np.testing.assert_allclose(arrays[name], expected[name], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(arrays["x_mm"], [0, 0.2, 0.4, 0.6], rtol=1e-6)
    np.testing.assert_allclose(arrays["y_mm"], [0, 0.2, 0.4], rtol=1e-6)
    assert drawn[0][1] == {"first_row_on_top": True}


def test_cube_without_pixel_size_and_with_impossible_counts(predict_map, refuses, plain, counts, tmp_path):
    cube = counts[0].copy()
    cube[2, 1, 7] = -4
    np.savez(tmp_path / "cube.npz", counts=cube, **CALIBRATION)
    arguments = [plain, tmp_path / "cube.npz", "--output", tmp_path / "map.npz"]
    refuses(f"{tmp_path / 'cube.npz'}, row 2, column 1: counts must not be negative", *arguments)
    code, printed, _ = predict_map(*arguments, "--on_error", "skip")
    assert code == 0 and "1 rejected" in printed
    assert list(pd.read_csv(tmp_path / "map.rejected.csv")["index"]) == [9]
    arrays = np.load(tmp_path / "map.npz")
    assert np.argwhere(np.isnan(arrays["TOC"])).tolist() == [[2, 1]] and "x_mm" not in arrays


def test_refusals(refuses, plain, counts, tmp_path):
    x, y = positions()
    scan = save_scan(tmp_path / "scan.npz", counts[0].reshape(12, -1), x.ravel(), y.ravel())
    output = ["--output", tmp_path / "map.npz"]
    refuses("must be named .npz, but is", plain, scan, "--output", tmp_path / "map.csv")
    refuses("no target Fe; choose from CaCO3, TOC", plain, scan, *output, "--target", "Fe")
    refuses("pixel_mm must be positive, but is 0", plain, scan, *output, "--pixel_mm", 0)
    np.savez(tmp_path / "nowhere.npz", counts=counts[0].reshape(12, -1), x_mm=x.ravel(), **CALIBRATION)
    refuses("Spectrum 0 has no y_mm; a map needs", plain, tmp_path / "nowhere.npz", *output)
    far = save_scan(tmp_path / "far.npz", counts[0].reshape(12, -1), x.ravel(), [*y.ravel()[:-1], 9e5])
    refuses("give the step of the scan as --pixel_mm", plain, far, *output)
    np.save(tmp_path / "flat.npy", counts[0, 0])
    refuses("must be numbers (rows, columns, channels) in C order", plain, tmp_path / "flat.npy", *output)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(counts[0]))
    refuses("in Fortran order; save numpy.ascontiguousarray", plain, tmp_path / "fortran.npy", *output)
    np.save(tmp_path / "cut.npy", counts[0])
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-9])
    options = ["--gain_kev", 0.02, "--offset_kev", 0]
    refuses("cut.npy is cut off in row 2 of 3", plain, tmp_path / "cut.npy", *output, *options)
    (tmp_path / "text.npy").write_text("no array")
    refuses("text.npy must be a plain NumPy array", plain, tmp_path / "text.npy", *output)
    np.savez(tmp_path / "cube.npz", counts=counts[0], **CALIBRATION)
    cube = tmp_path / "cube.npz"
    refuses("is the cube itself", plain, cube, "--output", cube, "--overwrite")
    (tmp_path / "map_TOC.png").write_text("earlier work")
    refuses(f"The figure {tmp_path / 'map_TOC.png'} exists", plain, scan, *output)


@pytest.mark.parametrize("jitter", [0.0, 0.04])
def test_raster_of_a_scan_with_missing_columns(script, jitter):
    rng = np.random.default_rng(0)
    row, column = (index.ravel() for index in np.mgrid[:30, :40])
    kept = ~np.isin(column, [3, 17, 18]) & (rng.random(1200) > 0.1)
    kept[[0, -1]] = True
    places = np.stack([5 - 0.25 * 39 + 0.25 * column, 100 + 0.2 * row], axis=1)
    places += rng.uniform(-jitter, jitter, places.shape)
    raster = script.find_raster(places[kept], None)
    assert raster.shape == (30, 40)
    np.testing.assert_array_equal(raster.row, row[kept])
    np.testing.assert_array_equal(raster.column, column[kept])
    np.testing.assert_allclose(np.diff(raster.x_mm), 0.25, atol=0.003)
    np.testing.assert_allclose(np.diff(raster.y_mm), 0.2, atol=0.003)


def test_raster_of_an_oblique_scan_has_square_pixels_of_its_step(script):
    row, column = (index.ravel() for index in np.mgrid[:20, :20])
    angle = 0.3
    places = np.stack([column * np.cos(angle) - row * np.sin(angle), column * np.sin(angle) + row * np.cos(angle)], 1)
    raster = script.find_raster(0.5 * places, None)
    np.testing.assert_allclose(np.diff(raster.x_mm), 0.5)
    np.testing.assert_allclose(np.diff(raster.y_mm), 0.5)
    assert np.abs(raster.x_mm[raster.column] - 0.5 * places[:, 0]).max() <= 0.25 + 1e-9
    assert np.abs(raster.y_mm[raster.row] - 0.5 * places[:, 1]).max() <= 0.25 + 1e-9
    coarse = script.find_raster(0.5 * places, 2.0)
    np.testing.assert_allclose(np.diff(coarse.x_mm), 2.0)


def test_raster_of_a_line_and_of_a_point(script):
    line = script.find_raster(np.stack([np.full(6, 3.0), np.arange(6) * 1.5], 1), None)
    assert line.shape == (6, 1) and list(line.y_mm) == [0, 1.5, 3, 4.5, 6, 7.5] and list(line.x_mm) == [3]
    point = script.find_raster(np.array([[3.0, 4.0], [3.0, 4.0]]), None)
    assert point.shape == (1, 1) and list(point.row) == [0, 0]


MEASURE_PEAKS = """
import resource, runpy, sys
model, *inputs = sys.argv[1:]
for source in inputs:
    sys.argv = ["predict_map.py", model, source, "--output", source + ".npz"]
    runpy.run_path("scripts/predict_map.py", run_name="__main__")
    print("PEAK_KIB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_rows(plain, counts, tmp_path):
    """A cube of 46 MiB needs no more than one of 5."""
    rows = np.tile(counts[0].astype(np.float64), (1, 5, 4))  # (3, 20, 2000)
    for copies in (5, 50):
        np.savez(tmp_path / f"{copies}.npz", counts=np.tile(rows, (copies, 1, 1)), **CALIBRATION)
    command = [sys.executable, "-c", MEASURE_PEAKS, plain, tmp_path / "5.npz", tmp_path / "50.npz"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert np.load(tmp_path / "50.npz.npz")["TOC"].shape == (150, 20)
    small, large = [int(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("PEAK_KIB")]
    assert (large - small) / 1024 < 20, f"{small / 1024:.0f} MiB for 15 rows, {large / 1024:.0f} MiB for 150"


def test_points_of_a_real_map(predict_map, plain, real_data, tmp_path):
    """A breadboard scan of 25 x 25 points, whose two detectors share a pixel."""
    scan = np.load(real_data / "unlabelled" / "pixl_breadboard_map.npz")
    point = scan["point"] - scan["point"].min()
    arrays = {name: scan[name] for name in ("gain_kev", "offset_kev", "tube_kv", "detector")}
    source = save_scan(tmp_path / "scan.npz", scan["counts"], point % 25 * 0.12, point // 25 * 0.12, **arrays)
    assert predict_map(plain, source, "--output", tmp_path / "map.npz")[0] == 0
    arrays = np.load(tmp_path / "map.npz")
    assert arrays["TOC"].shape == (25, 25) and (arrays["num_spectra"] == 2).all()
    assert np.isfinite(arrays["TOC"]).all() and arrays["TOC"].std() > 0
