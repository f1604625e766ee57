"""`scripts/push_to_hub.py`, in this process where a fresh one would tell no more."""

import os
import shutil

import pytest
from conftest import HUB_TOKEN, READ_TOKEN
from huggingface_hub import HfApi, ModelCard, hf_hub_download
from tiny_repositories import card_text, save_adapter, save_base, save_corpus

import hub_xrf

SCRIPT = "push_to_hub.py"


def remote_files(repo_id, repo_type=None):
    return set(HfApi().list_repo_files(repo_id, repo_type=repo_type)) - {".gitattributes"}


@pytest.fixture
def push(call_script, monkeypatch):
    """`push(folder, "org/name", "--private")` runs the script; its exit code, and what it wrote to both streams."""
    monkeypatch.setattr(hub_xrf, "RETRY_WAITS_S", (0.01, 0.01))

    def call(*arguments):
        code, output, errors = call_script(*arguments)
        assert HUB_TOKEN not in output + errors
        return code, output, errors

    return call


def refusal(result):
    """The one sentence of a script that met bad input."""
    code, _, errors = result
    told = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(told) == 1
    return told[0].removeprefix("error: ")


def test_folder_goes_up_and_is_listed(hub, hub_org, tmp_path, push):
    folder = save_base(tmp_path / "base")
    code, output, _ = push(folder, f"{hub_org}/tiny", "--private")
    assert code == 0
    *listing, last = output.splitlines()
    assert last == f"Pushed this model to {hub.url}/{hub_org}/tiny"
    listed = {line.split("bytes")[1].strip(): int(line.split("bytes")[0].replace(",", "")) for line in listing}
    assert listed == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert remote_files(f"{hub_org}/tiny") == set(listed)
    assert HfApi().model_info(f"{hub_org}/tiny").private


@pytest.mark.parametrize("option", ["--dry_run", "--dry-run"])
def test_dry_run_lists_and_talks_to_no_network(hub, hub_org, tmp_path, push, option):
    code, output, _ = push(save_base(tmp_path / "base"), f"{hub_org}/tiny", option)
    assert code == 0
    assert "bytes  model.safetensors\n" in output
    assert output.endswith(f"this model would go to {hub_org}/tiny; nothing was uploaded.\n")
    assert hub.requests == []


def test_missing_card_is_rendered_and_the_folder_left_alone(hub_org, tmp_path, push):
    folder = save_base(tmp_path / "base")
    (folder / "README.md").unlink()
    assert push(folder, f"{hub_org}/tiny", "--dry_run")[0] == 0
    assert push(folder, f"{hub_org}/tiny")[0] == 0
    assert not (folder / "README.md").exists()
    card = ModelCard.load(hf_hub_download(f"{hub_org}/tiny", "README.md"))
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "feature-extraction"
    assert "xrf" in card.data.tags
    assert "| input | 128 channels of 20.0 eV from 0.0 keV, patches of 16 |" in card.text
    assert f'AutoModel.from_pretrained("{hub_org}/tiny")' in card.text


def test_missing_card_of_an_adapter_names_base_and_targets(hub_org, tmp_path, push):
    base, folder = save_base(tmp_path / "base"), tmp_path / "adapter"
    save_adapter(folder, base)
    (folder / "README.md").unlink()
    assert "--base_model_id org/name" in refusal(push(folder, f"{hub_org}/adapter"))
    assert push(base, f"{hub_org}/base")[0] == 0
    assert push(folder, f"{hub_org}/adapter", "--base_model_id", f"{hub_org}/base")[0] == 0
    card = ModelCard.load(hf_hub_download(f"{hub_org}/adapter", "README.md"))
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "tabular-regression")
    assert card.data.base_model == f"{hub_org}/base"
    assert "An adapter that predicts CaCO3, TOC from" in card.text
    assert "| CaCO3 | in wt%; training labels of mean 40 and standard deviation 20 |" in card.text
    assert str(tmp_path) not in card.content


