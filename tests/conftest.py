"""Shared fixtures: a Hub on loopback, a clean environment, the real spectra, script runs, and a GPU.

The environment is settled here, before anything imports a Hugging Face library, because they read it only once. Each
test process (each pytest-xdist worker too) talks to its own `LoopbackHub` and has its own empty cache; the developer's
token, caches and offline switches play no part.
"""

import contextlib
import importlib
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hub_server import LoopbackHub

ROOT = Path(__file__).resolve().parents[1]
HUB_TOKEN = "hf_loopbackwritetoken"
READ_TOKEN = "hf_loopbackreadtoken"

if "huggingface_hub" in sys.modules:
    raise pytest.UsageError("huggingface_hub was imported before tests/conftest.py; run pytest without that plugin.")

for name in list(os.environ):
    if name.startswith(("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_", "ACCELERATE_")):
        del os.environ[name]

SESSION_FOLDER = Path(tempfile.mkdtemp(prefix="xrf-tests-"))
HUB = LoopbackHub(SESSION_FOLDER / "hub", tokens={HUB_TOKEN: "write", READ_TOKEN: "read"}).start()

os.environ.update(
    HF_ENDPOINT=HUB.url,
    HF_TOKEN=HUB_TOKEN,
    HF_HOME=str(SESSION_FOLDER / "hf_home"),
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    NO_PROXY="127.0.0.1,localhost",
    no_proxy="127.0.0.1,localhost",
    MPLBACKEND="Agg",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _is_installed() -> bool:
    """Whether our modules are found without the repository's root on the path."""
    path = list(sys.path)
    sys.path[:] = [entry for entry in path if Path(entry).resolve() != ROOT]
    try:
        return importlib.util.find_spec("configuration_xrf") is not None
    finally:
        sys.path[:] = path


if not _is_installed():
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def pytest_unconfigure():
    HUB.stop()
    shutil.rmtree(SESSION_FOLDER, ignore_errors=True)


@pytest.fixture(scope="session")
def hub():
    """The Hub that this process and its scripts talk to; `HUB_TOKEN` writes to it, `READ_TOKEN` only reads."""
    return HUB


@pytest.fixture(autouse=True)
def _no_left_over_failures():
    """No test sees the planned failures or the request log of another."""
    HUB.reset()


_organisations = itertools.count(1)


@pytest.fixture
def hub_org():
    """An organisation that no other test uses."""
    return f"org-{next(_organisations)}"


@pytest.fixture
def hub_environment(tmp_path):
    """The environment of a subprocess that has never seen the Hub: an empty cache, and the token."""
    return {**os.environ, "HF_HOME": str(tmp_path / "hf_home")}


@pytest.fixture(scope="session")
def real_data():
    """The folder of real spectra: `XRF_REAL_DATA`, or `shared/data` beside the repository."""
    folder = Path(os.environ.get("XRF_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real spectra at {folder}; set XRF_REAL_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def gpu():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU on this machine")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def run_script():
    """`run_script("run_msm.py", "--help")` runs `scripts/run_msm.py` as a user would and returns its output.

    With `check` (the default) a failing script fails the test and shows what it wrote.
    """

    def run(name, *arguments, env=None, check=True, timeout_s=300) -> subprocess.CompletedProcess:
        command = [sys.executable, f"scripts/{name}", *map(str, arguments)]
        result = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if check and result.returncode != 0:
            pytest.fail(f"{' '.join(command)} exited with {result.returncode}\n{result.stdout}\n{result.stderr}")
        return result

    return run


def load_script(name: str):
    """A file of `scripts`, imported."""
    path = ROOT / "scripts" / name
    spec = importlib.util.spec_from_file_location(f"{path.stem}_script", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script(request):
    """The script that a test module names in `SCRIPT`, imported."""
    module = load_script(request.module.SCRIPT)
    yield module
    del sys.modules[module.__name__]


@contextlib.contextmanager
def importable_benchmarks():
    """Inside, the files of `benchmarks` can be imported."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def benchmark(request):
    """The benchmark that a test module names in `BENCHMARK`, imported, and whatever lies beside it importable."""
    with importable_benchmarks():
        yield importlib.import_module(request.module.BENCHMARK)


@pytest.fixture
def call_script(script, monkeypatch, capfd):
    """Runs `SCRIPT` in this process: exit code, standard output, standard error."""
    import command_line_xrf

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", [Path(script.__file__).name, *map(str, arguments)])
        code = 0
        try:
            command_line_xrf.run(script.main)
        except SystemExit as stop:
            code = stop.code
        output = capfd.readouterr()
        return code, output.out, output.err

    return call


@pytest.fixture
def refuses(call_script, tmp_path):
    """Runs `SCRIPT`, expects one sentence and exit code 2, and that no file was written."""

    def call(message, *arguments):
        before = sorted(tmp_path.rglob("*"))
        code, _, error = call_script(*arguments)
        assert code == 2 and error.count("\n") == 1 and error.startswith("error: ")
        assert message in error
        assert sorted(tmp_path.rglob("*")) == before

    return call
