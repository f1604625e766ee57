"""`benchmarks/SCALE.md` says what its script computes, and the script computes what it says."""

import csv

import pytest

BENCHMARK = "scale"


@pytest.fixture(scope="module")
def scale(benchmark):
    return benchmark


@pytest.fixture(scope="module")
def measured(scale):
    return scale.last_values(scale.RESULTS)


def cells(table, first):
    """The row of a table that begins with a text."""
    (row,) = [line for line in table.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_page_holds_the_tables_that_the_script_prints(scale, measured):
    page = scale.PAGE.read_text(encoding="utf-8")
    tables = scale.tables(measured, scale.reading_rates(scale.READING))
    assert scale.filled(page, tables) == page, "run `python benchmarks/scale.py --write`"
    changed = scale.tables(
        {**measured, "parquet_bytes": {**measured["parquet_bytes"], "value": 1.0}}, scale.reading_rates(scale.READING)
    )
    assert scale.filled(page, changed) != page


def test_bytes_hours_and_files_by_hand(scale, measured):
    by_hand = {
        "parquet_bytes": 2500, "prediction_bytes": 10, "shard_rows": 20_000, "patches": 128, "predict_rate": 1000,
        "simulation_rate": 100, "stream_rate": 1000, "shuffle_rate": 1e7, "shuffle_bytes": 40, "leakage_rate": 1e5,
        "tree_bytes": 100, "predict_gflop": 0.1,
    }  # fmt: skip
    values = {name: {**row, "value": by_hand.get(name, 1.0)} for name, row in measured.items()}
    tables = scale.tables(values, dict.fromkeys(scale.READ, 1000.0))
    # 2,500 byte of 10^9 spectra are 2,500 GB, for 0.023 USD a GB and month
    assert cells(tables["bytes"], "spectra as Parquet")[1:] == ["2,500", "2.5 GB", "250 GB", "2.5 TB", "57.5 USD"]
    assert cells(tables["shards"], "20,000")[1:] == ["50 MB", "50,000", "50", "781"]
    # 54.06 GFLOP of a whole spectrum, and half of 790 TFLOP/s: 7,300 spectra/s, so 3.8 hours for 10^8
    row = cells(tables["hours"], "pretraining base, 10^8")
    assert float(row[2].split()[0]) == pytest.approx(54.06, rel=0.01)
    assert float(row[3].replace(",", "")) == pytest.approx(7300, rel=0.01)
    assert float(row[4]) == pytest.approx(3.8, rel=0.01)
    assert float(row[6].split()[0]) == pytest.approx(11.4, rel=0.01)
    # 10^9 spectra at 1,000 a second are 278 core hours: 2.9 hours of 96 cores, 11.1 USD
    assert "| prediction by xrf-tiny, 10^9 | core |  | 1,000 | 278 | 2.89 hours | 11.1 USD |" in tables["hours"]
    assert float(cells(tables["feeding"], "pretraining base")[4].replace(",", "")) == pytest.approx(7.3, rel=0.01)


def test_the_last_measurement_counts(scale, tmp_path):
    path = tmp_path / "scale.csv"
    for value in (1.0, 2.0):
        scale.append(path, [("parquet_bytes", value, "byte/spectrum", "by hand")])
    assert scale.last_values(path)["parquet_bytes"]["value"] == 2.0
    with open(path, newline="") as file:
        assert [row["value"] for row in csv.DictReader(file)] == ["1", "2"]


def test_numbers_have_three_digits(scale):
    assert [scale.number(value) for value in (0.01234, 9.999, 123.4, 56_789, 3.21e9)] == [
        "0.0123", "10", "123", "56,800", "3.21 x 10^9"
    ]  # fmt: skip
    assert (scale.size(8_328e9), scale.size(999)) == ("8.33 TB", "999 byte")
    assert (scale.days(0.5), scale.days(3), scale.days(72)) == ("30 minutes", "3 hours", "3 days")


def test_a_page_without_a_place_for_a_table_is_refused(scale):
    with pytest.raises(ValueError, match="must have one place for the table 'bytes'"):
        scale.filled("# Nothing\n", {"bytes": "| a |"})
