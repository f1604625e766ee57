"""Wide tables: their dialects give the same spectra, and no row or column is taken for another."""

import json

import numpy as np
import pytest
from instrument_files.table import SEMICOLONS as TABLE
from instrument_files.table import WIDE, examples, parquet

from dataset_builder import ColumnMapping, SpectrumFileError, iter_spectra, read_spectra, spectra_to_table
from dataset_builder.readers.table import has_channel_columns, is_csv, is_parquet, parquet_tables

MAPPING = ColumnMapping(
    channels="ch",
    columns={"sample": "id", "core": "site", "depth_mm": "depth"},
    constants={"gain_kev": 0.02, "offset_kev": 0.0, "anode": "Rh"},
    targets={"CaCO3": "carbonate"},
    target_units={"CaCO3": "wt%"},
)


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


def test_wide_csv_without_a_mapping(tmp_path):
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
            "row 0: the count in channel 1 must be a number; found 'x'",
        ),
        (TABLE.replace("4;5;6", "4;;6"), "row 1: the count in channel 1 must be a number; found ''"),
        (TABLE.replace("4;5;6", "4"), "row 1: a row must have 7 entries as the header; found 5"),
        (TABLE.replace("4;5;6", "4;-5;6"), "row 1: counts must not be negative; b has -5"),
        (TABLE.replace("4;5;6", "0;0;0"), "row 1: .*all its channels are zero"),
        (TABLE.replace("12.5", "much"), "row 0, column carbonate: CaCO3 must be a number; found 'much'"),
        (TABLE.replace("ch1", "ch7"), "numbered without a gap; 1 is missing"),
        (TABLE.replace("ch", "x"), "channel columns must be named ch0, ch1"),
        (TABLE.replace("carbonate", "lime"), "mapped column 'carbonate' must be there"),
        (TABLE.splitlines()[0], "must have rows"),
        (TABLE + "c;C1;30;1;2;3;4;5;6\n", "row 2: a row must have 7 entries as the header; found 9"),
    ],
)
def test_bad_wide_csv_is_refused(tmp_path, table, message):
    (tmp_path / "a.csv").write_text(table)
    with pytest.raises(SpectrumFileError, match=message):
        read_spectra(tmp_path / "a.csv", MAPPING)


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
        ({"constants": {"gain_kev": "0.02"}}, "constant gain_kev of a column mapping must be a number"),
        (["ch"], "must be a JSON object"),
    ],
)
def test_bad_column_mapping_is_refused(tmp_path, values, message):
    (tmp_path / "mapping.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        ColumnMapping.from_json(tmp_path / "mapping.json")


def test_dialects_of_one_table_give_one_result(tmp_path):
    for name, content in examples().items():
        (tmp_path / name).write_bytes(content)
    for name in ("wide.csv", "decimal_comma.csv", "carriage_returns.csv"):
        first, second = read_spectra(tmp_path / name)
        assert first.counts.tolist() == [1, 2, 3] and second.counts.tolist() == [4, 5, 6]
        assert (first.sample, first.core, first.depth_mm) == ("a", "C1", 10.5)
        assert (first.gain_kev, first.offset_kev) == (0.02, -0.1)
    for name in ("numbered.csv", "tabs.txt"):
        assert [spectrum.counts.tolist() for spectrum in read_spectra(tmp_path / name)] == [[1, 2, 3], [4, 5, 6]]
    assert [spectrum.counts.tolist() for spectrum in read_spectra(tmp_path / "wide.parquet")] == [[1.5, 7]] * 2


def test_decimal_comma_and_point_in_one_table(tmp_path):
    (tmp_path / "a.csv").write_text("sample;gain_kev;0;1\na;0.02;1,5;2.5\nb;0,03;3;4\n")
    first, second = read_spectra(tmp_path / "a.csv")
    assert (first.counts.tolist(), second.counts.tolist()) == ([1.5, 2.5], [3, 4])
    assert (first.gain_kev, second.gain_kev) == (0.02, 0.03)


def test_our_own_corpus_comes_back(tmp_path):
    import pyarrow.parquet as pq

    (tmp_path / "corpus.parquet").write_bytes(examples()["corpus.parquet"])
    spectra = read_spectra(tmp_path / "corpus.parquet")
    assert [spectrum.counts.tolist() for spectrum in spectra] == [[1, 2], [3, 0, 4]]
    assert (spectra[0].metadata, spectra[0].targets) == ({"operator": "Ada"}, {"Fe": 2.5})
    pq.write_table(spectra_to_table(spectra, ["Fe"], {"Fe": "wt%"}), tmp_path / "again.parquet")
    assert [spectrum.targets for spectrum in read_spectra(tmp_path / "again.parquet")] == [{"Fe": 2.5}] * 2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("counts", [0.0, 0.0], "row 1: .*all its channels are zero"),
        ("counts", [1.0, -1.0], "row 1: .*must not be negative"),
        ("counts", [], "row 1: .*at least one channel"),
        ("metadata", "[" * 100_000, "row 1: the row is no spectrum"),
        ("metadata", "{", "row 1: the row is no spectrum"),
        ("gain_kev", -1.0, "row 1: .*gain_kev must be positive"),
    ],
)
def test_bad_rows_of_a_corpus_are_refused_alone(tmp_path, field, value, message):
    good = {"counts": [1.0, 2.0], "gain_kev": 0.02, "metadata": "{}", "target_units": "{}"}
    (tmp_path / "a.parquet").write_bytes(parquet([good, good | {field: value}, good]))
    rejected = []
    assert len(list(iter_spectra(tmp_path / "a.parquet", on_reject=rejected.append))) == 2
    with pytest.raises(SpectrumFileError, match=message):
        raise rejected[0]


