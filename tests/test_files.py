"""Files and folders that appear whole or not at all, and run folders that belong to one run."""

import json

import pytest

from files_xrf import atomic_file, atomic_folder, claim_run_folder, write_json, write_text


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert [entry.name for entry in path.parent.iterdir()] == ["table.csv"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    write_text(path, "old")
    with pytest.raises(OSError, match="disk full"), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]


def test_a_folder_takes_the_place_of_the_old_one_whole(tmp_path):
    path = tmp_path / "model"
    for content in ("a", "b"):
        with atomic_folder(path) as temporary:
            (temporary / content).write_text(content)
    assert [entry.name for entry in path.iterdir()] == ["b"]
    with pytest.raises(ValueError, match="stop"), atomic_folder(path) as temporary:
        (temporary / "c").write_text("c")
        raise ValueError("stop")
    assert [entry.name for entry in path.iterdir()] == ["b"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_run_folder_belongs_to_one_run(tmp_path):
    folder = claim_run_folder(tmp_path / "run", "run_msm.py", {"seed": 3})
    assert json.loads((folder / "run.json").read_text()) == {"script": "run_msm.py", "arguments": {"seed": 3}}
    with pytest.raises(ValueError, match="holds another run of run_msm.py; choose another output_dir, or resume"):
        claim_run_folder(folder, "run_msm.py", {})
    with pytest.raises(ValueError, match="holds another run of run_msm.py; choose another output_dir"):
        claim_run_folder(folder, "run_regression.py", {}, resume=True)
    assert claim_run_folder(folder, "run_msm.py", {"seed": 3}, resume=True) == folder


def test_a_folder_with_other_files_or_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files \(notes.txt, ...\)"):
        claim_run_folder(tmp_path, "run_msm.py", {}, resume=True)
    with pytest.raises(ValueError, match="notes.txt is a file"):
        claim_run_folder(tmp_path / "notes.txt", "run_msm.py", {})


def test_json_is_written_readably(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"b": [1, 2]} and text.endswith("}\n") and "\n  " in text
