"""What a script and a model import before they are asked to do anything: nothing heavy that they could do without."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))
HEAVY = {"torch", "transformers", "datasets", "accelerate", "peft", "evaluate", "sklearn", "scipy", "pandas"}
HEAVY |= {"pyarrow", "matplotlib", "xraylib"}
HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    assert stop.code == 0
print("MODULES", *sys.modules)
"""
MODEL = """
import sys
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedModel
before = set(sys.modules)
import modeling_xrf
print("MODULES", *sys.modules.keys() - before)
"""


def modules_after(code: str, *arguments: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(result.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_nothing_heavy(script):
    loaded = modules_after(HELP, f"scripts/{script}")
    assert "command_line_xrf" in loaded
    assert not loaded & HEAVY


def test_a_model_needs_little_more_than_any_transformers_model():
    added = modules_after(MODEL)
    assert "modeling_xrf" in added
    others = {name.split(".")[0] for name in added} - {"modeling_xrf", "configuration_xrf", "feature_extraction_xrf"}
    assert others <= {"transformers"}
