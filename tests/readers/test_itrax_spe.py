"""Itrax raw `.spe`, and its calibration from the files beside it."""

import os
from pathlib import Path

import numpy as np
import pytest
from instrument_files.itrax_spe import COUNTS, document, examples, itrax_spe, results, settings

from dataset_builder import SpectrumFileError, read_spectra
from dataset_builder.readers import recognise_format

ROWS = [("L000011.spe", 42.54, 1, 0.0101, -0.001), ("L000012.spe", 43.54, 0, 0.0102, -0.002)]


def read(folder, files, name="L000012.spe"):
    """Write files of content by name and read the one."""
    for file_name, content in files.items():
        (folder / file_name).parent.mkdir(parents=True, exist_ok=True)
        (folder / file_name).write_bytes(content)
    (spectrum,) = read_spectra(folder / name)
    return spectrum


def calibration(spectrum):
    return spectrum.gain_kev, spectrum.offset_kev


def test_a_scan(tmp_path):
    spectrum = read(tmp_path, examples())
    assert recognise_format(tmp_path / "L000012.spe").name == "Itrax spe"
    np.testing.assert_array_equal(spectrum.counts, COUNTS)
    assert spectrum.counts.dtype.kind == "i"
    assert calibration(spectrum) == (0.010279, -0.009931)  # row 12 of Results
    assert spectrum.energy_kev[3] == pytest.approx(3 * 0.010279 - 0.009931)  # "4.000" in the file is channel 3
    assert (spectrum.anode, spectrum.tube_kv, spectrum.tube_ua) == ("Mo", 30.0, 28_000.0)
    assert (spectrum.live_time_s, spectrum.real_time_s) == (13.480499, 15.000049)
    assert (spectrum.core, spectrum.depth_mm, spectrum.instrument) == ("GC-07", 43.540018, "Itrax")
    assert spectrum.metadata["section"] == "GC-07_S1"
    assert spectrum.metadata["E1"] == "1.000000 keV/channel"  # the placeholder is kept, and not used
    assert (spectrum.metadata["comments"], spectrum.metadata["validity"]) == ("in position", "1")


def test_an_older_spectrum_with_whole_counts(tmp_path):
    spectrum = read(tmp_path, examples(), "L000013.spe")
    np.testing.assert_array_equal(spectrum.counts, COUNTS)
    assert calibration(spectrum) == (0.01028, -0.009931)
    assert spectrum.live_time_s is None


def test_a_folder_gives_its_spectra_and_not_the_files_beside_them(tmp_path):
    read(tmp_path, examples())
    assert [spectrum.source for spectrum in read_spectra(tmp_path)] == ["L000012.spe", "L000013.spe"]


def test_files_beside_the_folder_of_the_spectra(tmp_path):
    files = {"XRF data/L000012.spe": itrax_spe(), "Results.txt": results(ROWS), "document.txt": document()}
    spectrum = read(tmp_path, files, "XRF data/L000012.spe")
    assert calibration(spectrum) == (0.0102, -0.002)
    assert spectrum.metadata["calibration"] == "row of the spectrum in Results.txt"
    assert (spectrum.core, spectrum.metadata["validity"], spectrum.metadata["MSE"]) == ("GC-07", "0", "1.26")
    read(tmp_path, {"other/L000012.spe": itrax_spe()}, "other/L000012.spe")
    assert calibration(read(tmp_path, {}, "other/L000012.spe")) == (None, None)  # not the scanner's folder


def test_without_any_file_there_is_no_calibration(tmp_path):
    spectrum = read(tmp_path, {"L000012.spe": itrax_spe()})
    assert calibration(spectrum) == (None, None)
    assert spectrum.metadata["calibration"] == "none: no Results and no .dfl file beside the spectrum has one for it"
    assert spectrum.core is None  # 222 and section are what the software writes by itself


def test_settings_help_where_results_has_no_row(tmp_path):
    files = {"L000099.spe": itrax_spe(Position="130.54"), "Results.txt": results(ROWS), "Results.dfl": settings()}
    spectrum = read(tmp_path, files, "L000099.spe")
    assert calibration(spectrum) == (0.0102, -0.0098)
    assert spectrum.metadata["calibration"] == "Results.dfl"
    assert spectrum.core is None


def test_settings_of_two_tubes(tmp_path):
    two = settings(gain=0.0175, tube=1) + b"\n" + settings(gain=0.0102, tube=2)
    assert calibration(read(tmp_path, {"L000012.spe": itrax_spe(), "a.dfl": two})) == (0.0102, -0.0098)
    without_selector = two.replace(b"tube selector", b"tube")
    assert calibration(read(tmp_path, {"a.dfl": without_selector})) == (None, None)


