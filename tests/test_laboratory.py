"""A person's table: rows find their spectra, relatives stay together, and what would flatter the numbers is named."""

import dataclasses

import numpy as np
import pytest
from peaks_corpus import make_spectra

from dataset_builder import ColumnMapping, Spectrum
from laboratory_xrf import (
    choose_splits,
    depth_blocks,
    doubtful_predictions,
    leakage_warnings,
    match_rows,
    read_laboratory_table,
    read_numbers,
    split_header,
)


def spectra_of(number, cores=2, seed=0):
    return make_spectra(number, cores, seed=seed)


def write_wide(path, spectra, columns, separator=","):
    """A wide table: columns by header, one entry per spectrum, then the channels."""
    header = [*columns, *map(str, range(len(spectra[0].counts)))]
    lines = [separator.join(header)]
    for row, spectrum in enumerate(spectra):
        entries = [str(column[row]) for column in columns.values()]
        lines.append(separator.join([*entries, *map(str, spectrum.counts.astype(int))]))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_spectrum(path, spectrum):
    np.savez(
        path,
        counts=spectrum.counts[None].astype(np.int32),
        gain_kev=np.array([spectrum.gain_kev]),
        offset_kev=np.array([spectrum.offset_kev]),
        sample=np.array([spectrum.sample]),
        core=np.array([spectrum.core]),
        depth_mm=np.array([spectrum.depth_mm]),
    )


@pytest.fixture
def wide(tmp_path):
    """12 spectra of 3 cores, 4 of them without a value, depths in cm."""
    spectra = spectra_of(12, 3)
    columns = {
        "core": [spectrum.core for spectrum in spectra],
        "depth (cm)": [spectrum.depth_mm / 10 for spectrum in spectra],
        "gain_kev": [0.04] * 12,
        "offset_kev": [0] * 12,
        "CaCO3 (wt.%)": [f"{s.targets['CaCO3']:.3f}" if row % 3 or row < 3 else "" for row, s in enumerate(spectra)],
    }
    return write_wide(tmp_path / "wide.csv", spectra, columns), spectra


@pytest.mark.parametrize(
    "header, expected",
    [
        ("CaCO3 (wt%)", ("CaCO3", "wt%")),
        ("CaCO3 [wt. %]", ("CaCO3", "wt%")),
        ("Fe_ppm", ("Fe", "ppm")),
        ("depth_cm", ("depth", "cm")),
        ("Depth (m)", ("Depth", "m")),
        ("TOC", ("TOC", "")),
        ("grain_size", ("grain_size", "")),
    ],
)
def test_units_stand_in_headers(header, expected):
    assert split_header(header) == expected


def test_numbers_and_the_ways_to_have_none():
    values, below = read_numbers(["1.5", "2,5", "", "n.d.", "<0.1", "-3e2"], "Fe", "x.csv")
    np.testing.assert_array_equal(values, [1.5, 2.5, np.nan, np.nan, np.nan, -300])
    assert below == 1
    with pytest.raises(ValueError, match="Row 2 of x.csv has 'much' in the column 'Fe'"):
        read_numbers(["1", "much"], "Fe", "x.csv")


def test_a_wide_table_brings_spectra_places_units_and_missing_values(wide):
    path, spectra = wide
    table = read_laboratory_table(path, ["CaCO3"])
    assert table.target_units == ["wt%"] and table.target_names == ["CaCO3"]
    assert len(table.labelled) == 9 and table.group_kind == "core"
    np.testing.assert_allclose(table.depths_mm, [spectrum.depth_mm for spectrum in spectra])
    for row in table.labelled:
        assert table.data.targets[row, 0] == pytest.approx(spectra[row].targets["CaCO3"], abs=1e-3)
    np.testing.assert_array_equal(table.data.spectra[5].counts, spectra[5].counts)
    assert table.data.spectra[5].targets == {}


def test_calibration_is_filled_in_and_a_mapping_names_channels(tmp_path):
    spectra = spectra_of(4)
    path = write_wide(tmp_path / "t.csv", spectra, {"Fe": [1, 2, 3, 4]})
    table = read_laboratory_table(path, ["fe"], calibration={"gain_kev": 0.04, "offset_kev": 0.0, "tube_kv": 10})
    assert (table.data.spectra[0].gain_kev, table.data.spectra[0].offset_kev) == (0.04, 0.0)
    path.write_text(path.read_text().replace(",0,", ",ch0,", 1).replace(",1,2,3,", ",ch1,ch2,ch3,", 1))
    mapping = ColumnMapping(channels=("ch0", "ch1", "ch2", "ch3"), constants={"gain_kev": 0.1})
    table = read_laboratory_table(path, ["Fe"], column_mapping=mapping)
    assert len(table.data.spectra[0].counts) == 4 and table.data.spectra[0].gain_kev == 0.1


