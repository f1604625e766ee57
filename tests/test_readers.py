"""Every reader on a file the test writes, and on genuine ones where they are present."""

import json

import numpy as np
import pytest

from dataset_builder import ColumnMapping, SpectrumFileError, iter_spectra, read_spectra

S1PXRF_HEADER = [
    "Bruker AXS Handheld Inc. S1PXRF Spectrum ",
    'Label,"MUD-1"',
    "Duration Time,60.5",
    'Valid Accumulated Counts,"14"',
    "Live Time,58.25",
    "HV DAC,105",
    "HV ADC,15.000000",
    "Filament ADC,25.0",
    "Filter,2",
    "eV per channel,19.8374",
]


def write_s1pxrf(path, counts, header=S1PXRF_HEADER, num_channels=None, end="\r"):
    lines = [*header, f"Number of Channels,{num_channels or len(counts)}", "Channel#,Intensity"]
    lines += [f'{channel},"{count}"' for channel, count in enumerate(counts)]
    path.write_bytes((end.join(lines) + end).encode("latin-1"))
    return path


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_s1pxrf(tmp_path, end):
    (spectrum,) = read_spectra(write_s1pxrf(tmp_path / "a.CSV", [0, 7, 3, 4], end=end))
    np.testing.assert_array_equal(spectrum.counts, [0, 7, 3, 4])
    assert spectrum.gain_kev == pytest.approx(0.0198374)
    assert (spectrum.offset_kev, spectrum.tube_kv, spectrum.tube_ua) == (0.0, 15.0, 25.0)
    assert (spectrum.live_time_s, spectrum.real_time_s) == (58.25, 60.5)
    assert (spectrum.sample, spectrum.filter, spectrum.source) == ("MUD-1", "2", "a.CSV")
    assert spectrum.metadata["HV DAC"] == "105"


@pytest.mark.parametrize(
    ("counts", "num_channels", "message"),
    [
        ([1, 2, 3], 4, "says 4 channels but 3 follow"),
        ([1, "x", 3], None, "channel 1: the count must be a number; found 'x'"),
        ([1, -2, 3], None, "MUD-1 has -2.0 in channel 1"),
        ([1, "nan", 3], None, "MUD-1 has nan in channel 1"),
        ([0, 0, 0], None, "all its channels are zero"),
    ],
)
def test_bad_s1pxrf_is_refused(tmp_path, counts, num_channels, message):
    path = write_s1pxrf(tmp_path / "a.csv", counts, num_channels=num_channels)
    with pytest.raises(SpectrumFileError, match=message) as caught:
        read_spectra(path)
    assert str(path) in str(caught.value)


def test_s1pxrf_cut_off_in_its_header_or_with_a_bad_gain_is_refused(tmp_path):
    (tmp_path / "cut.csv").write_bytes("\r".join(S1PXRF_HEADER).encode())
    with pytest.raises(SpectrumFileError, match="Channel#,Intensity"):
        read_spectra(tmp_path / "cut.csv")
    header = [line.replace("19.8374", "-19.8374") for line in S1PXRF_HEADER]
    with pytest.raises(SpectrumFileError, match="gain_kev must be positive"):
        read_spectra(write_s1pxrf(tmp_path / "gain.csv", [1, 2], header=header))


