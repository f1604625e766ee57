"""The house rules that a test can keep: import floors, no engine imported at the door, one entry for every module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(path.stem for path in ROOT.glob("*_xrf.py"))
# A module may import from its own floor and from those below it. Floor 0 knows no torch.
FLOORS = {
    "files_xrf": 0,
    "configuration_xrf": 0,
    "feature_extraction_xrf": 0,
    "command_line_xrf": 0,
    "hub_xrf": 0,
    "evaluation_xrf": 0,
    "figures_xrf": 0,
    "dataset_builder": 0,
    "modeling_xrf": 1,
    "pipeline_xrf": 2,
    "protocols_xrf": 0,
    "peers_xrf": 0,
    "laboratory_xrf": 0,
    "tabular_xrf": 0,
    "report_xrf": 0,
    "cnn_peer_xrf": 2,
    "corpus_xrf": 2,
    "streaming_xrf": 2,
    "training_xrf": 2,
    "finetuning_xrf": 2,
    "inference_xrf": 2,
    "attribution_xrf": 2,
    "reliability_xrf": 2,
    "adaptation_xrf": 2,
}
# The Hub carries these four; they know each other and nothing else of ours.
HUB_MODULES = {"configuration_xrf", "feature_extraction_xrf", "modeling_xrf", "pipeline_xrf"}
OPTIONAL_IN_HUB_MODULES = {"dataset_builder"}  # the pipeline reads files where the package is installed


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level <= 1:
            names.add(node.module.split(".")[0])
    return names


def files_of(module: str) -> list[Path]:
    return [ROOT / f"{module}.py"] if (ROOT / f"{module}.py").exists() else sorted((ROOT / module).rglob("*.py"))


def test_every_module_has_a_floor():
    assert set(FLOORS) == {*MODULES, "dataset_builder"}


@pytest.mark.parametrize("module", FLOORS)
def test_modules_import_downwards_only(module):
    for file in files_of(module):
        for name in imported(file) & set(FLOORS):
            assert FLOORS[name] <= FLOORS[module], f"{file.name} imports {name} from a higher floor"
        if FLOORS[module] == 0:
            assert "torch" not in imported(file), f"{file.name} must work without torch"
        assert not imported(file) & {"scripts", "tests", "benchmarks"}


@pytest.mark.parametrize("module", sorted(HUB_MODULES))
def test_hub_modules_stand_alone(module):
    ours = imported(ROOT / f"{module}.py") & set(FLOORS)
    assert ours <= HUB_MODULES | OPTIONAL_IN_HUB_MODULES


def test_scripts_and_benchmarks_are_not_imported():
    for file in [*ROOT.glob("*_xrf.py"), *(ROOT / "dataset_builder").rglob("*.py")]:
        assert not imported(file) & {path.stem for path in (ROOT / "scripts").glob("*.py")}


@pytest.mark.parametrize(
    "module, heavy",
    [
        ("dataset_builder", "torch transformers datasets pandas xraylib"),
        ("hub_xrf", "torch transformers"),
        ("evaluation_xrf", "torch evaluate sklearn"),
        ("inference_xrf", "torch transformers pyarrow"),
        ("modeling_xrf", "datasets evaluate peft sklearn matplotlib xraylib"),
    ],
)
def test_import_brings_no_more_than_it_needs(module, heavy):
    code = f"import sys, {module}; print(*(name for name in {heavy.split()} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