def test_a_row_at_another_position_is_of_another_scan(tmp_path):
    files = {"L000012.spe": itrax_spe(Position="43.64"), "Results.txt": results(ROWS)}
    assert calibration(read(tmp_path, files)) == (None, None)


def test_a_renamed_spectrum_is_found_by_its_position(tmp_path):
    files = {"GC-07_S1_12.spe": itrax_spe(), "L000044.spe": itrax_spe(), "Results.txt": results(ROWS)}
    assert calibration(read(tmp_path, files, "GC-07_S1_12.spe")) == (0.0102, -0.002)
    assert calibration(read(tmp_path, files, "L000044.spe")) == (None, None)  # the scanner's 44 is not its 12
    twice = results([*ROWS, ("L000013.spe", 43.54, 1, 0.0103, 0.0)])
    assert calibration(read(tmp_path, {"Results.txt": twice}, "GC-07_S1_12.spe")) == (None, None)


def test_results_that_contradict_each_other_give_no_calibration(tmp_path):
    other = results([("L000012.spe", 43.54, 1, 0.0102, 0.01)])  # 12 eV higher: more than the channel of 10.2 eV
    files = {"L000012.spe": itrax_spe(), "Results_a.txt": results(ROWS), "Results_b.txt": other}
    spectrum = read(tmp_path, files)
    assert calibration(spectrum) == (None, None)
    assert "Results_a.txt" in spectrum.metadata["calibration"]
    assert "Results_b.txt" in spectrum.metadata["calibration"]
    near = results([("L000012.spe", 43.54, 1, 0.0102, -0.001)])
    assert calibration(read(tmp_path, {"Results_b.txt": near})) == (0.0102, -0.002)


@pytest.mark.parametrize(
    "side_file",
    [
        {"Results.txt": results([("L000012.spe", 43.54, 1, 1.0, 0.0)])},  # no X-ray detector has 1 keV a channel
        {"Results.txt": results(ROWS).replace(b"0.010200", b"n.a.")},
        {"Results.txt": results(ROWS)[:-40].replace(b"E-gain", b"E")},
        {"Results.txt": b""},
        {"a.dfl": b"keV/channel 2 = \x00\xff"},
    ],
)
def test_files_that_do_not_help_are_passed_over(tmp_path, side_file):
    assert calibration(read(tmp_path, {"L000012.spe": itrax_spe()} | side_file)) == (None, None)


def test_a_changed_results_file_is_read_anew(tmp_path):
    assert calibration(read(tmp_path, examples())) == (0.010279, -0.009931)
    changed = results([("L000012.spe", 43.54, 1, 0.0105, 0.0)])
    assert calibration(read(tmp_path, {"GC-07_S1_Results.txt": changed})) == (0.0105, 0.0)


def test_side_files_are_read_once_for_a_whole_scan(tmp_path, monkeypatch):
    names = [f"L{i:06d}.spe" for i in range(20)]
    rows = [(name, 31.54 + i, 1, 0.0102, 0.0) for i, name in enumerate(names)]
    files = {name: itrax_spe(Position=f"{31.54 + i}") for i, name in enumerate(names)} | {"Results.txt": results(rows)}
    read(tmp_path, files, names[0])
    opened = []
    real_open = open
    monkeypatch.setattr("builtins.open", lambda file, *args, **kw: opened.append(file) or real_open(file, *args, **kw))
    assert {calibration(read(tmp_path, {}, name)) for name in names} == {(0.0102, 0.0)}
    assert {os.path.basename(file) for file in opened} == set(names)


@pytest.mark.parametrize(
    ("documents", "core"),
    [
        ({"document.txt": document()}, "GC-07"),
        ({"rad_document.txt": document(core="other", XRF=("OFF", "", "")), "xrf_document.txt": document()}, "GC-07"),
        ({"document.txt": document(Tube=("Cr", "", ""))}, "GC-07_S1"),
        ({"document.txt": document(XRF_voltage_and_current=("30", " ", "30"))}, "GC-07_S1"),
        ({"document.txt": document(Start_coordinate=("50.0", "Stop coordinate", "60.0"))}, "GC-07_S1"),
        ({"document_1.txt": document(), "document_2.txt": document(core="GC-08")}, "GC-07_S1"),
        ({"document.txt": b"Base path:"}, "GC-07_S1"),
        ({}, "GC-07_S1"),
    ],
)
def test_the_core_is_named_by_the_document_of_the_scan_or_else_by_the_path_in_results(tmp_path, documents, core):
    files = {"L000012.spe": itrax_spe(), "Results.txt": results(ROWS)} | documents
    assert read(tmp_path, files).core == core