def test_rows_longer_than_the_header_never_shift_the_columns(tmp_path):
    (tmp_path / "a.csv").write_text("sample,0,1\na,1,2,3\nb,4,5,6\n")
    with pytest.raises(SpectrumFileError, match="the format is not known"):
        read_spectra(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("sample,0,1\na,1,2\nb,4,5,6\n")
    with pytest.raises(SpectrumFileError, match="row 1: a row must have 3 entries as the header; found 4"):
        read_spectra(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("sample,0,1,\na,1,2,\nb,4,5,\n")  # a separator at every line's end is harmless
    assert [spectrum.counts.tolist() for spectrum in read_spectra(tmp_path / "a.csv")] == [[1, 2], [4, 5]]


@pytest.mark.parametrize("entry", ["True", "1_000", "0x10", "1 000", "inf", "1e400", "2024-01-01", "-3", "1e15"])
def test_entries_that_are_no_counts_cost_one_row(tmp_path, entry):
    (tmp_path / "a.csv").write_text(f"sample,0,1\na,1,2\nb,3,{entry}\nc,5,6\n")
    rejected = []
    spectra = list(iter_spectra(tmp_path / "a.csv", on_reject=rejected.append))
    assert [spectrum.sample for spectrum in spectra] == ["a", "c"]
    assert len(rejected) == 1 and rejected[0].place.startswith("row 1")
    (tmp_path / "a.csv").write_text(f"sample,0,1\na,{entry},{entry}\n")  # the whole column
    with pytest.raises(SpectrumFileError, match="row 0"):
        read_spectra(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"sample,0,0\na,1,2\nb,1,2\n", "column names must be unique; '0' stands twice|format is not known"),
        (WIDE.replace('again"', "again").encode(), "row 1: a row must have 8 entries as the header; found 1"),
        (b"sample,0,1\n\na,1,2\n\n\n" + b"b,x,2\n", "row 1: the count in channel 0 must be a number; found 'x'"),
        (parquet([{"channel_0": 1}]) + b"PAR1", "cut off or damaged"),
        (parquet([{"name": "a"}]), "channel columns must be named channel_0"),
        (parquet([{"channel_0": True, "channel_1": True}]), "channels must hold numbers; column channel_0 holds bool"),
        (parquet([{"channel_0": [1, 2]}]), "channels must hold numbers; column channel_0 holds list"),
        (
            parquet([{"channel_0": 1, "channel_1": 2}, {"channel_0": 1}]),
            "row 1: counts must be finite; .* in channel 1",
        ),
        (b"sample,0,1\n" + b"a,1,2\n" * 9 + b'"' + b"b,1,2\n" * 40_000, "a quotation mark may be missing"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(SpectrumFileError, match=message):
        read_spectra(tmp_path / "a")


def test_parquet_that_claims_more_rows_than_bytes_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"channel_0": pa.nulls(3_000_000, pa.int32()), "channel_1": pa.nulls(3_000_000, pa.int32())})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3_000_000)
    assert (tmp_path / "a.parquet").stat().st_size < 20_000
    with pytest.raises(SpectrumFileError, match="declares 3000000 rows in"):
        read_spectra(tmp_path / "a.parquet")


