"""MAX's tree: spectra, cores, depths and targets arrive; damage names the file."""

import numpy as np
import pytest
from instrument_files.max_tree import HEADER, write_max_tree

from dataset_builder import SpectrumFileError, iter_spectra, read_spectra


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
    with pytest.raises(SpectrumFileError, match=r"1\.csv: the file cannot be read"):
        read_spectra(tree)
    (tree / "info.csv").write_text("name\n0.csv\n")
    with pytest.raises(SpectrumFileError, match="a column dirname must be there"):
        read_spectra(tree)
    (tree / "info.csv").write_text("dirname\n../../secret.csv\n")
    with pytest.raises(SpectrumFileError, match="must be the name of a .csv file in spe"):
        read_spectra(tree)


def test_max_tree_whose_target_has_no_name_is_refused(tmp_path):
    write_max_tree(tmp_path / "train", targets=[1, 2, 3])
    with pytest.raises(SpectrumFileError, match="target's name must be that of a folder above"):
        read_spectra(tmp_path / "train")


@pytest.mark.parametrize("name", ["..", ".", "0\0.csv", "info.csv/", "", "spe\\0.csv", "/etc/hosts.csv"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    write_max_tree(tmp_path)
    (tmp_path / "info.csv").write_text(HEADER + f"{name},id,1,core,0,0,file,0\n")
    with pytest.raises(SpectrumFileError):
        read_spectra(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("spe/0.csv", "7\n" * 2047 + "seven\n", "0.csv: the count in channel 2047 must be a number; found 'seven'"),
        ("spe/0.csv", "7\n" * 2047 + "nan\n", "channel 2047 must be a number"),
        ("spe/0.csv", "7\n" * 2047 + "1_0\n", "channel 2047 must be a number"),
        ("spe/0.csv", "7\n" * 2047 + "1e20\n", "counts must be plausible"),
        ("spe/0.csv", "7\n" * 2**20, "must not exceed 1 MiB"),
        ("spe/0.csv", "", "the file is empty"),
        ("target/0.csv", "much", "0.csv: CaCO3 must be a number; found 'much'"),
        ("target/0.csv", "inf", "CaCO3 must be a number; found 'inf'"),
        ("info.csv", HEADER + "0.csv,id,1,core,deep,0,f,0\n", "line 2: the depth must be a number; found 'deep'"),
        ("info.csv", HEADER + "0.csv,id,1,core,0,0,f,0,8,9\n", "line 2: .*['8', '9'] are too many"),
    ],
)
def test_damage_names_the_file(tmp_path, file, content, message):
    write_max_tree(tmp_path / "CaCO3%", targets=[1, 2, 3])
    (tmp_path / "CaCO3%" / file).write_text(content)
    with pytest.raises(SpectrumFileError, match=message.replace("[", r"\[")):
        read_spectra(tmp_path)


def test_other_line_ends_encodings_and_a_cell_too_long(tmp_path):
    write_max_tree(tmp_path)
    info = tmp_path / "info.csv"
    text = info.read_text().replace("file 0", "Färöer").replace("\n", "\r")
    info.write_bytes(text.encode("cp1252"))
    spectra = read_spectra(tmp_path)
    assert (len(spectra), spectra[0].metadata["filename"]) == (3, "Färöer")
    info.write_text(HEADER + '0.csv,"' + "x" * 200_000)
    with pytest.raises(SpectrumFileError, match="the file must be a table"):
        read_spectra(tmp_path)
