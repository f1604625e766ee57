"""Recipes: strict, readable errors, a round trip, and the packaged ones."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from dataset_builder import FilesPart, Recipe, SimulationPart, build_corpus, check_groups_separated
from dataset_builder.__main__ import command_line
from dataset_builder.augmentation import augmentation_from_config
from dataset_builder.recipe import packaged_recipes
from dataset_builder.simulation import PRESETS

TEXT = """
name: sediments
license: cc-by-4.0
seed: 7
num_spectra: 1000
validation_fraction: 0.2
test_fraction: 0.0
augmentation:
  - {name: thinning, fraction: [0.1, 1.0]}
parts:
  - name: simulated
    weight: 3
    simulation: {samples: {marine_sediment: 2, rock: 1}, num_spectra: 2000, num_cores: 5, flat_share: 0.2, seed: 3}
  - name: measured
    weight: 1
    files:
      paths: ["*.npz"]
      fill: {gain_kev: 0.02, offset_kev: 0, anode: Rh}
      core_pattern: '^(.+)-\\d+$'
      targets: [CaCO3]
"""


@pytest.fixture
def recipe_file(tmp_path):
    (tmp_path / "mine.yaml").write_text(TEXT)
    return tmp_path / "mine.yaml"


def test_a_recipe_says_what_its_file_says(recipe_file):
    recipe = Recipe.from_yaml(recipe_file)
    assert (recipe.name, recipe.license, recipe.seed, recipe.num_spectra) == ("sediments", "cc-by-4.0", 7, 1000)
    assert recipe.fractions == {"train": 0.8, "validation": 0.2, "test": 0.0}
    assert recipe.weights == [0.75, 0.25]
    assert not recipe.is_endless
    simulated, measured = recipe.parts
    samples = {"marine_sediment": 2, "rock": 1}
    assert simulated == SimulationPart("simulated", 2000, 5, samples=samples, flat_share=0.2, seed=3, weight=3)
    assert (measured.paths, measured.targets, measured.fill["anode"]) == (["*.npz"], ["CaCO3"], "Rh")


def test_round_trip_through_a_dictionary(recipe_file):
    recipe = Recipe.from_yaml(recipe_file)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert "overwrite" not in recipe.to_dict()["parts"][1]["files"]  # a default is not repeated


def test_sources_are_in_the_order_of_parts_and_read_by_unit(recipe_file, tmp_path):
    for name, gain_kev in (("b", np.nan), ("a", 0.01)):
        arrays = {"gain_kev": np.full(2, gain_kev), "offset_kev": np.zeros(2), "sample": np.array(["x", "y"])}
        np.savez(tmp_path / f"{name}.npz", counts=np.ones((2, 8), int), **arrays)
    simulated, measured = Recipe.from_yaml(recipe_file).part_sources(tmp_path)
    assert simulated.num_units == 5
    assert [sample.name for sample in simulated.samples] == ["marine_sediment", "marine_sediment", "rock"]
    assert {sample.flat_share for sample in simulated.samples} == {0.2}
    assert measured.unit_names() == ["a.npz", "b.npz"]
    spectra = [spectrum for unit in range(measured.num_units) for spectrum in measured.spectra(unit)]
    assert [(s.source, s.gain_kev, s.anode) for s in spectra] == [
        ("a.npz", 0.01, "Rh"),
        ("a.npz", 0.01, "Rh"),
        ("b.npz", 0.02, "Rh"),
        ("b.npz", 0.02, "Rh"),
    ]


def changed(old, new):
    assert old in TEXT
    return TEXT.replace(old, new)


@pytest.mark.parametrize(
    "text, message",
    [
        ("- a\n- b\n", "A recipe must have named values"),
        ("name: [", "must be YAML"),
        (changed("name: sediments", ""), "A recipe needs the key 'name'"),
        (changed("seed: 7", "sed: 7"), "A recipe has no key 'sed'; the keys are name, parts, seed"),
        (changed("weight: 3", "wait: 3"), "has the keys name, weight and simulation; found 'wait'"),
        (changed("weight: 3", "weight: -3"), "A weight must be a positive number; that of 'simulated' is -3"),
        (changed("weight: 3", ""), "'simulated' has none"),
        (changed("name: measured", "name: simulated"), "must have different names"),
        (changed("num_cores: 5", "num_cores: 5000"), "at most num_spectra; got 5000 cores for 2000"),
        (changed("num_cores: 5", "num_cores: five"), "num_cores of a simulation must be a whole number; it is 'five'"),
        (changed("rock: 1", "rock: 0.5"), "names, or names with positive whole numbers"),
        (changed("flat_share: 0.2", "flat_share: 2"), "must be a number from 0 to 1; it is 2"),
        (changed("num_cores: 5", "cores: 5"), "simulation of a part has no key 'cores'"),
        (changed("files:", "file:"), "must have either simulation or files"),
        (changed("gain_kev: 0.02", "gain_kev: wide"), "gain_kev must be a number to be filled in; it is 'wide'"),
        (changed("[CaCO3]", "CaCO3"), "targets of files must be a list of names; found 'CaCO3'"),
        (changed("anode: Rh", "Anode: Rh"), "can be filled; found 'Anode'"),
        (changed("'^(.+)-\\d+$'", "'^.+$'"), "has none: add parentheses"),
        (changed("test_fraction: 0.0", "test_fraction: 0.8"), "must leave something to train on"),
        (changed("name: thinning", "name: thining"), "names thinning, drift, broadening, pile_up, but has 'thining'"),
    ],
)
def test_errors_are_one_sentence(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError) as error:
        Recipe.from_yaml(tmp_path / "bad.yaml")
    assert message in str(error.value)
    assert "bad.yaml" in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match="There is no recipe marine; give a YAML file or one of .*simulated_marine"):
        Recipe.from_yaml("marine")


@pytest.mark.parametrize("name", packaged_recipes())
def test_packaged_recipes_are_valid_and_name_simulations_that_there_are(name):
    recipe = Recipe.from_yaml(name)
    assert recipe.name == name and recipe.description and recipe.license
    for part in recipe.parts:
        if isinstance(part, SimulationPart):
            assert part.source().num_units == part.num_cores
    augmentation_from_config(recipe.augmentation)


def test_packaged_sizes():
    marine = Recipe.from_yaml("simulated_marine")
    assert (marine.parts[0].num_spectra, marine.parts[0].num_cores, marine.is_endless) == (55_000, 116, True)
    instruments = Recipe.from_yaml("simulated_instruments")
    assert (instruments.parts[0].num_spectra, instruments.is_endless) == (1_000_000, True)
    anything = Recipe.from_yaml("simulated_any")
    assert (anything.parts[0].num_spectra, anything.is_endless) == (400_000, True)
    assert anything.parts[0].source().unit_size(0) == 100
    assert sum(Recipe.from_yaml("mixed").weights) == pytest.approx(1)
    assert not Recipe.from_yaml("mixed").is_endless


def test_simulated_any_has_every_preset_and_handhelds_most_often():
    (part,) = Recipe.from_yaml("simulated_any").parts
    drawn = part.source().instruments
    counts = {name: drawn.count(f"varied {name}") for name in PRESETS}
    assert drawn.count("random") == 9 and 9 + sum(counts.values()) == len(drawn) == 28
    assert min(counts.values()) == 1
    assert {name for name, count in counts.items() if count == 4} == {"handheld_15kv", "handheld_40kv"}


def test_packaged_files_belong_to_the_package(monkeypatch):
    """What `setup.py` names as package data is where the recipes are."""
    setup = (Path(__file__).parent.parent / "setup.py").read_text()
    assert '"recipes/*.yaml"' in setup and "xrf-data = dataset_builder.__main__:command_line" in setup
    monkeypatch.setattr("sys.argv", ["xrf-data", "--help"])
    with pytest.raises(SystemExit) as stop:
        command_line()
    assert stop.value.code == 0


def test_real_mixed_groups_are_right(real_data, tmp_path):
    import pyarrow.dataset as ds

    folder = build_corpus(
        recipe=Recipe.from_yaml("real_mixed"), data_root=real_data / "unlabelled", output_dir=tmp_path / "c"
    )
    frame = ds.dataset(str(folder / "data")).to_table(columns=["core", "sample", "source", "detector"]).to_pandas()
    frame["split"] = np.concatenate(
        [[path.name.split("-")[0]] * ds.dataset(path).count_rows() for path in sorted((folder / "data").iterdir())]
    )
    frame["group"] = frame["core"].fillna(frame["sample"])
    check_groups_separated(frame["group"], frame["split"])
    groups = frame.groupby("source")["group"].nunique()
    assert groups["coal_benchtop.npz"] == 24
    assert groups["m4_tornado_srm1831.npz"] == 1
    assert groups["pixl_beaujeu.npz"] == 225 and groups["pixl_flight_calibration.npz"] == 306
    assert groups["pixl_breadboard_map.npz"] == 625
    pixl = frame[frame["source"].str.startswith("pixl")]
    assert (pixl.groupby("group")["detector"].apply(lambda detectors: "".join(sorted(detectors))) == "AB").all()
    assert len(frame) == 3608  # four of 3612 are exact duplicates


def test_mixed_holds_simulated_and_real_spectra_in_their_shares(real_data, tmp_path):
    """The packaged mixture at a hundredth of its size, with one instrument in place of random ones."""
    mixed = Recipe.from_yaml("mixed")
    parts = [
        dataclasses.replace(p, num_spectra=p.num_spectra // 100, num_cores=5, instruments="avaatech_10kv")
        if isinstance(p, SimulationPart)
        else p
        for p in mixed.parts
    ]
    recipe = dataclasses.replace(mixed, parts=parts, num_spectra=600)
    folder = build_corpus(recipe=recipe, data_root=real_data / "unlabelled", output_dir=tmp_path / "c")
    used = {name: part["used"] for name, part in json.loads((folder / "corpus.json").read_text())["parts"].items()}
    assert used["marine"] == 300 and used["instruments"] == 240
    assert used["coal_benchtop"] == 6 and used["pixl"] == 18 and sum(used.values()) == 600


def test_a_part_needs_paths():
    with pytest.raises(ValueError, match="paths is empty"):
        FilesPart("files", [])