def test_card_template_of_ones_own(hub_org, tmp_path, push):
    folder, template = save_base(tmp_path / "base"), tmp_path / "card.md"
    template.write_text("---\n{{ card_data }}\n---\n{{ repo_id }} has patches of {{ config.patch_size }}.\n")
    arguments = (folder, f"{hub_org}/tiny", "--card_template")
    assert "has a card already; leave out --card_template" in refusal(push(*arguments, template))
    (folder / "README.md").unlink()
    assert "There is no card template" in refusal(push(*arguments, tmp_path / "absent.md"))
    assert push(*arguments, template)[0] == 0
    card = ModelCard.load(hf_hub_download(f"{hub_org}/tiny", "README.md"))
    assert card.text.strip() == f"{hub_org}/tiny has patches of 16."


def test_corpus_goes_up_as_a_dataset(hub, hub_org, tmp_path, push):
    folder = save_corpus(tmp_path / "corpus", {"train-00000-of-00001": 2})
    code, output, _ = push(folder, f"{hub_org}/spectra")
    assert code == 0
    assert output.endswith(f"Pushed this dataset to {hub.url}/datasets/{hub_org}/spectra\n")
    assert remote_files(f"{hub_org}/spectra", "dataset") == {"README.md", "data/train-00000-of-00001.parquet"}


def test_incomplete_folder_is_refused_in_one_sentence(hub, hub_org, tmp_path, push):
    folder = save_base(tmp_path / "base")
    (folder / "README.md").unlink()  # could be rendered, but not without the rest
    (folder / "preprocessor_config.json").unlink()
    (folder / "modeling_xrf.py").unlink()
    told = refusal(push(folder, f"{hub_org}/tiny"))
    assert "lacks preprocessor_config.json, modeling_xrf.py, README.md;" in told
    shutil.rmtree(folder)
    assert f"There is no folder {folder}" in refusal(push(folder, f"{hub_org}/tiny"))
    corpus = save_corpus(tmp_path / "corpus", {"train-00000-of-00001": 1})
    (corpus / "README.md").unlink()
    assert "no complete dataset repository: it lacks README.md;" in refusal(push(corpus, f"{hub_org}/spectra"))
    assert hub.requests == []


def test_metadata_is_checked(hub, hub_org, tmp_path, push):
    folder = save_base(tmp_path / "base")
    (folder / "README.md").write_text(card_text(library_name=None))
    assert "lacks library_name;" in refusal(push(folder, f"{hub_org}/tiny"))
    assert hub.requests == []


def test_refused_token_and_failing_server(hub, hub_org, tmp_path, push, monkeypatch, caplog):
    folder = save_base(tmp_path / "base")
    hub.fail_next(2, status=502, path_contains="/commit/")
    assert push(folder, f"{hub_org}/tiny")[0] == 0
    assert caplog.text.count("The Hub answered 502; trying again") == 2
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    hub.fail_next(3, status=502, path_contains="/commit/")
    assert refusal(push(folder, f"{hub_org}/tiny")).startswith(f"The Hub at {hub.url} failed (502: ")
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    told = refusal(push(folder, f"{hub_org}/tiny"))
    assert told.startswith(f"The Hub at {hub.url} refused the token (403: ")
    assert READ_TOKEN not in told


def test_server_that_cannot_be_reached_is_named(tmp_path, hub_environment, run_script):
    environment = {**hub_environment, "HF_ENDPOINT": "http://127.0.0.1:9"}  # nobody listens there
    result = run_script("push_to_hub.py", save_base(tmp_path / "base"), "org/tiny", env=environment, check=False)
    assert refusal((result.returncode, result.stdout, result.stderr)).startswith(
        "The Hub at http://127.0.0.1:9 cannot be reached ("
    )
    assert "Traceback" not in result.stderr
    assert os.environ["HF_TOKEN"] not in result.stdout + result.stderr


def test_help_shows_the_commands(run_script):
    result = run_script("push_to_hub.py", "--help")
    assert "python scripts/push_to_hub.py runs/demo/pretraining/model org/xrf-tiny --private" in result.stdout