def write_npz(path, **changes):
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
    arrays |= changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_npz(tmp_path):
    first, second = read_spectra(write_npz(tmp_path / "a.npz"))
    np.testing.assert_array_equal(first.counts, [1, 2, 3])
    np.testing.assert_array_equal(second.counts, [4, 5, 6, 7])
    assert (first.gain_kev, first.offset_kev, first.sample, first.anode) == (0.01, -0.9, "a", "Mo")
    assert (first.live_time_s, second.live_time_s, second.tube_kv) == (10.0, None, 50.0)
    assert first.targets == {"Ca": 1.5, "Ba": 0.2}  # 0 means not determined
    assert second.targets == {"Fe": 2.5}
    assert second.target_units == {"Fe": "wt%"}


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
    assert first.metadata == {"counts_unit": "counts per second"}
    assert (first.sample, first.targets, second.targets) == ("point 7", {"CaO": 10.0}, {"FeO-T": 20.0})
    assert first.target_units == {"CaO": "wt% (fundamental parameters)"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": None}, "counts or counts_per_second must be there"),
        ({"counts": np.ones(4)}, r"shape \(spectra, channels\)"),
        ({"gain_kev": np.ones(3)}, "gain_kev must have one value a spectrum"),
        ({"gain_kev": np.array([0.01, -0.02])}, "row 1: gain_kev must be positive; b has -0.02"),
        ({"num_channels": np.array([3, 9])}, "row 1: num_channels must lie between 1 and 4; found 9"),
        ({"weight_percent": np.ones((2, 3))}, "weight_percent must have shape"),
        ({"counts": np.array([[0, 0, 0, 5], [1, 1, 1, 1]])}, "row 0: .*all its channels are zero"),
        ({"counts": np.array([[1, 1, np.inf, 5], [1, 1, 1, 1]])}, "row 0: counts must be finite"),
        ({"sample": np.array(["a", None], dtype=object)}, "plain arrays"),
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


def write_max_tree(folder, targets=None):
    rng = np.random.default_rng(0)
    counts = rng.poisson(20, (3, 2048))
    (folder / "spe").mkdir(parents=True)
    for i, row in enumerate(counts):
        (folder / "spe" / f"{i}.csv").write_text("\n".join(f"{count}.0" for count in row) + "\n")
    header = "dirname,composite_id,cps,core,composite_depth_mm,section_depth_mm,filename,section\n"
    rows = [f"{i}.csv,id_{i},105000,PS75-056-1,{10 * i}.0,{10 * i},file {i},0\n" for i in range(3)]
    (folder / "info.csv").write_text(header + "".join(rows[:2]))
    (folder / "val.csv").write_text(header + rows[2])
    if targets is not None:
        (folder / "target").mkdir()
        for i, target in enumerate(targets):
            (folder / "target" / f"{i}.csv").write_text(str(target))
    return counts


def test_max_tree(tmp_path):
    counts = write_max_tree(tmp_path / "finetune" / "CaCO3%" / "train", targets=[1.5, 20.25, "nan"])
    spectra = read_spectra(tmp_path)
    assert len(spectra) == 3
    for i, spectrum in enumerate(spectra):
        np.testing.assert_array_equal(spectrum.counts, counts[i])
        assert (spectrum.core, spectrum.sample, spectrum.depth_mm) == ("PS75-056-1", f"id_{i}", 10.0 * i)
    assert [spectrum.targets for spectrum in spectra] == [{"CaCO3": 1.5}, {"CaCO3": 20.25}, {}]
    first = spectra[0]
    assert (first.gain_kev, first.offset_kev, first.tube_kv, first.anode) == (0.02, 0.0, 10.0, "Rh")
    assert first.metadata["filename"] == "file 0"


def test_max_tree_without_targets(tmp_path):
    write_max_tree(tmp_path)
    assert [spectrum.targets for spectrum in read_spectra(tmp_path)] == [{}, {}, {}]


def test_bad_max_trees_are_refused(tmp_path):
    tree = tmp_path / "TOC" / "train"
    write_max_tree(tree, targets=[0.1, 0.2, 0.3])
    (tree / "spe" / "1.csv").write_text("1\n2\n3\n")
    with pytest.raises(SpectrumFileError, match=r"1\.csv: a spectrum must have 2048 lines; found 3"):
        read_spectra(tree)
    rejected = []
    assert len(list(iter_spectra(tree, on_reject=rejected.append))) == 2
    assert [error.path for error in rejected] == [str(tree / "spe" / "1.csv")]

    (tree / "spe" / "1.csv").unlink()
    with pytest.raises(SpectrumFileError, match=r"1\.csv: the file is listed but cannot be read"):
        read_spectra(tree)
    (tree / "info.csv").write_text("name\n0.csv\n")
    with pytest.raises(SpectrumFileError, match="a column dirname must be there"):
        read_spectra(tree)
    (tree / "info.csv").write_text("dirname\n../../secret.csv\n")
    with pytest.raises(SpectrumFileError, match="must be the name of a file in spe"):
        read_spectra(tree)


def test_max_tree_whose_target_has_no_name_is_refused(tmp_path):
    write_max_tree(tmp_path / "train", targets=[1, 2, 3])
    with pytest.raises(SpectrumFileError, match="target's name must be that of a folder above"):
        read_spectra(tmp_path / "train")


MAPPING = ColumnMapping(
    channels="ch",
    columns={"sample": "id", "core": "site", "depth_mm": "depth"},
    constants={"gain_kev": 0.02, "offset_kev": 0.0, "anode": "Rh"},
    targets={"CaCO3": "carbonate"},
    target_units={"CaCO3": "wt%"},
)
TABLE = "id;site;depth;carbonate;ch0;ch1;ch2\na;C1;10;12.5;1;2;3\nb;C1;20;;4;5;6\n"


def test_wide_csv_with_a_mapping(tmp_path):
    (tmp_path / "a.csv").write_text(TABLE)
    first, second = read_spectra(tmp_path / "a.csv", MAPPING)
    np.testing.assert_array_equal(first.counts, [1, 2, 3])
    np.testing.assert_array_equal(second.counts, [4, 5, 6])
    assert (first.sample, first.core, first.depth_mm, first.anode) == ("a", "C1", 10.0, "Rh")
    assert (first.targets, first.target_units, second.targets) == ({"CaCO3": 12.5}, {"CaCO3": "wt%"}, {})
    assert first.gain_kev == 0.02


def test_further_columns_of_a_wide_csv_become_metadata(tmp_path):
    (tmp_path / "a.csv").write_text(TABLE.replace("id;", "operator;cruise;id;").replace("a;C1", "Ada;7;a;C1").replace(
        "b;C1", ";7;b;C1"))  # fmt: skip
    first, second = read_spectra(tmp_path / "a.csv", MAPPING)
    assert (first.metadata, second.metadata) == ({"operator": "Ada", "cruise": "7"}, {"cruise": "7"})


def test_wide_parquet_equals_wide_csv(tmp_path):
    import pandas as pd

    (tmp_path / "a.csv").write_text(TABLE)
    pd.read_csv(tmp_path / "a.csv", sep=";").to_parquet(tmp_path / "a.parquet")
    for left, right in zip(
        read_spectra(tmp_path / "a.csv", MAPPING), read_spectra(tmp_path / "a.parquet", MAPPING), strict=True
    ):
        np.testing.assert_array_equal(left.counts, right.counts)
        assert (left.sample, left.depth_mm, left.targets) == (right.sample, right.depth_mm, right.targets)


def test_wide_csv_without_a_mapping_and_longer_than_a_chunk(tmp_path):
    counts = np.random.default_rng(0).poisson(5, (600, 12)) + 1
    lines = ["sample,gain_kev,offset_kev," + ",".join(f"channel_{i}" for i in range(12))]
    lines += [f"s{i},0.01,-0.5," + ",".join(map(str, row)) for i, row in enumerate(counts)]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    spectra = read_spectra(tmp_path / "a.csv")
    np.testing.assert_array_equal([spectrum.counts for spectrum in spectra], counts)
    assert (spectra[599].sample, spectra[599].offset_kev) == ("s599", -0.5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            TABLE.replace("a;C1;10;12.5;1;2", "a;C1;10;12.5;1;x"),
            "row 0, column ch1: the count must be a number; found",
        ),
        (TABLE.replace("4;5;6", "4;;6"), "row 1: counts must be finite; b has nan in channel 1"),
        (TABLE.replace("4;5;6", "4"), "row 1: counts must be finite; b has nan in channel 1"),
        (TABLE.replace("4;5;6", "4;-5;6"), "row 1: counts must not be negative; b has -5"),
        (TABLE.replace("4;5;6", "0;0;0"), "row 1: .*all its channels are zero"),
        (TABLE.replace("12.5", "much"), "row 0, column carbonate: CaCO3 must be a number; found 'much'"),
        (TABLE.replace("ch1", "ch7"), "numbered without a gap; 1 is missing"),
        (TABLE.replace("ch", "x"), "channel columns must be named ch0, ch1"),
        (TABLE.replace("carbonate", "lime"), "mapped column 'carbonate' must be there"),
        (TABLE.splitlines()[0], "must have rows"),
        (TABLE + "c;C1;30;1;2;3;4;5;6\n", "table with one header line"),
    ],
)
def test_bad_wide_csv_is_refused(tmp_path, table, message):
    (tmp_path / "a.csv").write_text(table)
    with pytest.raises(SpectrumFileError, match=message):
        read_spectra(tmp_path / "a.csv", MAPPING)


