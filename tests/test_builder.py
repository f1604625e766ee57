"""The builder, the corpus folder, the command line, and loading without our code."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from command_line_xrf import run
from dataset_builder import (
    XRFDatasetBuilder,
    build_corpus,
    check_groups_separated,
    group_names,
    row_to_spectrum,
    simulate_sediment_cores,
)
from dataset_builder.__main__ import main

SIMULATION = {"num_spectra": 90, "num_cores": 9, "seed": 4}


@pytest.fixture(scope="module")
def simulated_corpus(tmp_path_factory):
    return build_corpus("simulated", tmp_path_factory.mktemp("corpora") / "simulated", **SIMULATION, shard_rows=40)


def write_table(path, rows=12):
    """A wide table of four cores with three depths each, every channel different."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(50, (rows, 32))
    header = ["sample", "depth_mm", "gain_kev", "offset_kev", *(f"channel_{i}" for i in range(32))]
    lines = [",".join(header)]
    lines += [f"S{i // 3}-{i},{i}.5,0.02,0.0," + ",".join(map(str, row)) for i, row in enumerate(counts)]
    path.write_text("\n".join(lines) + "\n")
    return counts


def bytes_of(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def load(folder, cache):
    import datasets

    return datasets.load_dataset(str(folder), cache_dir=str(cache))


def test_layout_of_a_corpus(simulated_corpus):
    names = list(bytes_of(simulated_corpus))
    assert names == [
        "README.md",
        "corpus.json",
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/validation-00000-of-00001.parquet",
    ]
    assert [path.name for path in simulated_corpus.parent.iterdir()] == [simulated_corpus.name]  # nothing left over


def test_corpus_holds_the_simulated_spectra_and_respects_cores(simulated_corpus, tmp_path):
    splits = load(simulated_corpus, tmp_path)
    rows = [(name, row) for name, dataset in splits.items() for row in dataset]
    assert len(rows) == 90
    check_groups_separated(
        group_names([r["core"] for _, r in rows], [r["sample"] for _, r in rows]), [s for s, _ in rows]
    )
    by_sample = {row["sample"]: row_to_spectrum(row) for _, row in rows}
    for batch in simulate_sediment_cores(**SIMULATION):
        for spectrum in batch:
            stored = by_sample[spectrum.sample]
            np.testing.assert_array_equal(stored.counts, spectrum.counts)
            assert stored.targets == pytest.approx(spectrum.targets, rel=1e-6)
            assert (stored.target_units, stored.core) == (spectrum.target_units, spectrum.core)
            assert (stored.gain_kev, stored.tube_kv, stored.anode) == (0.02, 10.0, "Rh")


def test_corpus_loads_in_a_process_without_our_code(simulated_corpus, tmp_path):
    code = (
        "import json, sys, datasets\n"
        f"splits = datasets.load_dataset({str(simulated_corpus)!r})\n"
        "print(json.dumps({'rows': {k: len(v) for k, v in splits.items()},\n"
        "    'features': str(splits['train'].features),\n"
        "    'ours': [m for m in sys.modules if m.startswith('dataset_builder') or m.endswith('_xrf')]}))"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-I", "-c", code]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    assert sum(found["rows"].values()) == 90
    assert found["ours"] == []
    assert "'counts': List(Value('float32'))" in found["features"]
    assert "'CaCO3': Value('float32')" in found["features"]


def test_same_input_gives_the_same_bytes_with_more_processes_too(simulated_corpus, tmp_path):
    again = build_corpus("simulated", tmp_path / "again", **SIMULATION, shard_rows=40, num_proc=2)
    assert bytes_of(again) == bytes_of(simulated_corpus)


def test_building_again_does_nothing_and_another_corpus_is_refused(simulated_corpus):
    before = {path: path.stat().st_mtime_ns for path in simulated_corpus.rglob("*")}
    build_corpus("simulated", simulated_corpus, **SIMULATION, shard_rows=40)
    assert {path: path.stat().st_mtime_ns for path in simulated_corpus.rglob("*")} == before
    with pytest.raises(ValueError, match="already holds something else"):
        build_corpus("simulated", simulated_corpus, **{**SIMULATION, "seed": 5}, shard_rows=40)


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="already holds something else"):
        build_corpus("simulated", tmp_path, **SIMULATION)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_card_is_valid_and_names_units_and_splits(simulated_corpus):
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(simulated_corpus / "README.md")
    assert card.data.license == "apache-2.0"
    assert [entry["split"] for entry in card.data.configs[0]["data_files"]] == ["train", "validation", "test"]
    assert "| CaCO3 | wt% | 90 |" in card.text
    assert "Secondary fluorescence, grain size" in card.text


def test_corpus_of_a_table_with_cores_from_sample_names(tmp_path):
    counts = write_table(tmp_path / "a.csv")
    folder = build_corpus(tmp_path / "a.csv", tmp_path / "corpus", core_pattern=r"^(.+)-\d+$", num_proc=2)
    splits = load(folder, tmp_path / "cache")
    rows = [(name, row) for name, dataset in splits.items() for row in dataset]
    assert sorted({row["core"] for _, row in rows}) == ["S0", "S1", "S2", "S3"]
    check_groups_separated([row["core"] for _, row in rows], [split for split, _ in rows])
    for _, row in rows:
        number = int(row["sample"].split("-")[1])
        np.testing.assert_array_equal(row["counts"], counts[number])
        assert row["depth_mm"] == number + 0.5
    assert json.loads(rows[0][1]["target_units"]) == {}


def test_corpus_can_be_read_and_built_again(simulated_corpus, tmp_path):
    """Our own Parquet is a source too: nothing is lost on the way."""
    folder = build_corpus(simulated_corpus / "data", tmp_path / "copy", seed=1)
    original, copy = load(simulated_corpus, tmp_path / "a"), load(folder, tmp_path / "b")
    assert copy["train"].features == {**copy["train"].features, **original["train"].features}
    rows = {row["sample"]: row for dataset in original.values() for row in dataset}
    for dataset in copy.values():
        for row in dataset:
            assert row["counts"] == rows[row["sample"]]["counts"]
            assert row["TOC"] == rows[row["sample"]]["TOC"]


def test_builder_divides_lists_over_processes(tmp_path):
    builder = XRFDatasetBuilder(cache_dir=str(tmp_path), source="simulated", **SIMULATION)
    builder.download_and_prepare(num_proc=2)
    assert sum(split.num_examples for split in builder.info.splits.values()) == 90
    assert "CaCO3 (wt%)" in builder.info.description
    other = XRFDatasetBuilder(cache_dir=str(tmp_path), source="simulated", **{**SIMULATION, "seed": 9})
    assert other.cache_dir != builder.cache_dir


def test_changed_file_changes_the_cache(tmp_path):
    write_table(tmp_path / "a.csv")
    first = XRFDatasetBuilder(cache_dir=str(tmp_path / "cache"), source=str(tmp_path / "a.csv")).cache_dir
    write_table(tmp_path / "a.csv", rows=11)
    assert XRFDatasetBuilder(cache_dir=str(tmp_path / "cache"), source=str(tmp_path / "a.csv")).cache_dir != first


def test_folders_of_one_name_are_not_taken_for_each_other(tmp_path):
    """datasets would read the second from the cache of the first, were their cards alike."""
    for seed in (1, 2):
        folder = build_corpus("simulated", tmp_path / str(seed) / "corpus", num_spectra=9, num_cores=9, seed=seed)
        rows = load(folder, tmp_path / "cache")["train"]
        assert set(rows["source"]) == {f"simulation, seed {seed}"}


def run_main(capsys, *arguments):
    try:
        run(lambda: main([str(argument) for argument in arguments]))
    except SystemExit as stop:
        return stop.code, capsys.readouterr()
    return 0, capsys.readouterr()


def test_command_line_simulates(tmp_path, capsys):
    code, output = run_main(
        capsys, "simulate", "--num-spectra", 30, "--num-cores", 10, "--seed", 1, "--output", tmp_path / "corpus"
    )
    assert code == 0
    assert "train 24 (8 groups), validation 3 (1 groups), test 3 (1 groups)" in output.out
    assert (tmp_path / "corpus" / "data" / "train-00000-of-00001.parquet").is_file()


def test_command_line_builds_with_a_column_mapping(tmp_path, capsys):
    lines = ["id;x0;x1;lime"] + [f"s{i};{i + 1};{2 * i};{10 + i}" for i in range(6)]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    mapping = {
        "channels": "x",
        "columns": {"sample": "id"},
        "constants": {"gain_kev": 0.02, "offset_kev": 0},
        "targets": {"CaCO3": "lime"},
        "target_units": {"CaCO3": "wt%"},
    }
    (tmp_path / "mapping.json").write_text(json.dumps(mapping))
    arguments = [
        "--column-mapping",
        tmp_path / "mapping.json",
        "--output",
        tmp_path / "corpus",
        "--test-fraction",
        0.2,
    ]
    code, output = run_main(capsys, "build", tmp_path / "a.csv", *arguments)
    assert code == 0, output.err
    rows = [row for dataset in load(tmp_path / "corpus", tmp_path / "cache").values() for row in dataset]
    assert {row["sample"]: row["CaCO3"] for row in rows} == {f"s{i}": 10.0 + i for i in range(6)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "--num-spectra", 5, "--num-cores", 9], "at most num_spectra"),
        (["simulate", "--num-spectra", 9, "--num-cores", 2], "3 splits need at least as many"),
        (["simulate", "--test-fraction", 0.95], "add up to 1"),
        (["simulate", "--shard-rows", 0], "shard_rows must be at least 1; got 0"),
        (["build", "nowhere"], "no such file or folder"),
        (["build", "empty"], "the folder must hold spectra"),
        (["build", "bad.csv"], "bad.csv, row 2: counts must be finite"),
        (["build", "nameless.csv"], "row 0: a spectrum must have a core or a sample"),
        (["build", "good.csv", "--core-pattern", "["], "must be a regular expression"),
        (["build", "good.csv", "--core-pattern", "S"], "add parentheses"),
        (["build", "good.csv", "--column-mapping", "good.csv"], "must be a JSON file"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_nothing_written(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_table(tmp_path / "good.csv")
    lines = (tmp_path / "good.csv").read_text().splitlines()
    lines[3] = lines[3].rsplit(",", 1)[0] + ",nan"
    (tmp_path / "bad.csv").write_text("\n".join(lines))
    (tmp_path / "nameless.csv").write_text("channel_0,channel_1\n1,2\n3,4\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    code, output = run_main(capsys, *arguments, "--output", "corpus")
    assert code == 2
    assert message in output.err
    assert output.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("limit_bytes", [20_000, 400_000])
def test_no_room_for_the_files_ends_with_one_sentence_and_nothing_written(tmp_path, limit_bytes):
    """A limit on file sizes stands for a full disk: first the cache, then the Parquet file cannot be written."""
    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))\n"
        "sys.argv[1:] = ['simulate', '--num-spectra', '300', '--num-cores', '3', '--output', 'corpus']\n"
        "import runpy; runpy.run_module('dataset_builder', run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert [line for line in result.stderr.splitlines() if line.startswith("error: ")][0].endswith("File too large")
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_disagreeing_units_are_refused(tmp_path):
    values = np.array([[1.0], [2.0]])
    common = {"counts": np.ones((2, 4)), "sample": np.array(["a", "b"])}
    np.savez(tmp_path / "a.npz", elements=np.array(["Ca"]), weight_percent=values, **common)
    np.savez(tmp_path / "b.npz", oxides=np.array(["Ca"]), weight_percent_by_fundamental_parameters=values, **common)
    with pytest.raises(ValueError, match="target Ca must have one unit"):
        build_corpus(tmp_path, tmp_path / "corpus")


def test_pushed_corpus_loads_by_its_id(simulated_corpus, hub_org, tmp_path, capsys):
    import datasets

    code, output = run_main(capsys, "push", simulated_corpus, f"{hub_org}/simulated")
    assert code == 0 and f"datasets/{hub_org}/simulated" in output.out
    splits = datasets.load_dataset(f"{hub_org}/simulated", cache_dir=str(tmp_path))
    assert sum(len(dataset) for dataset in splits.values()) == 90


def test_genuine_mudrocks_become_a_corpus(real_data, tmp_path):
    source = real_data / "labelled" / "mudrock_light_instrument_a.npz"
    folder = build_corpus(source, tmp_path / "corpus", core_pattern=r"^(.+?)-?\d+$", test_fraction=0.2)
    rows = [row for dataset in load(folder, tmp_path / "cache").values() for row in dataset]
    with np.load(source, allow_pickle=False) as archive:
        totals = dict(zip(archive["sample"].tolist(), archive["counts"].sum(axis=1).tolist()))
    assert {row["sample"]: sum(row["counts"]) for row in rows} == totals