def test_names_in_the_header_count_where_somebody_filled_them_in(tmp_path):
    spectrum = read(tmp_path, {"L000012.spe": itrax_spe(Sample_name="GC-09", Section_name="S3")})
    assert (spectrum.core, spectrum.metadata["section"]) == ("GC-09", "S3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (itrax_spe(number_mca_channels="2048.0"), "channels: the header declares 2048 channels but 12 were found"),
        (itrax_spe()[:-14], "declares 12 channels but 11"),
        (itrax_spe()[:300], "must end with a line channel, content; the file is cut off"),
        (itrax_spe(first_channel=2), "channels must be numbered 1, 2, 3"),
        (itrax_spe()[:-7] + b"\r\n", "channel 12: every line must hold a channel and its count; found '12.000"),
        (itrax_spe(range(12)), "add up to the 410 events in the run, .*; found 66"),
        (itrax_spe(range(100, 112), decimals=0), "found 1266"),
        (itrax_spe(np.array(COUNTS) + 0.25), r"found 0.25 in channel 0"),
        (itrax_spe(Tube_voltage="thirty"), "header: Tube voltage must be a number; found 'thirty'"),
        (itrax_spe([]).replace(b"12.000000", b""), "must have 1 to 65536 channels; found 0"),
        (itrax_spe(events_in_run="").replace(b"250", b"nan"), "row 3 must be a number; found 'nan"),
    ],
)
def test_what_is_refused(tmp_path, content, message):
    (tmp_path / "a.spe").write_bytes(content)
    with pytest.raises(SpectrumFileError, match=message):
        read_spectra(tmp_path / "a.spe")


def test_genuine_scan(real_data):
    """Numbers as they stand in the files: `events_in_run` 586277, `keV/channel 2`, `energy offset 2`, `Position`."""
    path = real_data / "formats" / "itrax" / "L000676.spe"
    (spectrum,) = read_spectra(path)
    rows = [
        line.split("\t")
        for line in path.read_bytes().decode().replace("\r", "\n").split("\n")
        if line.count("\t") == 1
    ]
    assert spectrum.counts.tolist() == [float(count) for _, count in rows]
    assert (spectrum.counts.size, spectrum.total_counts, spectrum.counts.argmax()) == (2048, 586_272, 361)
    assert calibration(spectrum) == (0.01026698, -0.00993069)  # Results ends at L000056, so from the settings
    assert (spectrum.core, spectrum.depth_mm, spectrum.anode) == ("CD166_19_S1", 707.540018, "Mo")
    assert (spectrum.tube_kv, spectrum.tube_ua, spectrum.live_time_s) == (30.0, 30_000.0, 13.480499)


@pytest.mark.parametrize(("name", "energy_kev"), [("Ca K alpha", 3.6905), ("Fe K alpha", 6.3996)])
def test_the_calibration_puts_peaks_of_a_genuine_spectrum_where_they_belong(real_data, name, energy_kev):
    """Weighted mean of K alpha 1 and 2 (Deslattes et al. 2003); half a channel is 5 eV."""
    (spectrum,) = read_spectra(real_data / "formats" / "itrax" / "L000676.spe")
    top = np.abs(spectrum.energy_kev - energy_kev) < 0.06
    energies, heights = spectrum.energy_kev[top], np.log(spectrum.counts[top])
    curvature, slope, _ = np.polyfit(energies - energy_kev, heights, 2)  # a Gaussian's logarithm is a parabola
    assert abs(-slope / (2 * curvature)) < 0.005


def test_genuine_results_give_each_spectrum_the_calibration_of_its_row(real_data, tmp_path):
    """Row L000054: 85.54 mm, E-gain 0.010267, E-offset -0.009931."""
    source = real_data / "formats" / "itrax"
    files = {"L000054.spe": itrax_spe(Position="85.540001", Tube_current="30")}
    for name in ("CD166_19_S1_Results_first_rows.txt", "CD166_19_S1_xrf_document.txt"):
        files[name] = Path(source / name).read_bytes()
    spectrum = read(tmp_path, files, "L000054.spe")
    assert calibration(spectrum) == (0.010267, -0.009931)
    assert (spectrum.metadata["validity"], spectrum.metadata["MSE"]) == ("1", "1.70")
    assert (spectrum.core, spectrum.metadata["section"]) == ("CD166_19_S1", "CD166_19_S1")