def test_rows_are_skipped_and_reported_when_asked(tmp_path):
    (tmp_path / "a.csv").write_text(TABLE.replace("1;2;3", "0;0;0"))
    rejected = []
    spectra = list(iter_spectra(tmp_path, MAPPING, on_reject=rejected.append))
    assert [spectrum.sample for spectrum in spectra] == ["b"]
    assert [error.place for error in rejected] == ["row 0"]


def test_truncated_parquet_is_refused(tmp_path):
    import pandas as pd

    pd.DataFrame({"channel_0": range(1000), "channel_1": range(1000)}).to_parquet(tmp_path / "a.parquet")
    path = tmp_path / "a.parquet"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(SpectrumFileError, match=r"a\.parquet: the Parquet file is cut off"):
        read_spectra(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chanels": "ch"}, "found .'chanels'."),
        ({"columns": {"smaple": "id"}}, "it names .'smaple'."),
        ({"targets": {"CaCO3": "carbonate"}}, "needs a unit"),
        (["ch"], "must be a JSON object"),
    ],
)
def test_bad_column_mapping_is_refused(tmp_path, values, message):
    (tmp_path / "mapping.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        ColumnMapping.from_json(tmp_path / "mapping.json")


def test_folders_are_searched_in_order_and_strangers_are_passed_over(tmp_path):
    (tmp_path / "b").mkdir()
    write_s1pxrf(tmp_path / "b" / "2.csv", [1, 2])
    write_npz(tmp_path / "a.npz")
    (tmp_path / "notes.md").write_text("not a spectrum")
    assert [spectrum.source for spectrum in iter_spectra(tmp_path)] == ["a.npz", "a.npz", "2.csv"]


def test_missing_unknown_and_empty_inputs_are_refused(tmp_path):
    with pytest.raises(SpectrumFileError, match="no such file"):
        read_spectra(tmp_path / "nothing.csv")
    with pytest.raises(SpectrumFileError, match="the folder must hold spectra"):
        read_spectra(tmp_path)
    (tmp_path / "a.xyz").write_text("?")
    with pytest.raises(SpectrumFileError, match="the format is not known"):
        read_spectra(tmp_path / "a.xyz")
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(SpectrumFileError, match="the format is not known"):
        read_spectra(tmp_path / "a.npz")


def test_genuine_s1pxrf(real_data):
    first, second = read_spectra(real_data / "formats" / "bruker_s1pxrf_csv")
    assert (first.tube_kv, second.tube_kv, first.counts.size) == (15.0, 40.0, 2048)
    # The file declares its own total; zero-energy pulses in the first channels are not counted in it.
    assert first.total_counts == pytest.approx(3_399_004, rel=0.01)
    iron = slice(300, 345)
    assert first.energy_kev[iron][np.argmax(first.counts[iron])] == pytest.approx(6.40, abs=0.03)


def test_genuine_archives(real_data):
    for path, number in (("unlabelled/m4_tornado_elements_and_glass.npz", 343), ("unlabelled/pixl_beaujeu.npz", 450)):
        assert len(read_spectra(real_data / path)) == number
    for spectrum in read_spectra(real_data / "labelled" / "mudrock_light_instrument_a.npz"):
        assert 0 < spectrum.targets["Ca"] < 40


def test_genuine_archive_is_the_genuine_file(real_data):
    (from_file,) = read_spectra(real_data / "formats" / "bruker_s1pxrf_csv" / "MS15BL-1-122-IVSD-MAJ.CSV")
    archive = read_spectra(real_data / "labelled" / "mudrock_light_instrument_b.npz")
    (from_archive,) = [spectrum for spectrum in archive if spectrum.sample == "BL-1-122"]
    np.testing.assert_array_equal(from_file.counts, from_archive.counts)
    assert from_file.gain_kev == pytest.approx(from_archive.gain_kev, abs=1e-9)
