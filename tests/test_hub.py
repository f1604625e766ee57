"""Repositories pushed to the Hub on loopback and pulled again, mostly by processes that have never seen them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import HUB_TOKEN, READ_TOKEN
from huggingface_hub import HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file
from tiny_repositories import SIZES, TASK, card_text, perturbed, pretrained_model, save_adapter, save_base, save_corpus

import hub_xrf
from command_line_xrf import sentence, without_tokens
from feature_extraction_xrf import XRFFeatureExtractor
from hub_xrf import push_repository, repository_content, save_repository
from modeling_xrf import XRFForRegression, XRFModel

CALIBRATION = {"gain_kev": 0.02, "offset_kev": 0.0, "tube_kv": 10}
OUR_MODULES = [*(file.stem for file in hub_xrf.CODE_FILES), "hub_xrf", "files_xrf", "dataset_builder"]


def predictions(model, counts):
    inputs = XRFFeatureExtractor.for_config(model.config)(counts, **CALIBRATION, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).predictions.numpy()


def remote_files(repo_id, repo_type=None):
    return set(HfApi().list_repo_files(repo_id, repo_type=repo_type)) - {".gitattributes"}


def pulled_adapter_config(repo_id):
    return json.loads(Path(hf_hub_download(repo_id, "adapter_config.json")).read_text())


def answers(hub, path_contains):
    return [request.status for request in hub.requests if path_contains in request.path]


@pytest.fixture(scope="module")
def counts():
    """Three spectra with a peak in different places."""
    expected = 20 + 500 * np.exp(-0.5 * ((np.arange(128) - np.array([[20], [60], [100]])) / 3) ** 2)
    return np.random.default_rng(0).poisson(expected).astype(float)


@pytest.fixture(scope="module")
def published(hub, tmp_path_factory, counts):
    """A pretrained repository, an adapter trained from its id, and a fine-tuned model, all on the Hub."""
    folder = tmp_path_factory.mktemp("published")
    save_base(folder / "base")
    push_repository(folder / "base", "org/xrf-tiny")
    adapter = save_adapter(folder / "adapter", "org/xrf-tiny")
    push_repository(folder / "adapter", "org/xrf-tiny-caco3")
    finetuned = perturbed(XRFForRegression.from_pretrained("org/xrf-tiny", **TASK), seed=2)
    card = card_text("tabular-regression", base_model="org/xrf-tiny")
    feature_extractor = XRFFeatureExtractor.for_config(finetuned.config)
    push_repository(
        save_repository(folder / "finetuned", finetuned, feature_extractor, card), "org/xrf-tiny-finetuned"
    )
    return SimpleNamespace(
        folder=folder,
        base=pretrained_model(),
        adapter_predictions=predictions(adapter, counts),
        finetuned_predictions=predictions(finetuned, counts),
    )


@pytest.fixture
def counted_waits(monkeypatch):
    """Retries that wait for a hundredth of their time."""
    monkeypatch.setattr(hub_xrf, "RETRY_WAITS_S", tuple(wait_s / 100 for wait_s in hub_xrf.RETRY_WAITS_S))


# --- processes that have never seen the repositories ---


def run_fresh(code, folder, installed):
    """Run code in a new process with an empty cache and talkative logs, away from this repository; with
    `installed=False` none of our modules can be imported. Returns what it wrote, which must not hold the token."""
    blocked = [] if installed else OUR_MODULES
    prelude = f"""if True:
        import sys

        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {blocked!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Blocked())
    """
    environment = {
        **os.environ,
        "HF_HOME": str(folder / "hf_home"),
        "HF_HUB_VERBOSITY": "debug",
        "TRANSFORMERS_VERBOSITY": "info",
    }
    result = subprocess.run(
        [sys.executable, "-c", f"{prelude}\n{code}"],
        env=environment, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert HUB_TOKEN not in output
    return output


LOAD_EVERYTHING = """
import json
import numpy as np
from safetensors.torch import save_file
from transformers import (
    AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification,
    AutoProcessor, pipeline,
)

