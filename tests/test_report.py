"""The report is one page that needs nothing else, says the numbers it was given, and lets no text become markup."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dataset_builder import Spectrum
from laboratory_xrf import LaboratoryTable
from protocols_xrf import CalibrationSet
from report_xrf import (
    Figure,
    Report,
    TargetReport,
    core_profiles,
    draw_table,
    number,
    quantity,
    render_report,
    table_report,
    write_predictions,
    write_report,
)


def row(method, rmse, **fields):
    metrics = {"r2": 0.912, "rmse": rmse, "mae": 1.0, "bias": -0.25, "rpd": 3.0, "rpiq": None, "n": 12}
    return {"method": method, "target": "CaCO3", "unit": "wt%", "split": "x", **metrics, **fields}


@pytest.fixture
def figure(tmp_path):
    Image.new("RGB", (300, 200), (0, 114, 178)).save(tmp_path / "blue.png")
    return Figure(tmp_path / "blue.png", "Predicted & measured", "caption")


def make_report(figure, results, **fields):
    target = TargetReport("CaCO3", "wt%", results, [figure], ["Far off: <b>s1</b>."])
    given = {"facts": [("grid", "2048 channels")], "warnings": ["one core only"], "commands": [("Do:", "python x.py")]}
    return Report("CaCO3 from a.csv", "sub", "Each core.", [target], **{**given, **fields})


class Page(HTMLParser):
    """Attributes that would fetch something, and whether all tags close in order."""

    void = {"meta", "img", "br", "link", "input"}

    def __init__(self):
        super().__init__()
        self.fetched, self.open, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "srcset")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(figure):
    html = render_report(make_report(figure, [row("m", 1.5, coverage_90=0.875, width_90=4.0), row("ridge", 2.0)]))
    page = Page()
    page.feed(html)
    assert page.open == [] and not {"script", "link", "iframe"} & set(page.tags)
    (image,) = page.fetched
    kind, content = image.split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content) == figure.path.read_bytes()
    assert not re.search(r"url\(|@import|https?://", html)
    assert f'width="{round(300 / 150 * 96)}"' in html


def test_the_page_says_its_numbers_and_escapes_its_texts(figure):
    html = render_report(make_report(figure, [row("m", 1.5, coverage_90=0.875, width_90=4.0), row("ridge", 2.0)]))
    for text in (
        "0.912",
        "1.5 wt%",
        "\N{MINUS SIGN}0.25 wt%",
        "88 %",
        "one core only",
        "python x.py",
        "2048 channels",
    ):
        assert text in html
    assert "<b>s1</b>" not in html and "&lt;b&gt;s1" in html and "Predicted &amp; measured" in html
    without = render_report(make_report(figure, [row("m", 1.5)], warnings=[]))
    assert "within the 90 % interval" not in without and "Before you rely" not in without


@pytest.mark.parametrize(
    "rmse, expected",
    [(1.0, "50 % less error than the best of the others, ridge"), (1.99, "As good as"), (3.0, "ridge does better")],
)
def test_the_verdict_is_against_the_best_of_the_others(figure, rmse, expected):
    target = TargetReport("CaCO3", "wt%", [row("m", rmse), row("mean", 9.0), row("ridge", 2.0)], [])
    assert expected in target.verdict and "2 wt%" in target.verdict


def test_numbers_as_people_write_them():
    assert [number(value) for value in (0.0123456, -2, 1234.5, 3e-16, None, float("nan"))] == [
        *("0.0123", "\N{MINUS SIGN}2", "1234", "0"),
        *["\N{EN DASH}"] * 2,
    ]
    assert quantity(2.5, "wt%") == "2.5 wt%" and quantity(2.5, "") == "2.5"


@pytest.fixture
def table():
    """Two cores of 5 and a rock without depth; the last spectrum of each core has no value."""
    spectra = [Spectrum(np.ones(4), core=f"c{i // 5}", depth_mm=10.0 * (i % 5), sample=f"s{i}") for i in range(10)]
    spectra.append(Spectrum(np.ones(4), core="rock", sample="s10"))
    labels = np.arange(11.0)[:, None]
    labels[[4, 9]] = np.nan
    groups = np.array([spectrum.core for spectrum in spectra])
    samples = np.array([spectrum.sample for spectrum in spectra])
    return LaboratoryTable(CalibrationSet(spectra, labels, ["TOC"], samples, groups), ["wt%"], "core", ["f.csv"] * 11)


def test_profiles_hold_measured_and_other_depths_of_each_core(table):
    values = np.arange(11.0)[:, None] + 0.5
    profiles = core_profiles(table, np.arange(11), table.labelled, 0, values, None, None)
    assert [profile["core"] for profile in profiles] == ["c0", "c1"]
    np.testing.assert_array_equal(profiles[1]["depth_mm"], [0, 10, 20, 30, 40])
    np.testing.assert_array_equal(profiles[1]["values"], [5.5, 6.5, 7.5, 8.5, 9.5])
    np.testing.assert_array_equal(profiles[1]["references"], [5, 6, 7, 8, np.nan])


@pytest.mark.parametrize("with_bounds", [True, False])
def test_each_target_gets_three_figures(table, tmp_path, with_bounds):
    values = np.arange(11.0)[:, None] + 0.5
    bounds = (values - 1, values + 1) if with_bounds else None
    (figures,) = draw_table(table, np.arange(11), table.labelled, values, bounds, tmp_path)
    assert [figure.path.name for figure in figures] == ["parity_TOC.png", "profile_TOC.png", "residuals_TOC.png"]
    assert all(Image.open(figure.path).size[0] > 300 for figure in figures)


def test_predictions_come_as_a_table(table, tmp_path):
    values = np.arange(11.0)[:, None] + 0.5
    write_predictions(
        tmp_path / "p.csv", table, table.labelled, values, {0.9: (values - 1, values + 1)}, np.arange(11) == 4
    )
    lines = (tmp_path / "p.csv").read_text().splitlines()
    header = "file,sample,core,depth_mm,out_of_group,TOC_laboratory,TOC,TOC_lower_90,TOC_upper_90,unfamiliar"
    assert lines[0] == header and len(lines) == 12
    assert lines[1] == "f.csv,s0,c0,0,True,0,0.5,-0.5,1.5,False"
    assert lines[5] == "f.csv,s4,c0,40,False,,4.5,3.5,5.5,True"
    assert lines[11].startswith("f.csv,s10,rock,,True,10,")


@pytest.mark.parametrize("coverage, warned", [(0.5, True), (0.92, False)])
def test_intervals_that_do_not_hold_are_warned_of(table, figure, coverage, warned):
    results = [{**row("auto", 1.0, coverage_90=coverage, width_90=2.0), "target": "TOC"}]
    summary = {"results": results, "model": "base", "dataset": "a.csv", "warnings": ["w"], "method": "auto"}
    summary |= {"commit": None, "date": "2026-01-01", "hardware": "cpu", "seed": 3}
    values, labelled = np.nan_to_num(table.data.targets), table.labelled
    report = table_report(table, "each core", summary, values, None, labelled, labelled, [[figure]], [])
    assert any("Only 50 %" in flag for flag in report.targets[0].flags) == warned
    assert report.targets[0].results[0]["method"] == "this model (auto)" and ("seed", "3") in report.provenance
    assert "commit" not in dict(report.provenance)


def test_a_report_appears_whole(figure, tmp_path):
    write_report(tmp_path / "r.html", make_report(figure, [row("m", 1.5)]))
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert {path.name for path in tmp_path.iterdir()} == {"r.html", "blue.png"}