def test_a_header_line_without_end_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text(",".join(f"name_{i}" for i in range(300_000)))
    with pytest.raises(SpectrumFileError, match="column names, at most 2 MiB long"):
        read_spectra(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("content", "is_table"),
    [
        (b"sample,0,1\na,1,2\n", True),
        (b"a;b\n1;2\n", True),
        (b"sample,0,1", True),  # the first names of a wide table fill the head
        (b"\xef\xbb\xbfsample\t0\n", True),
        (b"", False),
        (b"\n\n", False),
        (b"1,2,3\n4,5,6\n7,8,9\n", False),  # no names
        (b"0,1,2\n4,5,6\n7,8,9\n", True),  # the channels' numbers
        (b",".join(b"%d" % i for i in range(2048))[:4096], True),  # cut within a name
        (b"sample," + b",".join(b"channel_%d" % i for i in range(2048))[:4089], True),
        (b"one column\n1\n2\n", False),
        (b"a,a\n1,2\n3,4\n", False),
        (b"Dear colleagues, please find enclosed\nthe data.\nYours, A\n", False),
        (b"PK\x03\x04,a,b\n", False),
        (b"\x00\x01,\x02\n", False),
    ],
)
def test_csv_is_known_by_content(tmp_path, content, is_table):
    assert is_csv(tmp_path / "a.xyz", content) is is_table
    assert not is_parquet(tmp_path / "a.parquet", content)


def test_tables_of_spectra_are_told_from_others_by_their_columns(tmp_path):
    contents = {
        "numbered": b"sample,0,1\na,1,2\n",
        "prefixed": TABLE.encode(),
        "results": b"depth,Ca,Fe\n10,1.5,2.5\n",
        "corpus": examples()["corpus.parquet"],
        "other_parquet": parquet([{"name": "a"}]),
        "damaged_parquet": b"PAR1",  # is kept, so that its reader says what is wrong
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    found = {name for name in contents if has_channel_columns(tmp_path / name)}
    assert found == {"numbered", "corpus", "damaged_parquet"}
    assert has_channel_columns(tmp_path / "prefixed", MAPPING)
    assert not has_channel_columns(tmp_path / "results", MAPPING)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (ColumnMapping(channels=("ch0", "ch0")), "must be one channel and nothing else"),
        (ColumnMapping(channels="ch", columns={"depth_mm": "ch1"}), "must be one channel and nothing else"),
        (ColumnMapping(channels=("ch0", "ch9")), "mapped column 'ch9' must be there"),
    ],
)
def test_mappings_that_do_not_fit_are_refused(tmp_path, mapping, message):
    (tmp_path / "a.csv").write_text(TABLE)
    with pytest.raises(SpectrumFileError, match=message):
        read_spectra(tmp_path / "a.csv", mapping)


def test_one_column_may_give_two_fields(tmp_path):
    (tmp_path / "a.csv").write_text(TABLE)
    first, _ = read_spectra(tmp_path / "a.csv", ColumnMapping(channels="ch", columns={"sample": "id", "core": "id"}))
    assert (first.sample, first.core) == ("a", "a")


@pytest.mark.parametrize("rows_in_a_group", [200, 4000])
def test_what_is_read_of_a_parquet_file_is_not_kept(tmp_path, rows_in_a_group):
    """Of 32 MB of counts that do not compress, a fraction is in memory at any time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "corpus.parquet"
    counts = np.random.default_rng(0).random((4000, 2000), dtype=np.float32)
    ends = pa.array(2000 * np.arange(4001, dtype=np.int32))
    pq.write_table(pa.table({"counts": pa.ListArray.from_arrays(ends, counts.ravel())}), path, rows_in_a_group)
    del counts, ends
    assert path.stat().st_size > 25e6
    before, held, number = pa.total_allocated_bytes(), [], 0
    for _, table in parquet_tables(path, 100):
        held.append(pa.total_allocated_bytes() - before)
        number += len(table)
    assert number == 4000 and max(held) < 8e6
