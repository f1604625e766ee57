"""Corpora from files and simulation: what they hold, the same bytes always, interruption, rejects, copies, leakage."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from command_line_xrf import run
from dataset_builder import (
    FilesPart,
    LeakageError,
    Recipe,
    SimulatedSource,
    SimulationPart,
    SpectrumFileError,
    XRFDatasetBuilder,
    build_corpus,
    builder,
    check_groups_separated,
    group_names,
    row_to_spectrum,
)
from dataset_builder.__main__ import main

SIMULATION = {"num_spectra": 90, "num_cores": 9, "seed": 4}


@pytest.fixture(scope="module")
def simulated_corpus(tmp_path_factory):
    return build_corpus("simulated", tmp_path_factory.mktemp("corpora") / "simulated", **SIMULATION, shard_rows=40)


def write_table(path, rows=12, seed=0):
    """A wide table of four cores with three depths each, every channel different."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(50, (rows, 32))
    header = ["sample", "depth_mm", "gain_kev", "offset_kev", *(f"channel_{i}" for i in range(32))]
    lines = [",".join(header)]
    lines += [f"S{i // 3}-{i},{i}.5,0.02,0.0," + ",".join(map(str, row)) for i, row in enumerate(counts)]
    path.write_text("\n".join(lines) + "\n")
    return counts


def write_archive(path, counts, samples=None, **arrays):
    """An `.npz` of spectra with 20 eV channels."""
    number = len(counts)
    samples = [f"{path.stem}-{i}" for i in range(number)] if samples is None else samples
    arrays = {"gain_kev": np.full(number, 0.02), "offset_kev": np.zeros(number), **arrays}
    np.savez(path, counts=counts, sample=np.array(samples), **{k: v for k, v in arrays.items() if v is not None})


def spectra_of(rng, number, total=200_000, channels=800):
    """Peaks of random heights on a continuum, with counting noise, shape `(number, channels)`."""
    energy_kev = 0.02 * np.arange(channels)
    peaks = np.exp(-0.5 * np.square((energy_kev - np.linspace(1, 15, 10)[:, None]) / 0.065))
    shape = rng.lognormal(size=(number, 10)) @ peaks + 0.02
    return rng.poisson(total * shape / shape.sum(axis=1, keepdims=True))