@pytest.mark.parametrize("key", ["file", "sample", "core and depth"])
def test_rows_find_their_spectra(tmp_path, key):
    spectra = spectra_of(6)
    (tmp_path / "scans").mkdir()
    for index, spectrum in enumerate(spectra):
        write_spectrum(tmp_path / "scans" / f"spot_{index}.npz", spectrum)
    header, entry = {
        "file": ("File name", lambda index, s: f"spot_{index}.NPZ"),
        "sample": ("Sample ID", lambda index, s: s.sample.upper()),
        "core and depth": ("core;depth [cm]", lambda index, s: f"{s.core};{str(s.depth_mm / 10).replace('.', ',')}"),
    }[key]
    lines = [f"{header};TOC (wt%)"]
    lines += [f"{entry(index, spectra[index])};{index + 1},5" for index in (4, 0, 3, 2)]
    lines.append(f"{'elsewhere;77' if key == 'core and depth' else 'elsewhere'};9")
    (tmp_path / "samples.csv").write_text("\n".join(lines))
    table = read_laboratory_table(tmp_path / "samples.csv", ["TOC"], tmp_path / "scans")
    by_file = dict(zip(table.files, table.data.targets[:, 0]))
    assert {file: value for file, value in by_file.items() if not np.isnan(value)} == {
        f"spot_{index}.npz": index + 1.5 for index in (4, 0, 3, 2)
    }
    (note,) = table.notes
    assert "4 of 5 rows matched 4 of 6 spectra" in note and key.split()[0] in note and "Without a spectrum" in note
    beside = read_laboratory_table(tmp_path / "samples.csv", ["TOC"])  # the folder of the table is searched
    assert (~np.isnan(beside.data.targets)).sum() == 4


def test_depths_farther_than_a_millimetre_do_not_match():
    spectra = [Spectrum(np.ones(4), core="a", depth_mm=depth) for depth in (10.0, 20.9, 30.0)]
    how, rows = match_rows({"core": ["A", "a"]}, np.array([20.0, 31.5]), spectra, ["x", "y", "z"])
    assert how == "core and depth" and rows.tolist() == [-1, 0, -1]


def test_where_nothing_matches_one_sentence_says_what_to_do(tmp_path):
    (tmp_path / "s.csv").write_text("sample,Fe\nA,1\nB,2\n")
    with pytest.raises(ValueError, match="no spectrum of a known format.*--spectra.*--features"):
        read_laboratory_table(tmp_path / "s.csv", ["Fe"])
    write_spectrum(tmp_path / "spot.npz", spectra_of(1)[0])
    with pytest.raises(ValueError, match="None of the 2 rows.*sample 'A'.*spot.npz.*add a column 'file'"):
        read_laboratory_table(tmp_path / "s.csv", ["Fe"])
    with pytest.raises(ValueError, match="no column 'Ti'; its columns are sample, Fe"):
        read_laboratory_table(tmp_path / "s.csv", ["Ti"])