calibration = {"gain_kev": 0.02, "offset_kev": 0.0, "tube_kv": 10}
counts = np.load("counts.npy")
base, adapter, finetuned = "org/xrf-tiny", "org/xrf-tiny-caco3", "org/xrf-tiny-finetuned"

config = AutoConfig.from_pretrained(base, **trust)
feature_extractor = AutoFeatureExtractor.from_pretrained(base, **trust)
processor = AutoProcessor.from_pretrained(base, **trust)
encoder = AutoModel.from_pretrained(base, **trust)
pretrained = AutoModelForPreTraining.from_pretrained(base, **trust)
inputs = feature_extractor(counts, **calibration, return_tensors="pt")
save_file(encoder.state_dict(), "encoder.safetensors")
save_file(pretrained.state_dict(), "pretrained.safetensors")
np.savez("inputs.npz", **inputs)

def with_pipeline(name):
    results = pipeline("xrf-regression", model=name, **trust)(counts, **calibration)
    units = {(row["target"], row["unit"]) for result in results for row in result}
    assert units == {("CaCO3", "wt%"), ("TOC", "wt%")}, units
    return [[row["value"] for row in result] for result in results]

def with_auto_class(name):
    return AutoModelForSequenceClassification.from_pretrained(name, **trust)(**inputs).predictions.tolist()

def with_peft(name):
    from peft import AutoPeftModelForSequenceClassification

    task = AutoConfig.from_pretrained(name, subfolder="task", **trust).to_dict()
    targets = {field: value for field, value in task.items() if field.startswith("target_")}
    model = AutoPeftModelForSequenceClassification.from_pretrained(name, **targets, **trust)
    return model(**inputs).predictions.tolist()

results = {
    "classes": [type(thing).__name__ for thing in (config, feature_extractor, processor, encoder, pretrained)],
    "modules": type(encoder).__module__,
    "num_patches": config.num_patches,
    "adapter": {f.__name__: f(adapter) for f in (with_auto_class, with_pipeline, with_peft)},
    "finetuned": {f.__name__: f(finetuned) for f in (with_auto_class, with_pipeline)},
    "adapter_extractor": type(AutoFeatureExtractor.from_pretrained(adapter, **trust)).__name__,
}
if not trust:
    from modeling_xrf import XRFForRegression
    results["adapter"]["with_our_class"] = XRFForRegression.from_pretrained(adapter)(**inputs).predictions.tolist()