def bytes_of(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def load(folder, cache):
    import datasets

    return datasets.load_dataset(str(folder), cache_dir=str(cache))


def rows_of(folder):
    """All rows with their split, without the cache of datasets."""
    import pyarrow.parquet as pq

    return [
        {"split": path.name.split("-")[0], **row}
        for path in sorted((folder / "data").glob("*.parquet"))
        for row in pq.read_table(path, partitioning=None).to_pylist()
    ]


def summary_of(folder):
    return json.loads((folder / "corpus.json").read_text())


# --- what a corpus holds ---


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
    source = SimulatedSource(**SIMULATION)
    spectra = [s for unit in range(source.num_units) for batch in source.simulate(unit) for s in batch.spectra()]
    assert len(spectra) == 90
    for spectrum in spectra:
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


def test_corpus_of_a_table_with_cores_from_sample_names(tmp_path):
    counts = write_table(tmp_path / "a.csv")
    folder = build_corpus(tmp_path / "a.csv", tmp_path / "corpus", core_pattern=r"^(.+)-\d+$")
    rows = rows_of(folder)
    assert sorted({row["core"] for row in rows}) == ["S0", "S1", "S2", "S3"]
    check_groups_separated([row["core"] for row in rows], [row["split"] for row in rows])
    for row in rows:
        number = int(row["sample"].split("-")[1])
        np.testing.assert_array_equal(row["counts"], counts[number])
        assert (row["depth_mm"], row["source"]) == (number + 0.5, "a.csv")
    assert json.loads(rows[0]["target_units"]) == {}


def test_corpus_can_be_read_and_built_again(simulated_corpus, tmp_path):
    """Our own Parquet is a source too: nothing is lost on the way."""
    folder = build_corpus(simulated_corpus / "data", tmp_path / "copy", seed=1)
    copies = {row["sample"]: row for row in rows_of(folder)}
    for row in rows_of(simulated_corpus):
        assert {**copies[row["sample"]], "split": ""} == {**row, "split": ""}


def test_targets_of_some_files_are_null_elsewhere_and_disagreeing_units_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    values = np.array([[1.0, 2.0], [3.0, 0.0]])
    elements = np.array(["Ca", "Ti"])
    write_archive(tmp_path / "a.npz", spectra_of(rng, 2), elements=elements, weight_percent=values)
    write_archive(tmp_path / "b.npz", spectra_of(rng, 2))
    rows = {row["sample"]: row for row in rows_of(build_corpus(tmp_path, tmp_path / "corpus"))}
    assert [(rows[name]["Ca"], rows[name]["Ti"]) for name in ("a-0", "a-1", "b-0")] == [
        (1, 2),
        (3, None),
        (None, None),
    ]
    assert {row["target_units"] for row in rows.values()} == {'{"Ca": "wt%", "Ti": "wt%"}'}

    other = {"oxides": elements[:1], "weight_percent_by_fundamental_parameters": values[:, :1]}
    write_archive(tmp_path / "b.npz", spectra_of(rng, 2), **other)
    with pytest.raises(ValueError, match="target Ca must have one unit; it has 'wt% .* in b.npz and 'wt%' in a.npz"):
        build_corpus([tmp_path / "a.npz", tmp_path / "b.npz"], tmp_path / "other")
    folder = build_corpus(
        [tmp_path / "a.npz", tmp_path / "b.npz"], tmp_path / "other", targets=["Ti"], test_fraction=0
    )
    assert "Ca" not in rows_of(folder)[0]


def test_targets_that_a_part_does_not_keep_are_null_though_another_part_has_them(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        values = {"elements": np.array(["Ca"]), "weight_percent": np.full((5, 1), 2.0)}
        write_archive(tmp_path / f"{name}.npz", spectra_of(rng, 5), **values)
    parts = (FilesPart("a", "a.npz"), FilesPart("b", "b.npz", targets=[]))
    rows = rows_of(build_corpus(recipe=Recipe("r", parts), data_root=tmp_path, output_dir=tmp_path / "corpus"))
    assert {(row["source"], row["Ca"]) for row in rows} == {("a.npz", 2.0), ("b.npz", None)}


# --- the same bytes, whatever happens ---


def test_same_input_gives_the_same_bytes_with_more_processes_too(simulated_corpus, tmp_path):
    again = build_corpus("simulated", tmp_path / "again", **SIMULATION, shard_rows=40, num_proc=2)
    assert bytes_of(again) == bytes_of(simulated_corpus)


@pytest.fixture
def many_files(tmp_path, monkeypatch):
    """A folder with a dozen files, read two at a time."""
    monkeypatch.setattr(builder, "PART_FILES", 2)
    folder = tmp_path / "measurements"
    folder.mkdir()
    for number in range(12):
        write_table(folder / f"{number:02d}.csv", seed=number)
    return folder


def counted_reads(monkeypatch):
    """A list to which every part that is read adds the names of its files."""
    reads, read_part = [], builder.read_part

    def counting(task):
        reads.append([file.name for file in task.units])
        read_part(task)

    monkeypatch.setattr(builder, "read_part", counting)
    return reads


def test_order_of_files_and_place_of_the_folder_do_not_matter(many_files, tmp_path, monkeypatch):
    paths = sorted(many_files.iterdir())
    in_order = bytes_of(build_corpus(paths, tmp_path / "in order"))
    assert bytes_of(build_corpus(paths[::-1], tmp_path / "reversed")) == in_order
    expected = bytes_of(build_corpus(many_files, tmp_path / "corpus"))
    elsewhere = tmp_path / "elsewhere" / "measured"
    elsewhere.mkdir(parents=True)
    for path in paths[::-1]:
        (elsewhere / path.name).write_bytes(path.read_bytes())
    assert bytes_of(build_corpus(elsewhere, tmp_path / "corpus of a copy", num_proc=2)) == expected
    monkeypatch.chdir(tmp_path)
    assert bytes_of(build_corpus("measurements", "relative")) == expected


KILLED_WHILE_READING = """
import time
from dataset_builder import build_corpus, builder
builder.PART_FILES = 2
read_part = builder.read_part
def slow(task):
    read_part(task)
    print("read", flush=True)
    time.sleep(0.05)
builder.read_part = slow
build_corpus("measurements", "corpus")
"""
KILLED_WHILE_WRITING = """
import time
from dataset_builder import build_corpus, builder, shards
builder.PART_FILES = 2
write = shards.ShardWriter.write
def slow(self, table):
    write(self, table)
    print("written", flush=True)
    time.sleep(0.05)
shards.ShardWriter.write = slow
build_corpus("measurements", "corpus")
"""


@pytest.mark.parametrize("code, least_read", [(KILLED_WHILE_READING, 3), (KILLED_WHILE_WRITING, 6)])
def test_a_killed_build_goes_on_where_it_was(many_files, tmp_path, monkeypatch, code, least_read):
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    for _ in range(3):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert not (tmp_path / "corpus").exists()
    num_done = len(list((tmp_path / ".corpus.build").glob("*.parquet")))
    assert least_read <= num_done <= 6

    reads = counted_reads(monkeypatch)
    build_corpus(many_files, tmp_path / "corpus")
    assert len(reads) == 6 - num_done
    assert bytes_of(tmp_path / "corpus") == bytes_of(build_corpus(many_files, tmp_path / "at once"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at once", "corpus", "measurements"]


def test_only_the_part_of_a_changed_file_is_read_again(many_files, tmp_path, monkeypatch):
    reads = counted_reads(monkeypatch)
    building = XRFDatasetBuilder(Recipe("r", (FilesPart("f", ["measurements"]),)), tmp_path / "corpus", tmp_path)
    building.work_dir.mkdir()
    building.read()
    assert len(reads) == 6
    write_table(many_files / "07.csv", seed=100)
    reads.clear()
    build_corpus(recipe=building.recipe, data_root=tmp_path, output_dir=tmp_path / "corpus")
    assert reads == [["06.csv", "07.csv"]]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="lists child processes through /proc")
def test_workers_do_not_outlive_a_killed_build(tmp_path):
    code = (
        "from dataset_builder import build_corpus\n"
        "if __name__ == '__main__':\n"
        "    build_corpus('simulated', 'corpus', num_spectra=200_000, num_cores=1000, num_proc=2)\n"
    )
    (tmp_path / "script.py").write_text(code)
    process = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        wait_until(lambda: len(children.read_text().split()) >= 3)  # two workers and the tracker of resources
        workers = children.read_text().split()
        wait_until(lambda: any((tmp_path / ".corpus.build").glob("*.part")))
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not any(is_running(worker) for worker in workers))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, timeout_s=60):
    stop = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < stop, "it did not happen in time"
        time.sleep(0.05)


def test_two_builds_of_one_folder_do_not_meet(many_files, tmp_path):
    building = XRFDatasetBuilder(Recipe("r", (FilesPart("f", ["."]),)), tmp_path / "corpus", many_files)
    with building._locked_work_dir(), pytest.raises(ValueError, match="Another process is building .*corpus; wait"):
        build_corpus(many_files, tmp_path / "corpus")


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


def test_a_corpus_inside_its_source_is_no_source(many_files):
    folder = build_corpus(many_files, many_files / "corpus")
    before = bytes_of(folder)
    build_corpus(many_files, folder)
    assert bytes_of(folder) == before


def test_folders_of_one_name_are_not_taken_for_each_other(tmp_path):
    """datasets would read the second from the cache of the first, were their cards alike."""
    for seed in (1, 2):
        folder = build_corpus("simulated", tmp_path / str(seed) / "corpus", num_spectra=9, num_cores=9, seed=seed)
        rows = load(folder, tmp_path / "cache")["train"]
        assert set(rows["source"]) == {f"simulation, seed {seed}"}


def test_row_groups_and_shards_are_full_whatever_the_parts(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    monkeypatch.setattr(builder, "PART_BYTES", 1)
    rng = np.random.default_rng(0)
    for name, number in (("a", 700), ("b", 13), ("c", 800)):
        write_archive(tmp_path / f"{name}.npz", spectra_of(rng, number, channels=64))
    folder = build_corpus(tmp_path, tmp_path / "corpus", validation_fraction=0, test_fraction=0, shard_rows=1200)
    groups = []
    for path in sorted((folder / "data").iterdir()):
        metadata = pq.read_metadata(path)
        groups.append([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])
    assert groups == [[1000, 200], [313]]
    assert [row["sample"] for row in rows_of(folder)][695:715] == [f"a-{i}" for i in range(695, 700)] + [
        f"b-{i}" for i in range(13)
    ] + ["c-0", "c-1"]


# --- what cannot be used, what is filled in, and duplicates ---


def test_what_cannot_be_used_is_listed_and_the_rest_is_built(tmp_path, capsys):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    write_table(source / "good.csv")
    lines = (source / "good.csv").read_text().splitlines()
    lines[3] = lines[3].rsplit(",", 1)[0] + ",nan"
    (source / "sub" / "bad.csv").write_text("\n".join([lines[0], lines[3]]))
    write_archive(source / "a.npz", np.ones((2, 8), int))
    (source / "a.npz").write_bytes((source / "a.npz").read_bytes()[:500])
    write_archive(source / "open.npz", np.ones((2, 8), int), gain_kev=None)
    code, output = run_main(capsys, "build", source, "--output", tmp_path / "corpus", "--num-proc", 2)
    assert code == 0, output.err
    assert "4 files or spectra cannot be used" in output.out
    with open(tmp_path / "corpus" / "rejected.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["place"]) for row in rows] == [
        ("a.npz", ""),
        ("open.npz", "spectrum 0"),
        ("open.npz", "spectrum 1"),
        ("sub/bad.csv", "row 0"),
    ]
    assert "give gain_kev and offset_kev" in rows[1]["reason"]
    assert summary_of(tmp_path / "corpus")["rejected"] == 4
    assert len(rows_of(tmp_path / "corpus")) == 12
    with pytest.raises(SpectrumFileError, match="a.npz"):
        build_corpus(source, tmp_path / "strict", on_error="raise")
    with pytest.raises(SpectrumFileError, match="a.npz"):
        build_corpus(source, tmp_path / "strict", on_error="raise", num_proc=2)
    assert not (tmp_path / "strict").exists() and not (tmp_path / ".strict.build").exists()
    skipping = XRFDatasetBuilder(Recipe("measured", (FilesPart("files", ["."]),)), tmp_path / "strict", source)
    skipping.work_dir.mkdir()
    skipping.read()  # what an interrupted build noted stops a strict one
    with pytest.raises(SpectrumFileError, match="a.npz"):
        build_corpus(source, tmp_path / "strict", on_error="raise")


def test_nothing_usable_is_an_error_that_says_why(tmp_path):
    for name in "abc":
        write_archive(tmp_path / f"{name}.npz", np.ones((2, 8), int), gain_kev=None)
    with pytest.raises(
        ValueError, match="No spectrum can be used; 6 were rejected, the first of them a.npz, spectrum"
    ):
        build_corpus(tmp_path, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_open_fields_are_filled_and_stated_ones_kept_unless_asked(tmp_path, capsys):
    rng = np.random.default_rng(0)
    write_archive(tmp_path / "open.npz", spectra_of(rng, 3), gain_kev=None, offset_kev=None)
    write_archive(tmp_path / "stated.npz", spectra_of(rng, 3), gain_kev=np.full(3, 0.01), anode=np.array("Mo"))
    fill = ["--gain-kev", 0.02, "--offset-kev", -0.01, "--anode", "Rh", "--tube-kv", 10]
    code, output = run_main(capsys, "build", tmp_path, "--output", tmp_path / "filled", *fill)
    assert code == 0, output.err
    found = {
        (r["source"], r["gain_kev"], r["offset_kev"], r["anode"], r["tube_kv"]) for r in rows_of(tmp_path / "filled")
    }
    assert found == {("open.npz", 0.02, -0.01, "Rh", 10), ("stated.npz", 0.01, 0.0, "Mo", 10)}
    paths = [tmp_path / "open.npz", tmp_path / "stated.npz"]
    run_main(capsys, "build", *paths, "--output", tmp_path / "overwritten", *fill, "--overwrite")
    rows = rows_of(tmp_path / "overwritten")
    assert {(r["gain_kev"], r["offset_kev"], r["anode"]) for r in rows} == {(0.02, -0.01, "Rh")}


def test_file_names_that_are_no_text_are_no_obstacle(tmp_path):
    """A name in another encoding than the file system's, as archives from other systems leave them."""
    folder = tmp_path / "measurements"
    folder.mkdir()
    write_table(folder / "a.csv")
    try:
        os.rename(os.fsencode(folder / "a.csv"), os.fsencode(folder) + b"/M\xfcnchen.csv")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert {row["source"] for row in rows_of(build_corpus(folder, tmp_path / "corpus"))} == {"M?nchen.csv"}


def test_exact_duplicates_are_dropped_and_the_first_stays(tmp_path):
    counts = spectra_of(np.random.default_rng(0), 10)
    write_archive(tmp_path / "b.npz", counts)
    write_archive(tmp_path / "a.npz", counts[3:6], samples=["x", "y", "z"])
    write_archive(tmp_path / "c.npz", counts[:1], gain_kev=np.array([0.025]))  # another calibration: another spectrum
    folder = build_corpus(tmp_path, tmp_path / "corpus", test_fraction=0)
    assert summary_of(folder)["duplicates"] == 3
    assert sorted(row["sample"] for row in rows_of(folder)) == sorted(
        ["x", "y", "z", "c-0", *(f"b-{i}" for i in range(10) if i not in (3, 4, 5))]
    )
    assert "3 exact duplicates" in (folder / "README.md").read_text()


# --- groups and leakage ---


def test_measured_points_are_groups_with_both_detectors_and_apart_from_other_maps(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("first", "second"):
        archive = {"point": np.repeat(np.arange(40), 2), "detector": np.tile(["A", "B"], 40)}
        counts = spectra_of(rng, 80)
        np.savez(tmp_path / f"{name}.npz", counts=counts, gain_kev=0.02, offset_kev=0.0, **archive)
    rows = rows_of(build_corpus(tmp_path, tmp_path / "corpus"))
    groups = {}
    for row in rows:
        groups.setdefault(row["sample"], []).append((row["source"], row["detector"], row["split"]))
    assert len(groups) == 80
    assert all(len({(source, split) for source, _, split in found}) == 1 for found in groups.values())
    assert {tuple(sorted(detector for _, detector, _ in found)) for found in groups.values()} == {("A", "B")}
    assert "first.npz point 7" in groups and "second.npz point 7" in groups


COPIES = {
    "rescaled": lambda counts: counts * 0.5,
    "rounded": lambda counts: np.rint(counts / 7),
    "shifted calibration": lambda counts: counts,
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_planted_copy_fails_the_build_and_grouping_it_mends_that(tmp_path, monkeypatch, kind):
    rng = np.random.default_rng(3)
    counts = spectra_of(rng, 60)
    write_archive(tmp_path / "a.npz", counts, samples=[f"rock{i}-a" for i in range(60)])
    exported = {"gain_kev": np.full(60, 0.020001)} if kind == "shifted calibration" else {}
    write_archive(tmp_path / "b.npz", COPIES[kind](counts), samples=[f"rock{i}-b" for i in range(60)], **exported)
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    with pytest.raises(LeakageError) as error:
        build_corpus(paths, tmp_path / "corpus")
    message = str(error.value)
    names = [word for word in message.split() if word.startswith("rock")]
    assert names[0].split("-")[0] == names[1].split("-")[0]
    assert "of a.npz" in message and "of b.npz" in message and "core_pattern, or drop" in message
    assert not (tmp_path / "corpus").exists()

    reads = counted_reads(monkeypatch)
    build_corpus(paths, tmp_path / "corpus", core_pattern=r"^(rock\d+)-")
    assert reads == []  # what was read for the first attempt is used
    rows = rows_of(tmp_path / "corpus")
    check_groups_separated([row["core"] for row in rows], [row["split"] for row in rows])


def test_honest_repetitions_under_many_names_pass(tmp_path):
    rng = np.random.default_rng(4)
    shape = spectra_of(rng, 1)
    write_archive(tmp_path / "a.npz", rng.poisson(np.repeat(shape, 500, axis=0)))
    folder = build_corpus(tmp_path / "a.npz", tmp_path / "corpus")
    assert len(rows_of(folder)) == 500


def test_genuine_repetitions_pass_as_samples_and_as_one_glass(real_data, tmp_path):
    source = real_data / "unlabelled" / "m4_tornado_srm1831.npz"
    folder = build_corpus(source, tmp_path / "corpus")
    assert [split["spectra"] for split in summary_of(folder)["splits"].values()] == [160, 20, 20]
    with pytest.raises(ValueError, match="3 splits need at least as many cores or samples, but there are 1"):
        build_corpus(source, tmp_path / "other", core_pattern="^(SRM_1831)")


# --- weights ---


def mixture(*weights, **options):
    names = "ab"
    parts = [FilesPart(n, f"{n}.npz", weight=w) for n, w in zip(names, weights, strict=True)]
    return Recipe("mixture", tuple(parts), **options)


@pytest.fixture
def two_archives(tmp_path):
    rng = np.random.default_rng(5)
    write_archive(tmp_path / "a.npz", spectra_of(rng, 90))
    write_archive(tmp_path / "b.npz", spectra_of(rng, 30))
    return tmp_path


@pytest.mark.parametrize(
    "recipe, used",
    [
        (mixture(None, None), (90, 30)),
        (mixture(1, 1), (30, 30)),
        (mixture(0.9, 0.1), (90, 10)),
        (mixture(1, 1, num_spectra=40), (20, 20)),
        (mixture(1, 1, num_spectra=100), (50, 30)),  # the smaller part is used whole and nothing twice
    ],
)
def test_weights_are_shares_and_no_spectrum_is_used_twice(two_archives, recipe, used):
    folder = build_corpus(recipe=recipe, data_root=two_archives, output_dir=two_archives / "corpus")
    rows = rows_of(folder)
    assert (sum(r["source"] == "a.npz" for r in rows), sum(r["source"] == "b.npz" for r in rows)) == used
    assert len({row["sample"] for row in rows}) == sum(used)
    assert [part["used"] for part in summary_of(folder)["parts"].values()] == list(used)


def test_thinning_out_depends_on_the_seed_only(two_archives):
    samples = {}
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        recipe = mixture(1, 1, seed=seed)
        folder = build_corpus(recipe=recipe, data_root=two_archives, output_dir=two_archives / name)
        samples[name] = {row["sample"] for row in rows_of(folder)}
    assert samples["first"] == samples["again"] != samples["other"]


def test_cores_of_two_simulations_are_not_taken_for_each_other(tmp_path):
    parts = tuple(SimulationPart(f"part{seed}", 20, 5, seed=seed) for seed in (0, 1))
    rows = rows_of(build_corpus(recipe=Recipe("two", parts), output_dir=tmp_path / "corpus"))
    assert len({row["core"] for row in rows}) == 10
    assert len({(row["core"], row["source"]) for row in rows}) == 10


# --- the card ---


def test_card_is_valid_and_names_units_splits_and_conditions(simulated_corpus):
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(simulated_corpus / "README.md")
    assert card.data.license == "apache-2.0"
    assert [entry["split"] for entry in card.data.configs[0]["data_files"]] == ["train", "validation", "test"]
    assert "| CaCO3 | wt% | 90 |" in card.text
    assert "Results on them say nothing\nabout measured spectra" in card.text
    assert "| 10 | Rh | - | 90 | 2048 | 0.00 to 40.94 | 10 |" in card.text


def test_card_is_made_from_the_parquet_files_alone(tmp_path, capsys):
    rng = np.random.default_rng(6)
    write_archive(tmp_path / "a.npz", spectra_of(rng, 30), tube_kv=np.repeat([10.0, 30.0], 15), instrument="Scanner")
    folder = build_corpus(tmp_path / "a.npz", tmp_path / "corpus", license="cc-by-4.0")
    code, output = run_main(capsys, "card", folder)
    assert code == 0, output.err
    assert "license: cc-by-4.0" in (folder / "README.md").read_text()
    (folder / "corpus.json").unlink()
    code, _ = run_main(capsys, "card", folder, "--license", "mit")
    text = (folder / "README.md").read_text()
    assert code == 0 and "license: mit" in text
    totals = sorted(sum(row["counts"]) for row in rows_of(folder) if row["tube_kv"] == 10)
    median, least, most = np.median(totals), totals[0], totals[-1]
    assert (
        f"| Scanner | 10 | - | - | 15 | 800 | 0.00 to 15.98 | - | {median:.3g} ({least:.3g} to {most:.3g}) |" in text
    )
    assert "Spectra come from `a.npz`." in text


# --- the command line ---


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
    assert {row["sample"]: row["CaCO3"] for row in rows_of(tmp_path / "corpus")} == {
        f"s{i}": 10.0 + i for i in range(6)
    }


def test_command_line_builds_a_recipe(tmp_path, capsys):
    write_table(tmp_path / "a.csv")
    recipe = "name: mine\nparts:\n  - files: {paths: '*.csv', core_pattern: '^(.+)-'}\n"
    (tmp_path / "mine.yaml").write_text(recipe)
    arguments = ["build", tmp_path / "mine.yaml", "--data", tmp_path, "--output", tmp_path / "corpus"]
    code, output = run_main(capsys, *arguments, "--seed", 3)
    assert code == 0, output.err
    assert summary_of(tmp_path / "corpus")["recipe"]["seed"] == 3
    code, output = run_main(capsys, *arguments, "--anode", "Rh")
    assert code == 2 and "write anode into it" in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "--num-spectra", 5, "--num-cores", 9], "at most num_spectra"),
        (["simulate", "--num-spectra", 9, "--num-cores", 2], "3 splits need at least as many"),
        (["simulate", "--test-fraction", 0.95], "must leave something to train on"),
        (["simulate", "--shard-rows", 0], "shard_rows must be at least 1; got 0"),
        (["simulate", "--num-proc", 0], "num_proc must be at least 1; got 0"),
        (["build", "nowhere"], "no such file or folder"),
        (["build", "empty"], "the folder must hold spectra"),
        (["build", "bad.csv", "--on-error", "raise"], "bad.csv, row 2: "),
        (["build", "nameless.csv"], "give gain_kev and offset_kev"),
        (["build", "nameless.csv", "--gain-kev", 0.02, "--offset-kev", 0], "but there are 1"),
        (["build", "nameless.csv", "--gain-kev", -1], "gain_kev must be positive"),
        (["build", "good.csv", "--core-pattern", "["], "must be a regular expression"),
        (["build", "good.csv", "--core-pattern", "S"], "add parentheses"),
        (["build", "good.csv", "--column-mapping", "good.csv"], "must be a JSON file"),
        (["build", "no.yaml"], "There is no recipe no.yaml"),
        (["build", "bad.yaml"], "The recipe bad.yaml cannot be used"),
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
    (tmp_path / "bad.yaml").write_text("name: x\nparts: []\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    code, output = run_main(capsys, *arguments, "--output", "corpus")
    assert code == 2
    assert message in output.err
    assert output.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_no_room_ends_with_one_sentence_and_the_build_goes_on_when_there_is(tmp_path):
    """A limit on file sizes stands for a full disk."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
        "sys.argv[1:] = ['build', 'a.npz', '--output', 'corpus', '--test-fraction', '0']\n"
        "import runpy; runpy.run_module('dataset_builder', run_name='__main__')"
    )
    write_archive(tmp_path / "a.npz", spectra_of(np.random.default_rng(0), 60, channels=400))
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert [line for line in result.stderr.splitlines() if line.startswith("error: ")][0].endswith("File too large")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "corpus").exists()
    build_corpus(tmp_path / "a.npz", tmp_path / "corpus", test_fraction=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "corpus"]


def test_pushed_corpus_loads_by_its_id(simulated_corpus, hub_org, tmp_path, capsys):
    import datasets

    code, output = run_main(capsys, "push", simulated_corpus, f"{hub_org}/simulated")
    assert code == 0 and f"datasets/{hub_org}/simulated" in output.out
    splits = datasets.load_dataset(f"{hub_org}/simulated", cache_dir=str(tmp_path))
    assert sum(len(dataset) for dataset in splits.values()) == 90


def test_genuine_mudrocks_become_a_corpus(real_data, tmp_path):
    source = real_data / "labelled" / "mudrock_light_instrument_a.npz"
    folder = build_corpus(source, tmp_path / "corpus", core_pattern=r"^(.+?)-?\d+$", test_fraction=0.2)
    with np.load(source, allow_pickle=False) as archive:
        totals = dict(zip(archive["sample"].tolist(), archive["counts"].sum(axis=1).tolist()))
    assert {row["sample"]: sum(row["counts"]) for row in rows_of(folder)} == totals
