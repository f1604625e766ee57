"""Figures are whole PNG files of a known size that show the data they were given, and nothing they were not."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from synthetic_spectrum import synthetic

import figures_xrf
from attribution_xrf import LineAttribution
from evaluation_xrf import regression_metrics
from figures_xrf import (
    DPI,
    SHADE,
    element_lines,
    plot_attribution,
    plot_embeddings,
    plot_map,
    plot_parity,
    plot_profile,
    plot_reconstructions,
    plot_residuals,
    plot_samples,
    plot_spectra,
    plot_training_curves,
)

NUM_CHANNELS, NUM_PATCHES = 512, 32
ENERGY_KEV = (np.arange(NUM_CHANNELS) + 0.5) * 0.02


@pytest.fixture
def drawn(monkeypatch):
    """Figures in the order they were saved, for what a PNG's pixels cannot tell."""
    figures = []
    save = figures_xrf._save

    def save_and_keep(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(figures_xrf, "_save", save_and_keep)
    return figures


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return np.asarray(image.convert("RGB"))


def spectra_with_peaks(line_kevs, num_spectra=2):
    peaks = sum(np.exp(-0.5 * ((ENERGY_KEV - line_kev) / 0.06) ** 2) for line_kev in line_kevs)
    return np.tile(0.1 + peaks, (num_spectra, 1)) * np.arange(1, num_spectra + 1)[:, None]


def draw(path, originals, reconstructions=None, masks=None, **options):
    reconstructions = originals * 0.9 if reconstructions is None else reconstructions
    masks = np.tile(np.arange(NUM_PATCHES) % 2, (len(originals), 1)) if masks is None else masks
    titles = [f"spectrum {row}" for row in range(len(originals))]
    plot_reconstructions(path, ENERGY_KEV, originals, reconstructions, masks, titles, **options)
    return pixels(path)


def named_lines(figure):
    return [text.get_text() for text in figure.axes[0].texts if text.get_rotation() == 90]


def test_element_lines_are_the_tabulated_energies_in_order():
    lines = dict(element_lines(0, 41))
    # Bearden (1967), weighted over K-alpha 1 and 2, to 10 eV
    assert lines["Si Kα"] == pytest.approx(1.740, abs=0.01)
    assert lines["Ca Kα"] == pytest.approx(3.691, abs=0.01)
    assert lines["Fe Kα"] == pytest.approx(6.399, abs=0.01)
    assert lines["Fe Kβ"] == pytest.approx(7.058, abs=0.01)
    assert lines["Rh Lα"] == pytest.approx(2.696, abs=0.01)
    assert "Fe Lα" not in lines and "Na Kβ" not in lines

    within = element_lines(3.5, 4.1, elements=["Fe", "Ca"])
    assert [label for label, _ in within] == ["Ca Kα", "Ca Kβ"]
    energies = [energy_kev for _, energy_kev in element_lines(0, 41)]
    assert energies == sorted(energies)


@pytest.mark.parametrize("num_spectra", [1, 3])
def test_reconstruction_figure_has_the_expected_size_and_shows_the_data(tmp_path, num_spectra):
    originals = spectra_with_peaks([3.69, 6.40], num_spectra)
    image = draw(tmp_path / "a.png", originals)
    assert image.shape == (round((0.9 + 2.1 * num_spectra) * DPI), 9 * DPI, 3)
    np.testing.assert_array_equal(draw(tmp_path / "b.png", originals), image)
    changed = originals * 0.9
    changed[0, 16:32] += 0.5  # one masked patch
    assert not np.array_equal(draw(tmp_path / "c.png", originals, changed), image)


def test_masked_patches_are_shaded_in_proportion(tmp_path):
    originals = spectra_with_peaks([3.69])

    def share_shaded(num_masked):
        masks = np.zeros((2, NUM_PATCHES))
        masks[:, :num_masked] = 1
        image = draw(tmp_path / "a.png", originals, masks=masks)
        shade = np.round(np.array(to_rgb(SHADE)) * 255).astype(int)
        return np.mean(np.all(np.abs(image.astype(int) - shade) <= 1, axis=-1))

    none, quarter, half = share_shaded(0), share_shaded(8), share_shaded(16)
    assert none < 0.005  # the sample in the legend
    assert half - none == pytest.approx(2 * (quarter - none), rel=0.05)


def test_unmeasured_patches_are_neither_drawn_nor_in_the_range(tmp_path, drawn):
    originals = spectra_with_peaks([3.69])
    measured = np.zeros((2, NUM_PATCHES))
    measured[:, 2:20] = 1
    image = draw(tmp_path / "a.png", originals, attention_mask=measured)
    assert drawn[0].axes[0].get_xlim() == pytest.approx((2 * 16 * 0.02, 20 * 16 * 0.02))

    noisy = originals.copy()
    noisy[:, 20 * 16 :] = 1e6
    noisy_reconstructions = originals * 0.9
    noisy_reconstructions[:, : 2 * 16] = -1e6
    again = draw(tmp_path / "b.png", noisy, noisy_reconstructions, attention_mask=measured)
    np.testing.assert_array_equal(again, image)


def test_the_reconstruction_is_drawn_over_masked_channels_only(tmp_path, drawn):
    originals = spectra_with_peaks([3.69], 1)
    masks = np.zeros((1, NUM_PATCHES))
    masks[0, [3, 4, 9]] = 1
    draw(tmp_path / "a.png", originals, masks=masks)
    original, reconstruction = drawn[0].axes[0].lines[:2]
    masked = np.repeat(masks[0] == 1, 16)
    np.testing.assert_array_equal(original.get_ydata(), originals[0])
    np.testing.assert_array_equal(np.isfinite(reconstruction.get_ydata()), masked)
    np.testing.assert_allclose(reconstruction.get_ydata()[masked], 0.9 * originals[0, masked])


def test_lines_are_named_where_there_are_peaks(tmp_path, drawn):
    draw(tmp_path / "a.png", spectra_with_peaks([1.740, 3.690, 4.509, 6.400]))
    assert named_lines(drawn[0]) == ["Si Kα", "Ca Kα", "Ti Kα", "Fe Kα"]
    noise = np.random.default_rng(0).poisson(1e4, (2, NUM_CHANNELS)) / 1e4 + 5 * (ENERGY_KEV < 0.3)
    draw(tmp_path / "b.png", noise)
    assert named_lines(drawn[1]) == []


def test_names_do_not_overlap_on_real_spectra(tmp_path, drawn, real_data):
    with np.load(real_data / "labelled" / "mudrock_trace_instrument_a.npz", allow_pickle=False) as spectra:
        counts, gain_kev = spectra["counts"][:3], spectra["gain_kev"][0]
    spectra, energy_kev = np.log1p(counts), np.arange(2048) * gain_kev
    titles = ["a", "b", "c"]
    plot_reconstructions(tmp_path / "a.png", energy_kev, spectra, spectra, np.zeros((3, 128)), titles)
    names = [text for text in drawn[0].axes[0].texts if text.get_rotation() == 90]
    extents = [Text.get_window_extent(name) for name in names]  # of the words, without their leader lines
    boxes = sorted((extent.x0, extent.x1) for extent in extents)
    assert {"Fe Kα", "Rb Kα", "Sr Kα"} <= set(named_lines(drawn[0]))
    assert all(right <= left + 1 for (_, right), (left, _) in zip(boxes, boxes[1:]))


def test_parity_plot_shows_the_numbers_bars_and_the_one_to_one_line(tmp_path, drawn):
    references = np.array([1.0, 3.0, 5.0, 7.0, np.nan])
    predictions = np.array([2.0, 2.0, 5.0, 9.0, 100.0])
    deviations = np.array([0.5, 0.25, 0.5, 1.0, 50.0])
    path = tmp_path / "a.png"
    plot_parity(path, references, predictions, "CaCO3", "wt%", standard_deviation=deviations)
    assert pixels(path).shape == (round(4.9 * DPI), round(4.6 * DPI), 3)

    (axes,) = drawn[0].axes
    np.testing.assert_array_equal(axes.collections[-1].get_offsets(), np.c_[references, predictions][:4])
    assert axes.texts[0].get_text() == "n = 4\nR² = 0.700\nRMSE = 1.22 wt%\nbias = +0.50 wt%"
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_ylim()[0] <= 1.0 and 10.0 <= axes.get_ylim()[1] < 20  # holds the bars, not the unlabelled row
    segments = axes.collections[0].get_segments()
    np.testing.assert_allclose(segments[3], [[7, 8], [7, 10]])
    box = axes.get_window_extent()
    assert box.width == pytest.approx(box.height, rel=0.01)
    assert drawn[0].get_supxlabel() == "laboratory CaCO3 (wt%)"
    assert drawn[0].get_supylabel() == "predicted CaCO3 (wt%)"


def test_parity_plot_sets_baselines_beside_the_model_on_one_scale(tmp_path, drawn):
    rng = np.random.default_rng(0)
    references = rng.uniform(0, 10, 30)
    predictions = {"fine-tuned": references + rng.normal(0, 0.5, 30), "mean": np.full(30, references.mean())}
    given = regression_metrics([2.0, 4.0, 7.0], [1.0, 4.0, 6.0])
    groups = np.repeat(["core 1", "core 2", "core 3"], 10)
    path = tmp_path / "a.png"
    plot_parity(path, references, predictions, "TOC", "wt%", metrics={"mean": given}, groups=groups)
    model, mean = drawn[0].axes
    assert [model.get_title(), mean.get_title()] == ["fine-tuned", "mean"]
    assert model.get_xlim() == mean.get_xlim() == model.get_ylim() == mean.get_ylim()
    expected = regression_metrics(predictions["fine-tuned"], references)
    assert f"R² = {expected['r2']:.3f}" in model.texts[0].get_text()
    assert mean.texts[0].get_text().startswith("n = 3\n")  # the numbers given, not those of the points
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["core 1", "core 2", "core 3"]
    assert len({tuple(points.get_facecolor()[0]) for points in model.collections}) == 3
    assert pixels(path).shape[1] == round((0.6 + 2 * 4 + 1.3) * DPI)


def test_parity_plot_differs_when_the_data_differ(tmp_path):
    references = np.array([1.0, 2.0, 4.0])
    images = []
    for number, predictions in enumerate([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [1.0, 2.5, 4.0]]):
        plot_parity(tmp_path / f"{number}.png", references, predictions, "TOC", "wt%")
        images.append(pixels(tmp_path / f"{number}.png"))
    np.testing.assert_array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_training_curves_draw_every_recorded_value(tmp_path, drawn):
    history = [{"step": step, "loss": 1.0 / step, "learning_rate": 1e-4} for step in (1, 2, 4, 8, 16)]
    history += [{"step": 8, "validation_loss": 0.2}, {"step": 16, "validation_loss": 0.1}]
    path = tmp_path / "a.png"
    plot_training_curves(path, history)
    assert pixels(path).shape == (round(4.8 * DPI), 7 * DPI, 3)
    loss, rate = drawn[0].axes
    training, validation = loss.lines
    np.testing.assert_allclose(training.get_xydata(), [[1, 1], [2, 0.5], [4, 0.25], [8, 0.125], [16, 0.0625]])
    np.testing.assert_allclose(validation.get_xydata(), [[8, 0.2], [16, 0.1]])
    assert loss.get_yscale() == "log" and len(rate.lines) == 1

    as_trainer_logs = [{"step": 1, "loss": 0.5}, {"step": 2, "eval_loss": 0.4}, {"step": 2, "train_runtime": 3.0}]
    plot_training_curves(path, as_trainer_logs)
    assert pixels(path).shape == (round(3.8 * DPI), 7 * DPI, 3)
    assert [line.get_label() for line in drawn[1].axes[0].lines] == ["training", "validation"]
    assert drawn[1].axes[0].get_yscale() == "linear"


def test_a_failed_figure_leaves_the_old_one_and_nothing_half_written(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    plot_training_curves(path, [{"step": 1, "loss": 1.0}])
    before = path.read_bytes()

    def disk_full(figure, target, **options):
        with open(target, "wb") as file:
            file.write(b"\x89PNG half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", disk_full)
    with pytest.raises(OSError, match="no space"):
        plot_training_curves(path, [{"step": 1, "loss": 2.0}])
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["curves.png"]


def test_figures_say_what_does_not_fit(tmp_path):
    originals = spectra_with_peaks([3.69])
    path = tmp_path / "a.png"
    with pytest.raises(ValueError, match=r"masks \(2, 30\)"):
        draw(path, originals, masks=np.zeros((2, 30)))
    with pytest.raises(ValueError, match="no patch as measured"):
        draw(path, originals, attention_mask=np.zeros((2, NUM_PATCHES)))
    with pytest.raises(ValueError, match=r"3 references and an array of shape \(2,\)"):
        plot_parity(path, [1.0, 2.0, 3.0], [1.0, 2.0], "TOC", "wt%")
    with pytest.raises(ValueError, match="no spectrum has a laboratory value of TOC"):
        plot_parity(path, [np.nan], [1.0], "TOC", "wt%")
    with pytest.raises(ValueError, match="none of the 1 history records"):
        plot_training_curves(path, [{"step": 1, "learning_rate": 0.1}])
    assert not path.exists()


def test_spectra_have_their_lines_named_on_a_common_energy_axis(tmp_path, drawn):
    fine = synthetic(0.01, -0.02, num_channels=4096, calibrated=True)
    coarse = synthetic(0.02, 0.0, calibrated=True)
    plot_spectra(tmp_path / "a.png", [fine, coarse])
    assert pixels(tmp_path / "a.png").shape[1] == 9 * DPI
    (figure,) = drawn
    assert {"Si Kα", "K Kα", "Ca Kα", "Ti Kα", "Fe Kα", "Fe Kβ"} <= set(named_lines(figure))
    first, second = figure.axes
    assert first.get_xlim() == second.get_xlim()
    assert first.get_xlim()[1] < 42, "no axis beyond the counts"
    for axes, spectrum in zip(figure.axes, (fine, coarse), strict=True):
        x, y = axes.lines[0].get_data()
        np.testing.assert_array_equal(x, spectrum.energy_kev)
        np.testing.assert_array_equal(y, np.maximum(spectrum.counts, 0.5))
        assert axes.get_yscale() == "log"
    assert "energy" in second.get_xlabel()


def test_spectra_without_calibration_are_drawn_over_channels(tmp_path, drawn):
    plot_spectra(tmp_path / "a.png", [synthetic(0.02, 0.0, sample="BL-1", tube_kv=15.0)])
    (figure,) = drawn
    assert named_lines(figure) == []
    assert "channel" in figure.axes[0].get_xlabel()
    assert [text.get_text() for text in figure.axes[0].texts] == ["BL-1, 15 kV"]


def test_spectra_that_cannot_share_an_axis_are_refused(tmp_path):
    with_scale = synthetic(0.02, 0.0, calibrated=True)
    for spectra, titles in (([], None), ([with_scale, synthetic(0.02, 0.0)], None), ([with_scale], ["a", "b"])):
        with pytest.raises(ValueError, match="cannot be drawn"):
            plot_spectra(tmp_path / "a.png", spectra, titles)
    assert not list(tmp_path.iterdir())


def test_embeddings_coloured_by_numbers_leave_out_the_extremes(tmp_path, drawn):
    points = np.random.default_rng(0).normal(size=(400, 2))
    values = np.linspace(0, 10, 400)
    values[-1], values[0] = 1000.0, np.nan
    plot_embeddings(tmp_path / "map.png", points, ("PC 1", "PC 2"), values, "TOC (wt%)", "400 spectra")
    assert pixels(tmp_path / "map.png").std() > 5
    axes, bar = drawn[0].axes
    unknown, known = axes.collections
    np.testing.assert_array_equal(unknown.get_offsets(), points[:1])
    positions = [tuple(point) for point in known.get_offsets()]
    order = [int(np.flatnonzero((points == point).all(1))[0]) for point in positions]
    assert sorted(order) == list(range(1, 400))
    np.testing.assert_array_equal(known.get_array(), values[order])
    assert known.get_clim()[0] == pytest.approx(values[1]) and 9.8 < known.get_clim()[1] < 10
    assert (
        bar.get_ylabel() == "TOC (wt%)" and axes.get_xlabel() == "PC 1" and axes.get_title(loc="left") == "400 spectra"
    )


def test_embeddings_coloured_by_texts_name_the_frequent_ones(tmp_path, drawn):
    texts = np.array([f"core {number}" for number in range(20) for _ in range(20 - number)] + [""] * 3)
    points = np.random.default_rng(0).normal(size=(len(texts), 2))
    plot_embeddings(tmp_path / "map.png", points, ("t-SNE 1", "t-SNE 2"), texts, "core")
    legend = drawn[0].legends[0]
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == [*(f"core {number}" for number in range(11)), "other (9)", "not known"]
    assert legend.get_title().get_text() == "core"
    assert sum(len(collection.get_offsets()) for collection in drawn[0].axes[0].collections) == len(texts)


def test_embeddings_refuse_what_does_not_fit(tmp_path):
    path = tmp_path / "map.png"
    with pytest.raises(ValueError, match=r"shape \(spectra, 2\), but have \(3, 3\)"):
        plot_embeddings(path, np.zeros((3, 3)), ("x", "y"))
    with pytest.raises(ValueError, match="one entry per point"):
        plot_embeddings(path, np.zeros((3, 2)), ("x", "y"), [1.0, 2.0], "TOC")
    with pytest.raises(ValueError, match="no spectrum has a value of TOC"):
        plot_embeddings(path, np.zeros((3, 2)), ("x", "y"), [np.nan] * 3, "TOC")
    assert not path.exists()


def test_map_shows_every_pixel_at_its_place_in_mm(tmp_path, drawn):
    values = np.array([[1.0, 2.0, 3.0], [4.0, np.nan, 6.0]])
    plot_map(tmp_path / "map.png", values, "TiO2 (wt%)", x_mm=[10, 10.5, 11], y_mm=[2, 4])
    axes, bar = drawn[0].axes
    (image,) = axes.images
    assert image.get_extent() == [9.75, 11.25, 1, 5] and image.origin == "lower"
    np.testing.assert_array_equal(image.get_array().filled(np.nan), values)
    assert axes.get_aspect() == 1 and axes.get_ylim() == (1, 5)
    assert (axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()) == ("x (mm)", "y (mm)", "TiO2 (wt%)")
    assert pixels(tmp_path / "map.png").std() > 5


def test_map_without_positions_counts_pixels_from_the_top(tmp_path, drawn):
    plot_map(tmp_path / "map.png", [[1.0, 2.0]], "TiO2 (wt%)", first_row_on_top=True)
    axes = drawn[0].axes[0]
    assert axes.images[0].get_extent() == [-0.5, 1.5, -0.5, 0.5] and axes.get_ylim() == (0.5, -0.5)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("column", "row")


def test_map_refuses_what_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match="TOC has shape"):
        plot_map(tmp_path / "map.png", [[np.nan]], "TOC")
    with pytest.raises(ValueError, match=r"2 columns and 2 rows must fit the map's shape \(1, 2\)"):
        plot_map(tmp_path / "map.png", [[1.0, 2.0]], "TOC", [0, 1], [0, 1])
    assert not (tmp_path / "map.png").exists()


def test_attribution_is_drawn_below_the_spectrum_with_each_kind_of_line_marked_in_its_own_way(tmp_path, drawn):
    counts = 50 + 1e4 * spectra_with_peaks([3.69, 7.38], 1)[0]
    attribution = np.where(np.abs(ENERGY_KEV - 3.69) < 0.1, 0.2, 0.0) - np.where(ENERGY_KEV > 7, 0.05, 0.0)
    lines = [
        LineAttribution("Ca", "Kα", 3.6905, 0.9, 0.6),
        LineAttribution("Ca + Ca", "Kα + Kα sum", 7.381, -0.2, 0.2),
        LineAttribution("Ca", "Kα escape", 1.9505, 0.1, 0.1),
        LineAttribution("Fe", "Kα", 6.3995, 0.1, 0.05),
        LineAttribution("other", "", float("nan"), 0.1, 0.05),
    ]
    plot_attribution(tmp_path / "a.png", ENERGY_KEV, counts, attribution, lines, "CaCO3", "20 spectra", num_lines=3)
    assert pixels(tmp_path / "a.png").shape == (round(5.6 * DPI), 9 * DPI, 3)
    upper, lower = drawn[0].axes
    assert named_lines(drawn[0]) == ["Ca Kα escape", "Ca Kα", "Ca Kα + Ca Kα"]  # the three largest, by energy
    assert upper.get_yscale() == "log" and lower.get_xlabel() == "energy (keV)"
    (spectrum,) = (line for line in upper.lines if len(line.get_xdata()) == NUM_CHANNELS)
    np.testing.assert_allclose(spectrum.get_ydata(), counts)
    looks = {
        round(float(line.get_xdata()[0]), 2): line.get_color()
        for line in lower.lines
        if len(set(line.get_xdata())) == 1
    }
    assert len({looks[1.95], looks[3.69], looks[7.38]}) == 3
    heights = [area.get_datalim(lower.transData) for area in lower.collections]
    assert [round(box.y1, 2) for box in heights] == [0.2, 0.0] and [round(box.y0, 2) for box in heights] == [
        0.0,
        -0.05,
    ]
    legend = [text.get_text() for text in lower.get_legend().get_texts()]
    assert legend == ["raises the prediction", "lowers the prediction", "escape peak", "sum peak"]
    with pytest.raises(ValueError, match="one value per channel"):
        plot_attribution(tmp_path / "b.png", ENERGY_KEV, counts[:-1], attribution, lines, "CaCO3")


def test_intervals_are_bars_and_wide_ones_leave_the_points_their_room(tmp_path, drawn):
    references, predictions = np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.0, 3.0])
    ends = predictions - [0.5, 1.0, 1.0], predictions + [1.0, 0.5, 90.0]
    plot_parity(tmp_path / "a.png", references, predictions, "Ca", "", intervals=ends)
    (axes,) = drawn[0].axes
    (bars,) = axes.collections[:1]
    np.testing.assert_allclose([segment[:, 1] for segment in bars.get_segments()], np.transpose(ends))
    assert axes.get_xlim()[1] < 5 and axes.get_ylim() == axes.get_xlim()
    assert drawn[0].get_supxlabel() == "laboratory Ca"