json.dump(results, open("results.json", "w"))
"""


def load_in_fresh_process(folder, counts, installed):
    np.save(folder / "counts.npy", counts)
    prelude = "import pipeline_xrf\ntrust = {}\n" if installed else "trust = {'trust_remote_code': True}\n"
    output = run_fresh(prelude + LOAD_EVERYTHING, folder, installed)
    results = json.loads((folder / "results.json").read_text())
    return SimpleNamespace(folder=folder, output=output, **results)


@pytest.fixture(scope="module", params=[True, False], ids=["installed", "remote code"])
def pulled(request, published, counts, tmp_path_factory):
    """What a fresh process loaded by name, with this package, or with the code in the repositories alone."""
    return load_in_fresh_process(tmp_path_factory.mktemp("pulled"), counts, installed=request.param)


def test_pretrained_repository_loads_by_id_with_equal_weights(pulled, published, counts):
    assert pulled.classes == [
        "XRFMaskedConfig", "XRFFeatureExtractor", "XRFFeatureExtractor", "XRFModel", "XRFForMaskedSpectrumModeling"
    ]  # fmt: skip
    assert pulled.num_patches == 8
    expected = published.base.state_dict()
    whole, encoder = (load_file(pulled.folder / f"{name}.safetensors") for name in ("pretrained", "encoder"))
    assert whole.keys() == expected.keys()
    assert all(torch.equal(whole[name], expected[name]) for name in expected)
    assert encoder.keys() == {name.removeprefix("xrf.") for name in expected if name.startswith("xrf.")}
    assert all(torch.equal(encoder[name], expected[f"xrf.{name}"]) for name in encoder)
    inputs = XRFFeatureExtractor.for_config(published.base.config)(counts, **CALIBRATION)
    loaded = np.load(pulled.folder / "inputs.npz")
    assert all(np.array_equal(loaded[name], inputs[name]) for name in inputs)


def test_adapter_loads_by_its_id_alone(pulled, published):
    assert len(pulled.adapter) == 3 + (pulled.modules == "modeling_xrf")
    for way, values in pulled.adapter.items():
        # merging the adapter into its base rounds differently
        np.testing.assert_allclose(values, published.adapter_predictions, atol=1e-3, err_msg=way)
    assert pulled.adapter_extractor == "XRFFeatureExtractor"


def test_finetuned_model_loads_by_its_id(pulled, published):
    for way, values in pulled.finetuned.items():
        np.testing.assert_allclose(values, published.finetuned_predictions, atol=1e-4, err_msg=way)


def test_predictions_compared_above_tell_models_and_spectra_apart(published):
    predicted = [published.adapter_predictions, published.finetuned_predictions]
    assert np.abs(predicted[0] - predicted[1]).min() > 0.1
    for values in predicted:
        assert np.ptp(values, axis=0).min() > 0.1
        assert ((values > 0) & (values < 100)).all()


def test_code_comes_from_where_it_should_and_nobody_is_asked(pulled):
    remote = pulled.modules.startswith("transformers_modules.")
    assert remote or pulled.modules == "modeling_xrf"
    assert "Do you wish to run the custom code?" not in pulled.output


# --- what goes up ---


def test_whole_folder_goes_up_in_one_commit(hub, hub_org, tmp_path):
    folder = save_base(tmp_path / "base")
    expected = {path.name for path in folder.iterdir()}
    assert {f"{name}_xrf.py" for name in ("configuration", "modeling", "feature_extraction", "pipeline")} < expected
    (folder / "figures").mkdir()
    (folder / "figures" / "parity.png").write_bytes(b"\x89PNG")
    for rubbish in (".hidden", ".cache/x", "weights.part", "checkpoint-5/optimizer.pt", "logs/events", "run.json"):
        (folder / rubbish).parent.mkdir(exist_ok=True)
        (folder / rubbish).write_bytes(b"rubbish")
    url = push_repository(folder, f"{hub_org}/tiny")
    assert url == f"{hub.url}/{hub_org}/tiny"
    assert remote_files(f"{hub_org}/tiny") == expected | {"figures/parity.png"}
    assert [commit.title for commit in HfApi().list_repo_commits(f"{hub_org}/tiny")] == [
        "Upload model", "initial commit"
    ]  # fmt: skip
    assert answers(hub, "/commit/") == [200]


def test_pushing_again_replaces_weights_and_keeps_other_files(hub_org, tmp_path):
    repo_id = f"{hub_org}/tiny"
    folder = save_base(tmp_path / "base")
    shutil.copyfile(folder / "model.safetensors", folder / "model-00001-of-00002.safetensors")
    push_repository(folder, repo_id)
    for kept in ("notes.txt", "onnx/model.safetensors"):
        HfApi().upload_file(path_or_fileobj=b"by hand", path_in_repo=kept, repo_id=repo_id)
    push_repository(save_base(tmp_path / "base", seed=7), repo_id)
    assert "model-00001-of-00002.safetensors" not in remote_files(repo_id)
    assert {"notes.txt", "onnx/model.safetensors"} < remote_files(repo_id)
    loaded = XRFModel.from_pretrained(repo_id, cache_dir=tmp_path / "cache")
    assert torch.equal(loaded.embeddings.cls_token, pretrained_model(seed=7).xrf.embeddings.cls_token)


def test_dry_run_talks_to_no_network(hub, hub_org, published):
    for name in ("base", "adapter"):
        url = push_repository(published.folder / name, f"{hub_org}/tiny", dry_run=True)
        assert url == f"{hub.url}/{hub_org}/tiny"
    assert hub.requests == []


def test_private_stays_private(hub_org, published):
    push_repository(published.folder / "base", f"{hub_org}/secret", private=True)
    assert HfApi().model_info(f"{hub_org}/secret").private
    push_repository(published.folder / "base", f"{hub_org}/open")
    with pytest.raises(ValueError, match="exists already and is public; make it private"):
        push_repository(published.folder / "base", f"{hub_org}/open", private=True)


@pytest.mark.parametrize(
    "missing", ["model.safetensors", "preprocessor_config.json", "pipeline_xrf.py", "modeling_xrf.py", "README.md"]
)
def test_incomplete_model_is_refused_by_name(hub, hub_org, published, tmp_path, missing):
    folder = shutil.copytree(published.folder / "base", tmp_path / "base")
    (folder / missing).unlink()
    with pytest.raises(ValueError) as refused:
        push_repository(folder, f"{hub_org}/tiny")
    named = "model*.safetensors" if missing == "model.safetensors" else missing  # or its shards
    assert f"lacks {named};" in str(refused.value)
    assert hub.requests == []


def test_incomplete_adapter_is_refused_by_name(published, tmp_path):
    folder = shutil.copytree(published.folder / "adapter", tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "task" / "config.json").unlink()
    with pytest.raises(ValueError, match="lacks adapter_model.safetensors, task/config.json;"):
        repository_content(folder)


def test_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no folder"):
        repository_content(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(ValueError, match="is no repository: it lacks config.json"):
        repository_content(tmp_path)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("# No metadata\n", "lacks library_name, pipeline_tag, tags;"),
        (card_text(tags=[]), "lacks tags;"),
        ("---\n{a: [\n---\n", "cannot be read"),
        (card_text(**{"model-index": [{"name": "x"}]}), "cannot be read"),
        (card_text() + "Pushed with hf_" + "aB3" * 11 + "\n", "tells a Hub token"),
        (card_text() + f"Pushed with {HUB_TOKEN}\n", "tells a Hub token"),
    ],
)
def test_card_is_checked_before_anything_goes_up(hub, hub_org, published, tmp_path, card, message):
    folder = shutil.copytree(published.folder / "base", tmp_path / "base")
    (folder / "README.md").write_text(card)
    with pytest.raises(ValueError, match=message) as refused:
        push_repository(folder, f"{hub_org}/tiny")
    assert HUB_TOKEN not in str(refused.value)
    assert hub.requests == []


@pytest.mark.parametrize("repo_id", ["tiny", "a/b/c", "org/ti ny", ""])
def test_impossible_name_is_refused(hub, published, repo_id):
    with pytest.raises(ValueError, match="is named org/name"):
        push_repository(published.folder / "base", repo_id)
    assert hub.requests == []


# --- adapters and their bases ---


def test_adapter_goes_up_with_the_commit_of_its_base(published, hub_org, counts, tmp_path):
    """A later push to the base must not change what the adapter predicts."""
    base, adapter = f"{hub_org}/base", f"{hub_org}/adapter"
    push_repository(save_base(tmp_path / "base"), base)
    expected = predictions(save_adapter(tmp_path / "adapter", base), counts)
    push_repository(tmp_path / "adapter", adapter)
    trained_on = HfApi().model_info(base).sha
    push_repository(save_base(tmp_path / "base", seed=5), base)

    config = pulled_adapter_config(adapter)
    assert (config["base_model_name_or_path"], config["revision"]) == (base, trained_on)
    loaded = XRFForRegression.from_pretrained(adapter)
    np.testing.assert_allclose(predictions(loaded, counts), expected, atol=1e-3)


@pytest.fixture
def local_adapter(tmp_path):
    """An adapter trained on a folder, and that folder."""
    save_base(tmp_path / "base", seed=3)
    save_adapter(tmp_path / "adapter", tmp_path / "base")
    return tmp_path / "adapter", tmp_path / "base"


def test_adapter_to_a_folder_stays_at_home(hub, hub_org, local_adapter):
    with pytest.raises(ValueError, match="trained on the local folder .*--base_model_id org/name"):
        push_repository(local_adapter[0], f"{hub_org}/adapter")
    assert hub.requests == []


def test_base_model_id_names_the_base_in_configuration_and_card(hub_org, local_adapter, counts):
    folder, base_folder = local_adapter
    base, adapter = f"{hub_org}/base", f"{hub_org}/adapter"
    push_repository(base_folder, base)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    push_repository(folder, adapter, base_model_id=base)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before

    config = pulled_adapter_config(adapter)
    assert (config["base_model_name_or_path"], config["revision"]) == (base, HfApi().model_info(base).sha)
    card = ModelCard.load(hf_hub_download(adapter, "README.md"))
    assert card.data.base_model == base
    assert str(base_folder) not in card.content
    expected = predictions(XRFForRegression.from_pretrained(folder), counts)
    shutil.rmtree(base_folder)
    np.testing.assert_allclose(predictions(XRFForRegression.from_pretrained(adapter), counts), expected, atol=1e-3)


def test_base_with_other_weights_is_refused(hub_org, local_adapter, tmp_path):
    push_repository(save_base(tmp_path / "other", seed=4), f"{hub_org}/other")
    with pytest.raises(ValueError, match="holds other weights on the Hub"):
        push_repository(local_adapter[0], f"{hub_org}/adapter", base_model_id=f"{hub_org}/other")
    assert not HfApi().repo_exists(f"{hub_org}/adapter")


def test_base_that_is_not_on_the_hub_is_named(hub_org, local_adapter):
    with pytest.raises(ValueError, match=f"base {hub_org}/absent .*is not on the Hub at .*push the base first"):
        push_repository(local_adapter[0], f"{hub_org}/adapter", base_model_id=f"{hub_org}/absent")
    assert not HfApi().repo_exists(f"{hub_org}/adapter")


def test_base_model_id_is_for_adapters(published):
    with pytest.raises(ValueError, match="base_model_id is for adapters only"):
        repository_content(published.folder / "base", base_model_id="org/xrf-tiny")


def test_adapter_whose_base_has_gone_says_so(hub_org, tmp_path):
    base, adapter = f"{hub_org}/base", f"{hub_org}/adapter"
    push_repository(save_base(tmp_path / "base"), base)
    save_adapter(tmp_path / "adapter", base)
    push_repository(tmp_path / "adapter", adapter)
    HfApi().delete_repo(base)
    with pytest.raises(OSError) as failed:
        XRFForRegression.from_pretrained(adapter, cache_dir=tmp_path / "cache")
    assert f"The adapter {adapter} was trained on '{base}'" in sentence(failed.value)


# --- corpora ---


def test_corpus_is_loaded_by_id_without_this_package(hub, hub_org, tmp_path):
    repo_id = f"{hub_org}/spectra"
    sizes = {"train-00000-of-00002": 2, "train-00001-of-00002": 1, "test-00000-of-00001": 1}
    assert push_repository(save_corpus(tmp_path / "first", sizes), repo_id) == f"{hub.url}/datasets/{repo_id}"
    # fewer shards: those of the first push must not be read as well
    push_repository(save_corpus(tmp_path / "second", {"train-00000-of-00001": 2, "test-00000-of-00001": 1}), repo_id)
    assert remote_files(repo_id, "dataset") == {
        "README.md", "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"
    }  # fmt: skip
    code = f"""if True:
        import json
        from datasets import load_dataset
        rows = {{split: list(data) for split, data in load_dataset({repo_id!r}).items()}}
        rows["streamed"] = list(load_dataset({repo_id!r}, split="test", streaming=True))
        json.dump(rows, open("rows.json", "w"))
    """
    run_fresh(code, tmp_path, installed=False)
    rows = json.loads((tmp_path / "rows.json").read_text())
    samples = {split: [row["sample"] for row in content] for split, content in rows.items()}
    assert samples == {"train": ["s0", "s1"], "test": ["s2"], "streamed": ["s2"]}
    for row, number in zip([*rows["train"], *rows["test"]], range(3)):
        assert row["counts"] == list(range(8 + number))
        assert (row["gain_kev"], row["offset_kev"], row["CaCO3"]) == (0.02, 0.1, number / 2)
        assert json.loads(row["target_units"]) == {"CaCO3": "wt%"}


# --- refusals, and a server that fails ---


def test_refused_token_is_told_and_not_shown(hub_org, published, capfd):
    revoked = "hf_" + "revokedtoken" * 3
    for token, status in ((revoked, 401), (READ_TOKEN, 403)):
        with pytest.raises(HfHubHTTPError) as refused:
            push_repository(published.folder / "base", f"{hub_org}/tiny", token=token)
        told = sentence(refused.value)
        assert f"refused the token ({status}" in told
        assert "hf auth login" in told
        assert token not in told + str(refused.value) + "".join(capfd.readouterr())


def test_missing_repository_is_named(hub, hub_org, tmp_path):
    with pytest.raises(OSError) as failed:
        XRFModel.from_pretrained(f"{hub_org}/absent", cache_dir=tmp_path)
    assert sentence(failed.value) == (
        f"The Hub at {hub.url} has no repository {hub_org}/absent, or the token may not see it; check the name."
    )


@pytest.mark.parametrize("step", ["/repos/create", "/tree/", "/validate-yaml", "/preupload/", "/commit/", "/api/"])
def test_push_survives_a_server_that_fails_twice(hub, hub_org, published, counted_waits, step, tmp_path):
    hub.fail_next(2, path_contains=step)
    push_repository(published.folder / "base", f"{hub_org}/tiny")
    assert answers(hub, step)[:3] == [500, 500, 200]
    assert answers(hub, "/commit/")[-1] == 200
    assert remote_files(f"{hub_org}/tiny") == {path.name for path in (published.folder / "base").iterdir()}
    assert len(HfApi().list_repo_commits(f"{hub_org}/tiny")) == 2


def test_push_of_an_adapter_survives_too(hub, hub_org, published, counted_waits):
    hub.fail_next(2, path_contains="/api/models/org/xrf-tiny")
    push_repository(published.folder / "adapter", f"{hub_org}/adapter")
    assert "adapter_model.safetensors" in remote_files(f"{hub_org}/adapter")


def test_push_gives_up_on_a_server_that_keeps_failing(hub, hub_org, published, counted_waits, caplog):
    hub.fail_next(100, status=503, path_contains="/commit/")
    with pytest.raises(HfHubHTTPError) as failed:
        push_repository(published.folder / "base", f"{hub_org}/tiny")
    assert answers(hub, "/commit/") == [503] * 4
    assert sentence(failed.value).startswith(f"The Hub at {hub.url} failed (503: ")
    assert sentence(failed.value).endswith("; try again later.")
    assert HUB_TOKEN not in sentence(failed.value) + caplog.text
    hub.reset()
    assert remote_files(f"{hub_org}/tiny") == set()


def test_refusal_is_not_repeated(hub, hub_org, published, counted_waits):
    with pytest.raises(HfHubHTTPError):
        push_repository(published.folder / "base", f"{hub_org}/tiny", token=READ_TOKEN)
    assert answers(hub, "/repos/create") == [403]


def test_pull_survives_a_server_that_fails_twice(hub, published, tmp_path):
    hub.fail_next(2)
    loaded = XRFModel.from_pretrained("org/xrf-tiny", cache_dir=tmp_path)
    statuses = [request.status for request in hub.requests]
    assert statuses[:2] == [500, 500]
    assert 500 not in statuses[2:]
    assert torch.equal(loaded.embeddings.cls_token, published.base.xrf.embeddings.cls_token)


def test_pull_that_fails_in_the_middle_is_told_and_works_again(hub, published, tmp_path):
    hub.fail_next(1, status=501, path_contains="/model.safetensors", method="GET")  # no client repeats this status
    with pytest.raises(OSError) as failed:
        XRFModel.from_pretrained("org/xrf-tiny", cache_dir=tmp_path)
    assert sentence(failed.value).startswith(f"The Hub at {hub.url} failed (501: ")
    XRFModel.from_pretrained("org/xrf-tiny", cache_dir=tmp_path)


def test_tokens_are_blanked():
    stranger = "hf_" + "Ab3" * 11
    text = without_tokens(f"Bearer {HUB_TOKEN}, {stranger}; hf_hub_download is no token")
    assert text == "Bearer <token>, <token>; hf_hub_download is no token"


# --- the scripts, one after another, each with a cache of its own ---


def test_chain_of_scripts_through_the_hub(hub, hub_org, tmp_path, run_script):
    """Pretrain on a corpus from the Hub and push, adapt from the pushed id and push, predict by the adapter's id."""
    from pyarrow import parquet

    from dataset_builder.corpus import build_corpus
    from dataset_builder.features import table_to_spectra

    corpus, pretrained, adapter = f"{hub_org}/corpus", f"{hub_org}/xrf-tiny", f"{hub_org}/xrf-tiny-caco3"
    corpus_folder = build_corpus("simulated", tmp_path / "corpus", num_spectra=60, num_cores=10)
    push_repository(corpus_folder, corpus)
    config_file = tmp_path / "config.json"
    config_file.write_text(json.dumps({**SIZES, "spectrum_length": 512}))

    def step(name, *arguments):
        environment = {**os.environ, "HF_HOME": str(tmp_path / "caches" / name), "HF_HUB_VERBOSITY": "debug"}
        result = run_script(name, *arguments, env=environment)
        assert HUB_TOKEN not in result.stdout + result.stderr
        assert "Do you wish to run the custom code?" not in result.stdout
        return result.stdout

    output = step(
        "run_msm.py", "--dataset", corpus, "--config_file", config_file, "--max_steps", 4, "--batch_size", 16,
        "--output_dir", tmp_path / "pretraining", "--push_to_hub", "--hub_model_id", pretrained,
    )  # fmt: skip
    assert f"{hub.url}/{pretrained}" in output
    output = step(
        "run_regression.py", "--model_name_or_path", pretrained, "--dataset", corpus, "--targets", "CaCO3",
        "--num_labels", 20, "--method", "lora", "--epochs", 2, "--output_dir", tmp_path / "caco3",
        "--push_to_hub", "--hub_model_id", adapter,
    )  # fmt: skip
    assert f"{hub.url}/{adapter}" in output
    test_file = next(corpus_folder.glob("data/test-*.parquet"))
    step("predict.py", adapter, test_file, "--output", tmp_path / "predictions.parquet")

    config = pulled_adapter_config(adapter)
    assert (config["base_model_name_or_path"], config["revision"]) == (pretrained, HfApi().model_info(pretrained).sha)
    card = ModelCard.load(hf_hub_download(adapter, "README.md"))
    assert card.data.base_model == pretrained
    assert {result.dataset_split for result in card.data.eval_results} >= {"test"}

    spectra = table_to_spectra(parquet.read_table(test_file))
    local = XRFForRegression.from_pretrained(tmp_path / "caco3" / "model")
    extractor = XRFFeatureExtractor.from_pretrained(tmp_path / "caco3" / "model")
    with torch.no_grad():
        expected = local(**extractor(spectra, return_tensors="pt")).predictions[:, 0].numpy()
    predicted = parquet.read_table(tmp_path / "predictions.parquet")
    np.testing.assert_allclose(predicted["CaCO3"].to_numpy(), expected, atol=1e-3)

    for file in tmp_path.rglob("*"):
        assert not file.is_file() or HUB_TOKEN.encode() not in file.read_bytes(), file
