"""`XRFPredictor` as Ray Data's `map_batches` takes it: 100,000 spectra, two workers, and what a killed one loses."""

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from configuration_xrf import XRFMaskedConfig
from feature_extraction_xrf import XRFFeatureExtractor
from hub_xrf import save_repository
from inference_xrf import XRFPredictor
from modeling_xrf import XRFForRegression

NUM_SPECTRA, NUM_FILES, NUM_CHANNELS = 100_000, 10, 64
FATAL = 41_000  # number of the spectrum at which a worker dies, once
COLUMNS = ["CaCO3", "CaCO3_sd", "TOC", "TOC_sd"]


@pytest.fixture(scope="module")
def ray():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing leaves this machine
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    folder = tempfile.mkdtemp(prefix="xrf-ray-", dir="/tmp")  # short: names of sockets have little room
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=folder,
        _node_ip_address="127.0.0.1",
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    yield ray
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    config = XRFMaskedConfig(
        spectrum_length=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        pooling="mean", regression_loss="gaussian", target_names=["CaCO3", "TOC"], target_units=["wt%", "wt%"],
        target_mean=[40.0, 1.0], target_std=[20.0, 0.5], target_min=[None, None], target_max=[None, None],
    )  # fmt: skip
    regressor = XRFForRegression(config)
    for parameter in regressor.parameters():
        torch.nn.init.normal_(parameter, std=0.8)
    return save_repository(
        tmp_path_factory.mktemp("models") / "regressor", regressor, XRFFeatureExtractor.for_config(config), "# Test\n"
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Numbered spectra of three tube voltages in several files."""
    folder, rng = tmp_path_factory.mktemp("corpora"), np.random.default_rng(0)
    peak = np.exp(-0.5 * ((np.arange(NUM_CHANNELS) - 30) / 4) ** 2)
    for number, part in enumerate(np.split(np.arange(NUM_SPECTRA), NUM_FILES)):
        counts = rng.poisson(5 + rng.gamma(2.0, 50.0, (len(part), 1)) * peak).astype(np.int32)
        table = pa.table(
            {
                "number": part,
                "counts": pa.FixedSizeListArray.from_arrays(pa.array(counts.ravel()), NUM_CHANNELS),
                "gain_kev": np.full(len(part), 0.02),
                "offset_kev": np.zeros(len(part)),
                "tube_kv": np.array([0.6, 0.9, 1.2])[part % 3],
            }
        )
        pq.write_table(table, folder / f"part-{number}.parquet")
    return folder


@pytest.fixture(scope="module")
def expected(model, corpus):
    """What one predictor says in this process, by the number of the spectrum."""
    predictor, parts = XRFPredictor(model, device="cpu"), []
    for number in range(NUM_FILES):
        table = pq.read_table(corpus / f"part-{number}.parquet")
        counts = table["counts"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        calibration = {name: table[name].to_numpy() for name in ("gain_kev", "offset_kev", "tube_kv")}
        parts.append(predictor({"counts": counts, **calibration}))
    return {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}


class KilledOnce(XRFPredictor):
    """Dies at a certain spectrum, as by the kernel's hand, if it can remove the file `alive`; says which process has
    predicted what."""

    def __init__(self, alive: str, **options):
        super().__init__(**options)
        self.alive = Path(alive)

    def __call__(self, batch):
        if FATAL in batch["number"] and self.alive.exists():
            self.alive.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"process": np.full(len(batch["number"]), os.getpid()), **super().__call__(batch)}


def predicted(ray, corpus, predictor, **constructor):
    """All columns that two workers predict, in the order of `number`."""
    rows = ray.data.read_parquet(str(corpus), columns=["number", "counts", "gain_kev", "offset_kev", "tube_kv"])
    rows = rows.repartition(target_num_rows_per_block=5000)  # files as small as these become one block
    workers = ray.data.ActorPoolStrategy(size=2)
    constructor = {"device": "cpu", "keep": ["number"], **constructor}
    rows = rows.map_batches(predictor, fn_constructor_kwargs=constructor, compute=workers, batch_size=1000)
    return pa.concat_tables(ray.get(rows.to_arrow_refs())).sort_by("number")


def assert_nothing_lost(table, expected):
    assert table.num_rows == NUM_SPECTRA
    np.testing.assert_array_equal(table["number"], np.arange(NUM_SPECTRA))
    for name in COLUMNS:
        assert np.std(expected[name]) > 0.01
        np.testing.assert_allclose(table[name], expected[name], rtol=1e-4, atol=1e-4)
        assert np.sum(table[name], dtype=np.float64) == pytest.approx(np.sum(expected[name], dtype=np.float64))


def test_two_workers_predict_what_one_process_does(ray, corpus, model, expected):
    table = predicted(ray, corpus, XRFPredictor, name_or_path=str(model))
    assert table.column_names == ["number", *COLUMNS]
    assert_nothing_lost(table, expected)


def test_a_killed_worker_loses_nothing(ray, corpus, model, expected, tmp_path):
    alive = tmp_path / "alive"
    alive.touch()
    table = predicted(ray, corpus, KilledOnce, alive=str(alive), name_or_path=str(model))
    assert not alive.exists()  # it was killed
    assert len(table["process"].unique()) > 1
    assert_nothing_lost(table, expected)