def test_numbers_without_energy_axis_are_inputs_and_say_so(tmp_path):
    rows = ["site,red,green,blue,TiO2"] + [f"s{i},{i},-{i},0.5,{i + 1}" for i in range(5)] + ["s9,1,2,3,"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    table = read_laboratory_table(tmp_path / "t.csv", ["TiO2"])
    assert table.feature_names == ["red", "green", "blue"] and "--spectra" in table.warnings[0]
    np.testing.assert_array_equal(table.data.spectra[2].counts, [2, -2, 0.5])
    assert table.labelled.tolist() == [0, 1, 2, 3, 4]
    chosen = read_laboratory_table(tmp_path / "t.csv", ["TiO2"], feature_columns=["blue", "red"])
    assert chosen.feature_names == ["blue", "red"] and not chosen.warnings
    with pytest.raises(ValueError, match="'s0' in the column 'site'"):
        read_laboratory_table(tmp_path / "t.csv", ["TiO2"], feature_columns=["site"])


# --- validation ---


def table_of(spectra, tmp_path, **columns):
    known = {"gain_kev": [0.04] * len(spectra), "offset_kev": [0] * len(spectra)}
    labels = {"CaCO3": [f"{s.targets['CaCO3']:.3f}" if s.targets else "" for s in spectra]}
    return read_laboratory_table(write_wide(tmp_path / "t.csv", spectra, {**known, **labels, **columns}), ["CaCO3"])


def check_partition(table, splits):
    """Every labelled row is tested once, and never learnt from where it is tested."""
    tested = np.concatenate([np.intersect1d(split.test, table.labelled) for split in splits])
    assert sorted(tested) == table.labelled.tolist()
    for split in splits:
        assert not set(split.training) & set(split.test)
        assert not np.isnan(table.data.targets[split.training]).any()


def test_whole_cores_are_left_out_with_their_unlabelled_spectra(wide):
    table = read_laboratory_table(wide[0], ["CaCO3"])
    validation = choose_splits(table)
    assert len(validation.splits) == 3 and "core" in validation.description
    check_partition(table, validation.splits)
    for split in validation.splits:
        (core,) = set(table.data.groups[split.test])
        assert set(np.flatnonzero(table.data.groups == core)) == set(split.test)
        assert core not in table.data.groups[split.training]
    assert leakage_warnings(table, validation.splits) == []


def test_one_core_is_cut_into_blocks_and_its_neighbours_are_counted(tmp_path):
    spectra = spectra_of(20, 1)
    spectra[7] = dataclasses.replace(spectra[7], targets={})
    table = table_of(spectra, tmp_path, depth_mm=[s.depth_mm for s in spectra], core=["a"] * 20)
    validation = choose_splits(table)
    check_partition(table, validation.splits)
    for split in validation.splits:
        depths = np.sort(table.depths_mm[split.test])
        assert np.ptp(depths) == len(depths) - 1  # neighbours, the unlabelled one among them
    assert sorted(np.concatenate([split.test for split in validation.splits])) == list(range(20))
    assert any("one core only" in warning for warning in validation.warnings)
    (warning,) = leakage_warnings(table, validation.splits)
    assert warning.startswith("8 of 19 tested rows have a neighbour")  # two at each of four cuts


def test_blocks_keep_equal_depths_together():
    depths = np.repeat(np.arange(10.0), 3)
    splits = depth_blocks(depths, num_blocks=4)
    for split in splits:
        assert not set(depths[split.test]) & set(depths[split.training])
    assert len(splits) == 4


def test_small_tables_leave_one_out_and_large_ones_fold_with_a_warning(tmp_path):
    for number, folds in ((12, 12), (70, 10)):
        table = table_of(spectra_of(number), tmp_path)
        validation = choose_splits(table)
        assert len(validation.splits) == folds
        check_partition(table, validation.splits)
        assert any("No core or other group is named" in warning for warning in validation.warnings)


def test_repeated_samples_stay_together_unless_asked_otherwise(tmp_path):
    table = table_of(spectra_of(12), tmp_path, sample=[f"s{row // 2}" for row in range(12)])
    assert any("several rows (s0" in warning for warning in table.warnings)
    for split in choose_splits(table).splits:
        assert not set(table.data.samples[split.test]) & set(table.data.samples[split.training])
    apart = choose_splits(table, "leave_one_out")
    assert any("6 samples are measured on both sides" in warning for warning in leakage_warnings(table, apart.splits))


def test_the_tables_own_test_split_is_used(tmp_path):
    table = table_of(spectra_of(10), tmp_path, split=["train"] * 6 + ["Test"] * 4)
    (split,) = choose_splits(table).splits
    assert split.training.tolist() == [0, 1, 2, 3, 4, 5] and split.test.tolist() == [6, 7, 8, 9]
    with pytest.raises(ValueError, match="at least two groups.*--group_column"):
        choose_splits(table, "leave_group_out")


def test_names_that_look_related_are_mentioned(tmp_path):
    names = [f"BL-{row % 3}-{row}" for row in range(12)]
    validation = choose_splits(table_of(spectra_of(12), tmp_path, sample=names))
    assert any("BL-0, BL-1, BL-2" in warning for warning in validation.warnings)


def test_near_copies_across_a_split_are_found(tmp_path):
    rng = np.random.default_rng(0)
    spectra = [dataclasses.replace(s, counts=rng.poisson(50 * s.counts)) for s in spectra_of(12, 12)]
    honest = table_of(spectra, tmp_path, core=[f"c{row}" for row in range(12)])
    assert not leakage_warnings(honest, choose_splits(honest).splits)
    spectra[9] = dataclasses.replace(spectra[9], counts=spectra[2].counts)
    copied = table_of(spectra, tmp_path, core=[f"c{row}" for row in range(12)], sample=[f"s{r}" for r in range(12)])
    (warning,) = leakage_warnings(copied, choose_splits(copied).splits)
    assert warning.startswith("1 pairs of spectra") and "s2 and s9" in warning


def test_doubtful_predictions_are_named(tmp_path):
    table = table_of(spectra_of(12), tmp_path, sample=[f"s{row}" for row in range(12)])
    labels = table.data.targets
    rows, nothing = np.arange(12), np.zeros(12, bool)
    assert doubtful_predictions(table, labels + np.linspace(-1, 1, 12)[:, None], nothing, rows, rows, 0) == []
    wrong = labels.copy()
    wrong[4], familiar = labels.max() + 60, np.arange(12) != 7
    far, outside, unlike = doubtful_predictions(table, wrong + 0.1, ~familiar, rows, rows, 0)
    assert "s4 (laboratory" in far and "s4" in outside and "1 of 12 spectra" in unlike and "s7" in unlike
