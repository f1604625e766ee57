"""The README is true: its first example predicts a handheld's file with the checkpoint that comes along."""

import re

import numpy as np
from conftest import ROOT
from instrument_files import bruker_pdz

from dataset_builder.simulation import SimulatedSource


def handheld_file(path):
    """A `.pdz` as a handheld writes it, of a simulated rock; returns its targets."""
    [batch] = SimulatedSource("rock", "handheld_15kv", num_spectra=1, num_cores=1, seed=5).simulate(0)
    instrument = batch.instrument
    counts = batch.counts[0]
    settings = {"kv": instrument.tube_kv, "live": 60.0, "ev": 1000 * instrument.gain_kev, "start": 0.0}
    record = bruker_pdz.spectrum(counts, valid=int(counts.sum()), filters=(0,) * 6, **settings)
    path.write_bytes(bruker_pdz.version_25(record))
    return {name: values[0] for name, values in batch.labels.items()}


def test_the_first_example_predicts_a_file(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.+?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    (tmp_path / "model_cards").symlink_to(ROOT / "model_cards")
    truth = handheld_file(tmp_path / "measurement.pdz")
    monkeypatch.chdir(tmp_path)
    places = {}
    exec(compile(code, "README.md", "exec"), places)
    answers = {answer["target"]: answer for answer in places["answers"]}
    for target in ("SiO2", "Fe2O3", "CaO", "K2O"):
        assert answers[target]["unit"] == "wt%"
        assert abs(np.log(answers[target]["value"] / truth[target])) < np.log(2), target
        assert answers[target]["lower_90"] < answers[target]["value"] < answers[target]["upper_90"]
