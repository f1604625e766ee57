"""feature_extraction_xrf: rebinning, measured patches, scalings, and what is refused."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from max_reference import instance_norm
from transformers import AutoFeatureExtractor, AutoProcessor

from configuration_xrf import XRFMaskedConfig
from feature_extraction_xrf import ROWS_AT_ONCE, SCALINGS, XRFFeatureExtractor

AVAATECH = {"gain_kev": 0.02, "offset_kev": 0.0}
# channels, keV per channel, keV of channel 0
INSTRUMENTS = {
    "avaatech": (2048, 0.02, 0.0),
    "itrax": (2048, 0.01027, -0.0099),
    "m4_tornado": (4096, 0.01, -0.955),
    "epsilon": (4096, 0.00802, -0.0082),
    "coarse": (512, 0.09, 0.013),
}


@dataclass
class MeasuredSpectrum:
    """As much of a spectrum object as the feature extractor reads."""

    counts: np.ndarray
    gain_kev: float | None = 0.02
    offset_kev: float | None = 0.0
    tube_kv: float | None = None


def simulate(name, seed=0):
    """Poisson counts of one instrument: a falling continuum and the K-alpha lines of Ca and Fe."""
    channels, gain_kev, offset_kev = INSTRUMENTS[name]
    energy_kev = offset_kev + gain_kev * np.arange(channels)
    density = 500 * np.exp(-np.clip(energy_kev, 0, None) / 6)
    for line_kev, height in ((3.692, 9000), (6.404, 4000)):
        density += height * np.exp(-0.5 * ((energy_kev - line_kev) / 0.07) ** 2)
    return np.random.default_rng(seed).poisson(density * gain_kev / 0.02)


def overlap_rebin(counts, gain_kev, offset_kev, extractor):
    """Rebinning by the overlap of every native channel with every channel of the grid, written out."""
    lower = offset_kev + gain_kev * (np.arange(len(counts)) - 0.5)
    grid_lower = extractor.energy_kev - extractor.channel_width_kev / 2
    overlap_kev = np.minimum(lower[:, None] + gain_kev, grid_lower + extractor.channel_width_kev) - np.maximum(
        lower[:, None], grid_lower
    )
    return (np.clip(overlap_kev, 0, None) / gain_kev * np.asarray(counts)[:, None]).sum(axis=0)


# Rebinning


def test_two_channels_by_hand():
    extractor = XRFFeatureExtractor(spectrum_length=4, patch_size=1, channel_width_kev=1.0)
    # native channels cover -0.25..0.75 and 0.75..1.75 keV, the grid's -0.5..0.5, 0.5..1.5, 1.5..2.5, 2.5..3.5
    on_grid, outside = extractor.rebin([np.array([8.0, 4.0])], np.array([1.0]), np.array([0.25]))
    np.testing.assert_allclose(on_grid, [[6.0, 2.0 + 3.0, 1.0, 0.0]], atol=1e-12)
    np.testing.assert_allclose(outside, [0.0], atol=1e-12)
    # now 0.25 keV of the first lies below the grid, and half of a grid channel holds a quarter of a native one
    on_grid, outside = extractor.rebin([np.array([8.0, 4.0])], np.array([2.0]), np.array([0.25]))
    np.testing.assert_allclose(on_grid, [[4.0, 3.0 + 0.5, 2.0, 1.5]], atol=1e-12)
    np.testing.assert_allclose(outside, [8.0 * 0.25 / 2], atol=1e-12)


def test_counts_are_conserved_on_any_calibration():
    rng = np.random.default_rng(1)
    for _ in range(200):
        extractor = XRFFeatureExtractor(
            spectrum_length=64, patch_size=8, channel_width_kev=rng.uniform(0.01, 0.5), first_channel_kev=rng.normal()
        )
        counts = rng.poisson(rng.uniform(0.1, 1e4), size=rng.integers(1, 300)).astype(float)
        calibration = np.array([rng.uniform(0.005, 0.3)]), np.array([rng.normal()])
        on_grid, outside = extractor.rebin([counts], *calibration)
        total = counts.sum()
        assert on_grid.min() >= 0 and outside[0] >= -1e-6 * total
        assert abs(on_grid.sum() + outside[0] - total) <= 1e-6 * total
        expected = overlap_rebin(counts, calibration[0][0], calibration[1][0], extractor)
        # an edge within a millionth of a native channel's edge snaps to it
        np.testing.assert_allclose(on_grid[0], expected, atol=4e-6 * max(counts.max(), 1))


@pytest.mark.parametrize("channels", [2048, 1500, 3000])
def test_the_grids_own_calibration_copies_the_counts(channels):
    counts = np.random.default_rng(2).poisson(900.0, size=channels)
    counts[100] = 2_000_000_000
    on_grid, outside = XRFFeatureExtractor().rebin([counts], np.array([0.02]), np.array([0.0]))
    expected = np.zeros(2048)
    expected[: min(channels, 2048)] = counts[:2048]
    np.testing.assert_array_equal(on_grid[0], expected)
    assert outside[0] == counts[2048:].sum()


@pytest.mark.parametrize("first_channel_kev, gain_kev", [(0.0, 0.01), (0.1, 0.02), (-0.96, 0.0105), (0.005, 1 / 3)])
def test_the_grids_own_calibration_copies_the_counts_whatever_it_is(first_channel_kev, gain_kev):
    extractor = XRFFeatureExtractor(channel_width_kev=gain_kev, first_channel_kev=first_channel_kev)
    counts = np.random.default_rng(3).poisson(50.0, size=2048)
    on_grid, outside = extractor.rebin([counts], np.array([gain_kev]), np.array([first_channel_kev]))
    np.testing.assert_array_equal(on_grid[0], counts)
    assert outside[0] == 0


@pytest.mark.parametrize("name", INSTRUMENTS)
@pytest.mark.parametrize("peak_kev", [1.74, 6.404, 15.2])
def test_a_peak_keeps_its_energy(name, peak_kev):
    channels, gain_kev, offset_kev = INSTRUMENTS[name]
    energy_kev = offset_kev + gain_kev * np.arange(channels)
    counts = 1e5 * np.exp(-0.5 * ((energy_kev - peak_kev) / 0.15) ** 2)
    extractor = XRFFeatureExtractor()
    on_grid, _ = extractor.rebin([counts], np.array([gain_kev]), np.array([offset_kev]))
    centroid_kev = (on_grid[0] * extractor.energy_kev).sum() / on_grid[0].sum()
    assert abs(centroid_kev - (counts * energy_kev).sum() / counts.sum()) < 0.001
    assert abs(extractor.energy_kev[on_grid[0].argmax()] - peak_kev) <= max(gain_kev, 0.02)


def test_energy_axis():
    extractor = XRFFeatureExtractor(spectrum_length=4, patch_size=2, channel_width_kev=0.5, first_channel_kev=1.0)
    np.testing.assert_allclose(extractor.energy_kev, [1.0, 1.5, 2.0, 2.5])
    np.testing.assert_allclose(extractor.channel_edges_kev, [0.75, 1.25, 1.75, 2.25, 2.75])


# Batches


@pytest.mark.parametrize("scaling", ["standardize", "sqrt", "log"])
def test_a_ragged_batch_of_instruments_equals_its_singles(scaling):
    extractor = XRFFeatureExtractor(scaling=scaling)
    names = [*INSTRUMENTS, "itrax", "avaatech"]  # twice the same calibration: rebinned together
    spectra = [simulate(name, seed) for seed, name in enumerate(names)]
    tube_kv = [10.0, None, 50.0, 12.0, None, 30.0, float("nan")]
    calibrations = [INSTRUMENTS[name][1:] for name in names]
    batch = extractor(spectra, *zip(*calibrations), tube_kv, return_statistics=True)
    assert batch["input_values"].shape == (7, 2048) and batch["input_values"].dtype == np.float32
    assert batch["attention_mask"].shape == (7, 128) and batch["attention_mask"].dtype == np.int64
    for index, spectrum in enumerate(spectra):
        single = extractor(spectrum, *calibrations[index], tube_kv[index], return_statistics=True)
        for key, value in batch.items():
            np.testing.assert_array_equal(value[index : index + 1], single[key], err_msg=f"{key} of {names[index]}")


@pytest.mark.parametrize("scaling", ["standardize", "sqrt", "log", "channel"])
def test_a_long_batch_equals_its_singles_bit_for_bit(scaling):
    """However many rows are worked on together, and in whatever company."""
    rng = np.random.default_rng(8)
    statistics = {}
    if scaling == "channel":
        statistics = {"channel_mean": rng.uniform(0, 2, 2048), "channel_std": rng.uniform(0.5, 2, 2048)}
    extractor = XRFFeatureExtractor(scaling=scaling, **statistics)
    counts = rng.poisson(30.0, size=(3 * ROWS_AT_ONCE + 5, 2048)).astype(np.float32)
    gain_kev = rng.choice([0.02, 0.01027], len(counts))
    tube_kv = rng.choice([10.0, 30.0, np.nan], len(counts))
    batch = extractor(counts, gain_kev, -0.0099, tube_kv, return_statistics=True)
    on_grid, outside = extractor.rebin(counts, gain_kev, np.full(len(counts), -0.0099))
    for index in range(len(counts)):
        single = extractor(counts[index], gain_kev[index], -0.0099, tube_kv[index], return_statistics=True)
        for key, value in batch.items():
            np.testing.assert_array_equal(value[index : index + 1], single[key])
        expected = overlap_rebin(counts[index], gain_kev[index], -0.0099, extractor)
        np.testing.assert_allclose(on_grid[index], expected, atol=1e-3)
        assert on_grid[index].sum() + outside[index] == pytest.approx(counts[index].sum(dtype=float), rel=1e-12)


def test_one_calibration_serves_a_batch():
    extractor = XRFFeatureExtractor()
    spectra = np.stack([simulate("avaatech", seed) for seed in range(3)])
    batch = extractor(spectra, **AVAATECH, tube_kv=10)
    listed = extractor(list(spectra), gain_kev=[0.02] * 3, offset_kev=np.zeros(3), tube_kv=np.full(3, 10.0))
    for key in batch:
        np.testing.assert_array_equal(batch[key], listed[key])


def test_kinds_of_input_agree():
    extractor = XRFFeatureExtractor()
    counts = simulate("avaatech")
    expected = extractor(counts, **AVAATECH)
    assert expected["input_values"].shape == (1, 2048)
    for same in (counts.tolist(), counts.astype(np.uint32), torch.from_numpy(counts), counts[None], [counts.tolist()]):
        np.testing.assert_array_equal(extractor(same, **AVAATECH)["input_values"], expected["input_values"])


def test_spectrum_objects_bring_their_calibration():
    extractor = XRFFeatureExtractor()
    objects = [
        MeasuredSpectrum(simulate("itrax"), 0.01027, -0.0099, tube_kv=30.0),
        MeasuredSpectrum(simulate("avaatech"), tube_kv=10.0),
        MeasuredSpectrum(simulate("coarse"), 0.09, 0.013, tube_kv=None),
    ]
    expected = extractor(
        [spectrum.counts for spectrum in objects], [0.01027, 0.02, 0.09], [-0.0099, 0.0, 0.013], [30.0, 10.0, None]
    )
    batch = extractor(objects)
    for key in expected:
        np.testing.assert_array_equal(batch[key], expected[key])
        np.testing.assert_array_equal(extractor(objects[1])[key], expected[key][1:2])


def test_torch_tensors_on_request():
    inputs = XRFFeatureExtractor()(simulate("avaatech"), **AVAATECH, return_tensors="pt", return_statistics=True)
    assert inputs["input_values"].dtype == torch.float32 and inputs["attention_mask"].dtype == torch.int64
    assert set(inputs) == {"input_values", "attention_mask", "center", "scale", "outside_counts"}


def test_the_callers_counts_stay_as_they_are():
    counts = simulate("avaatech").astype(np.float64)
    before = counts.copy()
    XRFFeatureExtractor()(counts, **AVAATECH, tube_kv=10.0)
    np.testing.assert_array_equal(counts, before)


# Measured patches


def num_measured(extractor, counts, **calibration):
    mask = extractor(counts, **calibration)["attention_mask"][0]
    number = int(mask.sum())
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < number)  # one range from the bottom
    return number


@pytest.mark.parametrize(
    "tube_kv, expected",
    # patch p begins at 0.32 p - 0.01 keV
    [(10.0, 32), (9.91, 31), (9.9101, 32), (0.1, 1), (50.0, 128), (None, 128), (float("nan"), 128)],
)
def test_patches_above_the_tube_voltage_are_unmeasured(tube_kv, expected):
    assert num_measured(XRFFeatureExtractor(), np.ones(2048), **AVAATECH, tube_kv=tube_kv) == expected
    unlimited = XRFFeatureExtractor(limit_to_tube_kv=False)
    assert num_measured(unlimited, np.ones(2048), **AVAATECH, tube_kv=tube_kv) == 128


@pytest.mark.parametrize(
    "channels, expected",
    # a patch of 16 whole channels; one missing grid channel at the edge is forgiven
    [(1024, 64), (1023, 64), (1022, 63), (1000, 62), (16, 1), (15, 1), (4096, 128)],
)
def test_patches_above_the_instruments_range_are_unmeasured(channels, expected):
    assert num_measured(XRFFeatureExtractor(), np.ones(channels), **AVAATECH) == expected


def test_patches_below_the_instruments_range_are_unmeasured():
    inputs = XRFFeatureExtractor()(np.ones(1000), gain_kev=0.02, offset_kev=3.2)  # 3.19 to 23.19 keV
    np.testing.assert_array_equal(np.flatnonzero(inputs["attention_mask"][0]), np.arange(10, 72))


@pytest.mark.parametrize(
    "lowest_energy_kev, first",
    # patch p begins at 0.32 p - 0.01 keV
    [(0.0, 0), (0, 0), (1e-6, 1), (0.31, 1), (0.310001, 2), (0.6, 2), (0.63, 2), (0.64, 3), (3.51, 11), (40.63, 127)],
)
def test_patches_below_the_lowest_energy_are_unmeasured(lowest_energy_kev, first):
    extractor = XRFFeatureExtractor(lowest_energy_kev=lowest_energy_kev)
    mask = extractor(np.ones(2048), **AVAATECH)["attention_mask"][0]
    np.testing.assert_array_equal(np.flatnonzero(mask), np.arange(first, 128))


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_noise_peak_has_no_influence(scaling):
    """With a lowest energy and a tube voltage, as if the grid held what lies between them only."""
    statistics = {"channel_mean": [3.0] * 2048, "channel_std": [2.0] * 2048} if scaling == "channel" else {}
    extractor = XRFFeatureExtractor(scaling=scaling, lowest_energy_kev=0.6, **statistics)
    calibration = {"gain_kev": [0.0199, 0.02, 0.021], "offset_kev": [-0.1, 0.0, 0.02], "tube_kv": [10.0, 15.0, None]}
    counts = np.stack([simulate("avaatech", seed) for seed in range(3)]).astype(float)
    limited = extractor(counts, **calibration, return_statistics=True)
    noisy = counts.copy()
    noisy[:, :25] += 1e6  # up to 0.53 keV
    changed = extractor(noisy, **calibration, return_statistics=True)
    outside = changed.pop("outside_counts") - limited.pop("outside_counts")
    # of the three only the first begins below the grid: 4.5 of its channels, by 0.0199 keV and the half channel
    np.testing.assert_allclose(outside, [1e6 * (0.09 / 0.0199 + 0.5), 0, 0], atol=1e-3)
    for key in limited:
        np.testing.assert_allclose(limited[key], changed[key], rtol=1e-6)
    for row, (first, last) in enumerate([(2, 32), (2, 47), (2, 128)]):
        np.testing.assert_array_equal(np.flatnonzero(limited["attention_mask"][row]), np.arange(first, last))
        inside = slice(16 * first, 16 * last)
        assert not np.delete(limited["input_values"][row], np.r_[inside]).any()
        own = XRFFeatureExtractor(
            spectrum_length=16 * (last - first), first_channel_kev=0.02 * 16 * first, scaling=scaling,
            **{name: values[inside] for name, values in statistics.items()},
        )  # fmt: skip
        alone = own(counts[row], *(calibration[key][row] for key in ("gain_kev", "offset_kev", "tube_kv")))
        np.testing.assert_allclose(
            alone["input_values"][0], limited["input_values"][row, inside], rtol=1e-5, atol=1e-6
        )
        restored = extractor.inverse(limited["input_values"], limited["center"], limited["scale"])[row, inside]
        on_grid, _ = extractor.rebin(
            counts[row : row + 1], calibration["gain_kev"][row], calibration["offset_kev"][row]
        )
        np.testing.assert_allclose(restored, on_grid[0, inside], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("scaling", ["standardize", "sqrt", "log", "channel"])
def test_unmeasured_channels_are_zero_and_take_no_part_in_the_scaling(scaling):
    statistics = {"channel_mean": [3.0] * 2048, "channel_std": [2.0] * 2048} if scaling == "channel" else {}
    extractor = XRFFeatureExtractor(scaling=scaling, **statistics)
    counts = simulate("avaatech").astype(float)
    limited = extractor(counts, **AVAATECH, tube_kv=10.0, return_statistics=True)
    assert (limited["input_values"][0, 512:] == 0).all() and (limited["input_values"][0, :512] != 0).any()
    counts[512:] = np.random.default_rng(4).poisson(1e5, size=1536)
    changed = extractor(counts, **AVAATECH, tube_kv=10.0, return_statistics=True)
    for key in limited:
        np.testing.assert_array_equal(limited[key], changed[key])
    own = XRFFeatureExtractor(
        spectrum_length=512, scaling=scaling, **{name: values[:512] for name, values in statistics.items()}
    )
    np.testing.assert_allclose(
        own(counts[:512], **AVAATECH)["input_values"], limited["input_values"][:, :512], rtol=1e-6, atol=1e-6
    )


def test_outside_counts_are_reported():
    counts = np.ones(3000)
    inputs = XRFFeatureExtractor()(counts, gain_kev=0.02, offset_kev=-0.2, return_statistics=True)
    np.testing.assert_allclose(inputs["outside_counts"], [10 + 3000 - 2058])


# Scalings

HAND_COUNTS = np.array([1.0, 4.0, 9.0, 2.0])  # mean 4, unbiased variance (9 + 0 + 25 + 4) / 3


@pytest.mark.parametrize(
    "scaling, expected",
    [
        ("standardize", (HAND_COUNTS - 4) / np.sqrt(38 / 3)),
        ("sqrt", np.sqrt([0.25, 1.0, 2.25, 0.5])),
        ("log", np.log([2.0, 5.0, 10.0, 3.0])),
        ("channel", [(0.25 - 0.5) / 1, (1.0 - 0.5) / 2, (2.25 - 2.0) / 0.5, (0.5 - 1.0) / 4]),
    ],
)
def test_scaling_by_hand_and_back(scaling, expected):
    statistics = {}
    if scaling == "channel":
        statistics = {"channel_mean": [0.5, 0.5, 2.0, 1.0], "channel_std": [1.0, 2.0, 0.5, 4.0]}
    extractor = XRFFeatureExtractor(spectrum_length=4, patch_size=2, scaling=scaling, **statistics)
    inputs = extractor(HAND_COUNTS, **AVAATECH, return_statistics=True)
    np.testing.assert_allclose(inputs["input_values"], [expected], rtol=1e-6)
    counts = extractor.inverse(inputs["input_values"], inputs["center"], inputs["scale"])
    np.testing.assert_allclose(counts, [HAND_COUNTS], rtol=1e-5)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_inverse_of_a_batch(scaling):
    rng = np.random.default_rng(5)
    statistics = {}
    if scaling == "channel":
        statistics = {"channel_mean": rng.uniform(0, 2, 2048), "channel_std": rng.uniform(0.5, 2, 2048)}
    extractor = XRFFeatureExtractor(scaling=scaling, **statistics)
    counts = rng.poisson(10.0 ** rng.uniform(1, 5, size=(6, 1)), size=(6, 2048))
    inputs = extractor(counts, **AVAATECH, return_tensors="pt", return_statistics=True)
    restored = extractor.inverse(inputs["input_values"], inputs["center"], inputs["scale"])
    np.testing.assert_allclose(restored, counts, rtol=1e-4, atol=1e-4 * counts.mean())


def test_standardize_is_the_instance_norm_of_max():
    counts = np.stack([simulate("avaatech", seed) for seed in range(4)])
    extractor = XRFFeatureExtractor(scaling="standardize", limit_to_tube_kv=False)
    values = extractor(counts, **AVAATECH, tube_kv=10.0, return_tensors="pt")["input_values"]
    torch.testing.assert_close(values, instance_norm(torch.from_numpy(counts)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scaling", ["standardize", "sqrt", "log"])
def test_a_flat_spectrum_and_a_single_count_stay_finite(scaling):
    extractor = XRFFeatureExtractor(scaling=scaling)
    single = np.zeros(2048)
    single[300] = 1
    values = extractor([np.ones(2048), single], **AVAATECH)["input_values"]
    assert np.isfinite(values).all()
    if scaling == "standardize":
        assert (values[0] == 0).all()
    one_channel = XRFFeatureExtractor(spectrum_length=1, patch_size=1, scaling=scaling)
    assert np.isfinite(one_channel([5.0], **AVAATECH)["input_values"]).all()


def test_sqrt_does_not_depend_on_the_counting_time():
    extractor = XRFFeatureExtractor(scaling="sqrt")
    counts = simulate("avaatech")
    np.testing.assert_allclose(
        extractor(counts, **AVAATECH)["input_values"], extractor(7 * counts, **AVAATECH)["input_values"], rtol=1e-6
    )


# Saving


@pytest.mark.parametrize("scaling", SCALINGS)
def test_save_and_load(scaling, tmp_path):
    config = XRFMaskedConfig(spectrum_length=96, patch_size=8, channel_width_kev=0.04, first_channel_kev=0.5)
    rng = np.random.default_rng(6)
    statistics = {}
    if scaling == "channel":
        statistics = {"channel_mean": rng.uniform(0, 2, 96), "channel_std": rng.uniform(0.5, 2, 96)}
    extractor = XRFFeatureExtractor.for_config(
        config, scaling=scaling, limit_to_tube_kv=False, lowest_energy_kev=0.75, **statistics
    )
    extractor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["scaling"] == scaling and saved["limit_to_tube_kv"] is False
    assert (saved["spectrum_length"], saved["patch_size"]) == (96, 8)
    assert (saved["channel_width_kev"], saved["first_channel_kev"]) == (0.04, 0.5)
    assert saved["lowest_energy_kev"] == 0.75
    config.save_pretrained(tmp_path)
    counts = rng.poisson(40.0, size=(2, 200))
    expected = extractor(counts, 0.03, 0.1, 20.0)
    assert expected["attention_mask"][0].tolist() == [0] + [1] * 11  # patches begin at 0.48, 0.8, ... keV
    import modeling_xrf  # noqa: F401  registers the Auto classes

    for load in (XRFFeatureExtractor, AutoFeatureExtractor, AutoProcessor):
        reloaded = load.from_pretrained(tmp_path)
        assert type(reloaded) is XRFFeatureExtractor
        for key, value in reloaded(counts, 0.03, 0.1, 20.0).items():
            np.testing.assert_array_equal(value, expected[key])


def test_settings_of_before_there_was_a_lowest_energy(tmp_path):
    extractor = XRFFeatureExtractor(first_channel_kev=-0.5)
    extractor.save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    assert settings.pop("lowest_energy_kev") == 0
    file.write_text(json.dumps(settings))
    counts = simulate("m4_tornado")
    inputs = XRFFeatureExtractor.from_pretrained(tmp_path)(counts, 0.01, -0.955)
    assert inputs["attention_mask"][0, :126].all()  # the patches below 0 keV too
    for key, value in extractor(counts, 0.01, -0.955).items():
        np.testing.assert_array_equal(inputs[key], value)


# What is refused


def bad_counts(value, channel=7):
    counts = np.ones((2, 2048))
    counts[1, channel] = value
    return counts


@pytest.mark.parametrize(
    "counts, calibration, message",
    [
        (np.ones(2048), {}, "Spectrum 0 has no energy calibration; supply gain_kev"),
        (np.ones(2048), {"gain_kev": 0.02}, "Spectrum 0 has no energy calibration; supply gain_kev"),
        (np.ones((2, 2048)), {"gain_kev": [0.02, None], "offset_kev": 0.0}, "Spectrum 1 has no energy calibration"),
        (MeasuredSpectrum(np.ones(2048), gain_kev=None), {}, "Spectrum 0 has no energy calibration"),
        (np.ones(2048), {"gain_kev": 0, "offset_kev": 0}, "gain_kev must be positive, but spectrum 0 has 0; check"),
        (
            np.ones((2, 2048)),
            {"gain_kev": [0.02, -0.02], "offset_kev": 0.0},
            "gain_kev must be positive, but spectrum 1 has -0.02; check",
        ),
        (bad_counts(np.nan), AVAATECH, "finite and not negative, but spectrum 1 has nan in channel 7; repair"),
        (bad_counts(np.inf), AVAATECH, "finite and not negative, but spectrum 1 has inf in channel 7; repair"),
        (bad_counts(-3), AVAATECH, "finite and not negative, but spectrum 1 has -3 in channel 7; repair"),
        (np.zeros(2048), AVAATECH, "Spectrum 0 has no counts in the measured range; leave it out"),
        (
            np.r_[np.zeros(600), np.ones(1448)],
            {**AVAATECH, "tube_kv": 10.0},
            "Spectrum 0 has no counts in the measured range",
        ),
        (
            [np.ones(2048), np.ones(100)],
            {"gain_kev": 0.02, "offset_kev": [0.0, 60.0]},
            "Spectrum 1 covers 59.99 to 61.99 keV and so no whole patch of the model's grid, -0.01 to 40.95 keV",
        ),
        (
            np.ones(1000),
            {"gain_kev": 0.02, "offset_kev": 20.0, "tube_kv": 15.0},
            "Spectrum 0 covers 19.99 to 39.99 keV at 15 kV and so no whole patch",
        ),
        (
            np.ones(20),
            {**AVAATECH, "lowest_energy_kev": 0.6},
            "Spectrum 0 covers -0.01 to 0.39 keV and so no whole patch of the model's grid, 0.60 to 40.95 keV",
        ),
        (np.ones(2048), {**AVAATECH, "tube_kv": 0.0}, "tube_kv must be positive, but spectrum 0 has 0; give None"),
        ([], AVAATECH, "There is no spectrum to extract features from"),
        ([[]], AVAATECH, r"Spectrum 0 must be a row of counts, but has shape \(0,\)"),
        (np.ones((2, 3, 4)), AVAATECH, r"Spectrum 0 must be a row of counts, but has shape \(3, 4\)"),
        (np.ones((3, 2048)), {"gain_kev": [0.02] * 2, "offset_kev": 0.0}, r"gain_kev must be one number or one per"),
    ],
)
def test_refused_input(counts, calibration, message):
    settings = {key: value for key, value in calibration.items() if key == "lowest_energy_kev"}
    calibration = {key: value for key, value in calibration.items() if key not in settings}
    with pytest.raises(ValueError, match=message) as info:
        XRFFeatureExtractor(**settings)(counts, **calibration)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"scaling": "cube"}, "scaling must be one of standardize, sqrt, log, channel, but is 'cube'"),
        ({"patch_size": 15}, r"spectrum_length \(2048\) must be a multiple of patch_size \(15\)"),
        ({"scaling": "channel"}, "scaling 'channel' needs channel_mean with 2048 values, one per channel, but got 0"),
        (
            {"scaling": "channel", "channel_mean": [1.0] * 2048, "channel_std": [1.0] * 2000},
            "scaling 'channel' needs channel_std with 2048 values, one per channel, but got 2000",
        ),
        (
            {"scaling": "channel", "channel_mean": [1.0] * 2048, "channel_std": [1.0] * 2047 + [0.0]},
            "channel_std must be positive, but is 0.0 in channel 2047; give 1 where the corpus never varies",
        ),
        (
            {"lowest_energy_kev": -0.1},
            "lowest_energy_kev must lie between 0, no limit, and 40.63 keV, .* begins, but is -0.1; 0.6 is usual",
        ),
        ({"lowest_energy_kev": 40.7}, "lowest_energy_kev must lie between .* but is 40.7"),
        ({"lowest_energy_kev": float("nan")}, "lowest_energy_kev must lie between .* but is nan"),
    ],
)
def test_refused_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        XRFFeatureExtractor(**arguments)


# Real spectra


@pytest.mark.parametrize("name", ["mudrock_light_instrument_a", "mudrock_trace_instrument_b"])
def test_measured_mudrocks_keep_their_counts(name, real_data):
    with np.load(real_data / "labelled" / f"{name}.npz", allow_pickle=False) as file:
        counts = file["counts"] if "counts" in file else file["counts_per_second"]
        calibration = {key: file[key] for key in ("gain_kev", "offset_kev", "tube_kv")}
    extractor = XRFFeatureExtractor(scaling="log")
    total = counts.sum(axis=1)
    on_grid, outside = extractor.rebin(list(counts), calibration["gain_kev"], calibration["offset_kev"])
    np.testing.assert_allclose(on_grid.sum(axis=1) + outside, total, rtol=1e-6)
    assert (np.abs(outside) < 0.01 * total).all()
    inputs = extractor(counts, **calibration, return_statistics=True)
    restored = extractor.inverse(inputs["input_values"], inputs["center"], inputs["scale"])
    measured = np.repeat(inputs["attention_mask"], extractor.patch_size, axis=1).astype(bool)
    np.testing.assert_allclose(restored[measured], on_grid[measured], rtol=1e-4, atol=1e-4)
    assert (restored.sum(axis=1) > 0.95 * total).all()  # what the tube can excite holds nearly all counts


def test_messages_call_spectra_by_the_names_given():
    extractor = XRFFeatureExtractor()
    counts = np.ones((2, 2048))
    counts[1, 7] = np.nan
    with pytest.raises(ValueError, match="spectrum b of core-1 has nan in channel 7"):
        extractor(counts, gain_kev=0.02, offset_kev=0.0, names=["a of core-1", "b of core-1"])
    with pytest.raises(ValueError, match="gain_kev must be positive, but spectrum b has -1"):
        extractor(np.ones((2, 2048)), gain_kev=[0.02, -1], offset_kev=0.0, names=["a", "b"])