def test_profiles_run_downwards_and_name_their_cores(tmp_path, drawn):
    core = {"core": "core with a very long name 17", "depth_mm": [300, 0, 100], "values": [3, 1, 2]}
    core |= {"references": [np.nan, 1.5, np.nan], "lower": [2, 0, 1], "upper": [4, 2, 3]}
    plot_profile(tmp_path / "a.png", [core, {**core, "core": "b"}], "Ca", "wt%")
    left, right = drawn[0].axes
    assert left.yaxis_inverted() and left.get_ylabel() == "depth (cm)"
    (line,) = left.lines
    np.testing.assert_array_equal(line.get_xydata(), [[1, 0], [2, 10], [3, 30]])
    assert left.get_title().endswith("long name 17") and len(left.get_title()) <= 18 and right.get_title() == "b"


@pytest.mark.parametrize("number", [5, 60])
def test_samples_stand_in_the_order_of_their_laboratory_values(tmp_path, drawn, number):
    references = np.random.default_rng(0).permutation(number).astype(float)
    plot_samples(tmp_path / "a.png", references, references + 1, [f"s{v:g}" for v in references], "Ca", "wt%")
    (axes,) = drawn[0].axes
    predicted, laboratory = (points.get_offsets() for points in axes.collections)
    value = 0 if number == 5 else 1
    np.testing.assert_array_equal(laboratory[:, value], np.arange(number))
    np.testing.assert_array_equal(predicted[:, value], np.arange(number) + 1)
    if number == 5:
        assert [label.get_text() for label in axes.get_yticklabels()] == ["s0", "s1", "s2", "s3", "s4"]


def test_residuals_are_predictions_less_laboratory_values(tmp_path, drawn):
    references, predictions = np.array([1.0, np.nan, 3.0]), np.array([2.0, 9.0, 2.5])
    plot_residuals(tmp_path / "a.png", references, predictions, "Ca", "wt%")
    axes, histogram = drawn[0].axes
    np.testing.assert_array_equal(axes.collections[-1].get_offsets(), [[2.0, 1.0], [2.5, -0.5]])
    assert sum(patch.get_width() for patch in histogram.patches) == 2
