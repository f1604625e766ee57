"""The real Hugging Face clients against the Hub on loopback that the other tests rely on."""

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from collections import Counter

import pytest
from conftest import HUB_TOKEN, READ_TOKEN
from hub_server import LoopbackHub
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


@pytest.fixture
def api():
    return HfApi()


@pytest.fixture
def repo(api, hub_org):
    """An empty model repository."""
    return api.create_repo(f"{hub_org}/model").repo_id


def add(api, repo, path, content, **options):
    return api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=repo, **options)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def answers(hub, path_contains):
    """Methods and statuses of the logged requests whose path contains the text."""
    return [(r.method, r.status) for r in hub.requests if path_contains in r.path]


# Repositories


def test_create_and_delete_repository(api, hub, hub_org):
    url = api.create_repo(f"{hub_org}/model")
    assert (url.repo_id, url.repo_type) == (f"{hub_org}/model", "model")
    assert str(url) == f"{hub.url}/{hub_org}/model"
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_repo(url.repo_id)
    assert refused.value.response.status_code == 409
    assert api.create_repo(url.repo_id, exist_ok=True).repo_id == url.repo_id

    assert api.list_repo_files(url.repo_id) == [".gitattributes"]
    assert not api.repo_exists(url.repo_id, repo_type="dataset")  # a dataset of the same name would be another
    api.delete_repo(url.repo_id)
    assert not api.repo_exists(url.repo_id)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(url.repo_id)


def test_repository_without_organisation_belongs_to_the_user(api):
    assert api.whoami()["name"] == "loopback"
    assert api.create_repo("nameless-organisation").repo_id == "loopback/nameless-organisation"


def test_names_that_leave_the_folder_are_refused(api, hub):
    request = urllib.request.Request(
        f"{hub.url}/api/repos/create",
        data=b'{"organization": "..", "name": "escaped"}',
        headers={"Authorization": f"Bearer {HUB_TOKEN}"},
    )
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)


# Files


def test_text_goes_with_the_commit_and_weights_go_through_lfs(api, hub, repo):
    weights = os.urandom(1000)
    add(api, repo, "config.json", b"{}")
    assert answers(hub, "/lfs/") == []
    add(api, repo, "model.safetensors", weights)
    assert answers(hub, "/lfs/") == [("POST", 200), ("PUT", 200), ("POST", 200)]  # batch, bytes, verify

    config, model = api.get_paths_info(repo, ["config.json", "model.safetensors", "absent"])
    assert config.lfs is None
    assert config.blob_id == "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # `printf '{}' | git hash-object --stdin`
    assert (model.lfs.size, model.size) == (1000, 1000)
    assert read(api.hf_hub_download(repo, "config.json")) == b"{}"
    assert read(api.hf_hub_download(repo, "model.safetensors")) == weights


def test_ten_megabytes_of_text_go_through_lfs(api, hub, repo):
    text = b"energy,counts\n" * 800_000  # 11.2 MB
    add(api, repo, "spectra.csv", text)
    assert ("PUT", 200) in answers(hub, "/lfs/")
    assert read(api.hf_hub_download(repo, "spectra.csv")) == text


def test_unchanged_file_makes_no_commit(api, hub, repo):
    for path in ("config.json", "model.safetensors"):
        first = add(api, repo, path, path.encode())
        assert add(api, repo, path, path.encode()).oid == first.oid
    assert answers(hub, "/commit/") == [("POST", 200)] * 2


def test_folder_goes_up_and_comes_back_in_a_fresh_cache(api, repo, tmp_path):
    folder = tmp_path / "folder"
    (folder / "task").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "xrf"}')
    (folder / "task" / "config.json").write_text('{"unité": "wt%"}')
    (folder / "model.safetensors").write_bytes(os.urandom(5000))
    api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Everything at once")

    snapshot = api.snapshot_download(repo, cache_dir=tmp_path / "cache")
    for path in ("config.json", "task/config.json", "model.safetensors"):
        assert read(f"{snapshot}/{path}") == read(folder / path)
    assert [entry.path for entry in api.list_repo_tree(repo)] == [
        ".gitattributes", "config.json", "model.safetensors", "task"
    ]  # fmt: skip
    assert [entry.path for entry in api.list_repo_tree(repo, "task")] == ["task/config.json"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(repo, "additional_chat_templates"))


def test_files_are_deleted_and_copied(api, repo):
    for path in ("a/1.txt", "a/2.safetensors", "b.txt"):
        add(api, repo, path, path.encode())
    copies = [CommitOperationCopy("a/2.safetensors", "c.safetensors"), CommitOperationCopy("b.txt", "d.txt")]
    api.create_commit(repo, copies, commit_message="copy")
    assert read(api.hf_hub_download(repo, "c.safetensors")) == b"a/2.safetensors"
    assert read(api.hf_hub_download(repo, "d.txt")) == b"b.txt"
    api.delete_file("b.txt", repo)
    api.delete_folder("a", repo)
    assert api.list_repo_files(repo) == [".gitattributes", "c.safetensors", "d.txt"]
    with pytest.raises(EntryNotFoundError):
        api.delete_file("b.txt", repo)


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("bytes=0-3", 0, 3), ("bytes=990-", 990, 999), ("bytes=-7", 993, 999), ("bytes=5-5000", 5, 999)],
)
def test_range_returns_that_part(api, hub, repo, asked, first, last):
    content = os.urandom(1000)
    add(api, repo, "data.npz", content)
    request = urllib.request.Request(f"{hub.url}/{repo}/resolve/main/data.npz", headers={"Range": asked})
    with urllib.request.urlopen(request) as response:
        assert response.status == 206
        assert response.headers["Content-Range"] == f"bytes {first}-{last}/1000"
        assert response.read() == content[first : last + 1]


def test_range_beyond_the_end_is_refused(api, hub, repo):
    add(api, repo, "data.npz", b"12345")
    request = urllib.request.Request(f"{hub.url}/{repo}/resolve/main/data.npz", headers={"Range": "bytes=5-"})
    with pytest.raises(urllib.error.HTTPError, match="416"):
        urllib.request.urlopen(request)


def test_interrupted_upload_with_other_bytes_is_refused(hub):
    request = urllib.request.Request(f"{hub.url}/lfs/{'0' * 64}", data=b"other bytes", method="PUT")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)
    assert not (hub.store.objects / ("0" * 64)).exists()


# Revisions


def test_old_revisions_branches_and_tags_stay_readable(api, repo, tmp_path):
    old = add(api, repo, "config.json", b'"old"').oid
    api.create_tag(repo, tag="v1.0", revision=old)
    api.create_branch(repo, branch="trial/one")
    new = add(api, repo, "config.json", b'"new"').oid
    trial = add(api, repo, "config.json", b'"trial"', revision="trial/one").oid

    def content(revision):
        return read(api.hf_hub_download(repo, "config.json", revision=revision, cache_dir=tmp_path))

    assert content("main") == content(new) == b'"new"'
    assert content("v1.0") == content(old) == b'"old"'
    assert content("trial/one") == content(trial) == b'"trial"'
    assert [commit.commit_id for commit in api.list_repo_commits(repo)][:2] == [new, old]
    assert api.repo_info(repo, revision="v1.0").sha == old
    refs = api.list_repo_refs(repo)
    assert {b.name: b.target_commit for b in refs.branches} == {"main": new, "trial/one": trial}
    assert {t.name: t.target_commit for t in refs.tags} == {"v1.0": old}

    with pytest.raises(HfHubHTTPError) as refused:
        api.create_tag(repo, tag="v1.0")
    assert refused.value.response.status_code == 409
    api.delete_tag(repo, tag="v1.0")
    api.delete_branch(repo, branch="trial/one")
    for revision in ("v1.0", "trial/one", "0" * 40):
        with pytest.raises(RevisionNotFoundError):
            content(revision)


def test_commit_on_a_stale_parent_is_refused_whole(api, repo):
    stale = api.repo_info(repo).sha
    add(api, repo, "first.txt", b"1")
    operation = CommitOperationAdd("second.txt", b"2")
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_commit(repo, [operation], commit_message="late", parent_commit=stale)
    assert refused.value.response.status_code == 412
    assert not api.file_exists(repo, "second.txt")
    api.create_commit(repo, [operation], commit_message="on time", parent_commit=api.repo_info(repo).sha)
    assert api.file_exists(repo, "second.txt")


def test_repositories_outlive_the_server(tmp_path):
    with LoopbackHub(tmp_path, tokens={"hf_x": "write"}) as first:
        api = HfApi(endpoint=first.url, token="hf_x")
        sha = add(api, api.create_repo("org/kept").repo_id, "model.safetensors", b"\0weights").oid
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(first.url)
    with LoopbackHub(tmp_path, tokens={"hf_x": "write"}) as second:
        assert HfApi(endpoint=second.url, token="hf_x").repo_info("org/kept").sha == sha


# Refusals


def test_bad_token_is_refused_and_not_repeated(api, hub, repo):
    stranger = HfApi(token="hf_revoked")
    for call in (
        stranger.whoami,
        lambda: stranger.create_repo("org/other"),
        lambda: stranger.model_info(repo),
        lambda: add(stranger, repo, "a.txt", b""),
        lambda: stranger.hf_hub_download(repo, ".gitattributes", force_download=False),
    ):
        with pytest.raises(HfHubHTTPError) as refused:
            call()
        assert refused.value.response.status_code == 401
        assert not isinstance(refused.value, RepositoryNotFoundError)
        assert "hf_revoked" not in str(refused.value)
    assert "hf_revoked" not in repr(hub.requests)


def test_read_token_reads_and_does_not_write(repo):
    reader = HfApi(token=READ_TOKEN)
    assert reader.list_repo_files(repo) == [".gitattributes"]
    with pytest.raises(HfHubHTTPError, match="rights to write") as refused:
        add(reader, repo, "a.txt", b"")
    assert refused.value.response.status_code == 403


def test_missing_and_private_repositories_look_the_same_to_strangers(api, hub, hub_org):
    private = api.create_repo(f"{hub_org}/private", private=True).repo_id
    for repo_id in (private, f"{hub_org}/missing", "missing-without-organisation"):
        with pytest.raises(RepositoryNotFoundError) as refused:
            HfApi(token=False).model_info(repo_id)
        assert refused.value.response.status_code == 401
    assert api.model_info(private).private
    with pytest.raises(RepositoryNotFoundError) as refused:
        api.hf_hub_download(f"{hub_org}/missing", "config.json")
    assert refused.value.response.status_code == 404
    with pytest.raises(RepositoryNotFoundError):
        add(api, f"{hub_org}/missing", "a.txt", b"a")


def test_missing_file_is_told_from_missing_repository(api, repo):
    assert not api.file_exists(repo, "config.json")
    for path in ("config.json", "Kalzium 雪.json"):
        with pytest.raises(EntryNotFoundError):
            api.hf_hub_download(repo, path)


def test_unknown_endpoint_is_named(api, hub, repo):
    with pytest.raises(HfHubHTTPError, match=f"no GET /api/models/{repo}/discussions"):
        list(api.get_repo_discussions(repo))


# A server that fails: which calls the client repeats by itself. Scripts of ours count on this.


def test_upload_survives_failures_before_the_commit(api, hub, repo):
    hub.fail_next(2, path_contains="/preupload/")
    for path in ("objects/batch", "/verify"):
        hub.fail_next(1, path_contains=path)
    hub.fail_next(1, path_contains="/lfs/", method="PUT")
    weights = os.urandom(3_000_000)
    add(api, repo, "model.safetensors", weights)
    assert Counter(r.status for r in hub.requests if repo in r.path or "/lfs/" in r.path) == {500: 5, 200: 5}
    assert read(api.hf_hub_download(repo, "model.safetensors")) == weights


def test_reading_survives_failures_of_head_and_tree(api, hub, repo, tmp_path):
    hub.fail_next(2, path_contains="/resolve/", method="HEAD")
    hub.fail_next(1, path_contains="/tree/")
    assert "safetensors" in read(api.hf_hub_download(repo, ".gitattributes", cache_dir=tmp_path)).decode()
    assert answers(hub, "/resolve/") == [("HEAD", 500), ("HEAD", 500), ("HEAD", 200), ("GET", 200)]
    assert api.list_repo_files(repo) == [".gitattributes"]
    assert answers(hub, "/tree/") == [("GET", 500), ("GET", 200)]


NOT_REPEATED = {
    "whoami": lambda api, repo: api.whoami(),
    "create_repo": lambda api, repo: api.create_repo(f"{repo}-new"),
    "repo_info": lambda api, repo: api.repo_info(repo),
    "file_exists": lambda api, repo: api.file_exists(repo, ".gitattributes"),
    "paths_info": lambda api, repo: api.get_paths_info(repo, ["a"]),
    "refs": lambda api, repo: api.list_repo_refs(repo),
    "create_tag": lambda api, repo: api.create_tag(repo, tag="v1"),
    "create_branch": lambda api, repo: api.create_branch(repo, branch="b"),
    "commit": lambda api, repo: api.delete_file("a.txt", repo),
    "delete_repo": lambda api, repo: api.delete_repo(repo),
}


@pytest.mark.parametrize("call", NOT_REPEATED.values(), ids=NOT_REPEATED)
def test_client_does_not_repeat(api, hub, repo, call):
    add(api, repo, "a.txt", b"a")
    hub.fail_next(1)
    with pytest.raises(HfHubHTTPError) as failed:
        call(api, repo)
    assert failed.value.response.status_code == 500
    call(api, repo)


def test_client_does_not_repeat_the_check_of_a_card(api, hub, repo):
    hub.fail_next(1, path_contains="validate-yaml")
    with pytest.raises(HfHubHTTPError):
        add(api, repo, "README.md", b"---\nlicense: mit\n---\n")
    assert answers(hub, "/commit/") == []


def test_client_does_not_repeat_the_body_of_a_download(api, hub, repo, tmp_path):
    hub.fail_next(1, path_contains="/resolve/", method="GET")
    with pytest.raises(HfHubHTTPError):
        api.hf_hub_download(repo, ".gitattributes", cache_dir=tmp_path)
    assert api.hf_hub_download(repo, ".gitattributes", cache_dir=tmp_path)


def test_snapshot_of_an_unknown_repository_does_not_wait_for_a_failing_server(api, hub, repo, tmp_path):
    hub.fail_next(1, path_contains="/revision/")
    with pytest.raises(LocalEntryNotFoundError, match="500"):
        api.snapshot_download(repo, cache_dir=tmp_path)
    assert api.snapshot_download(repo, cache_dir=tmp_path)


# Cards, datasets, transformers


def test_card_is_saved_uploaded_and_read_back(api, repo, tmp_path):
    card = ModelCard.from_template(
        ModelCardData(license="apache-2.0", library_name="transformers", tags=["xrf"]),
        template_str="---\n{{ card_data }}\n---\n# Sediments\n",
    )
    card.save(tmp_path / "README.md")
    with warnings.catch_warnings(action="error"):
        add(api, repo, "README.md", tmp_path / "README.md")
    loaded = ModelCard.load(api.hf_hub_download(repo, "README.md"))
    assert loaded.data.tags == ["xrf"]
    assert "# Sediments" in loaded.text
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        add(api, repo, "README.md", b"# No metadata\n")


def in_a_fresh_process(code, environment, folder):
    """What `python -c code` prints, run away from the repository."""
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_dataset_is_pushed_loaded_and_streamed(hub, hub_org, hub_environment, tmp_path):
    from datasets import Dataset, DatasetDict

    def rows(*values):
        return Dataset.from_dict({"sample": [f"s{v}" for v in values], "counts": [[v, 2 * v] for v in values]})

    repo = f"{hub_org}/spectra"
    DatasetDict({"train": rows(1, 2, 3), "test": rows(4)}).push_to_hub(repo, private=True)
    code = f"""if True:
        from datasets import load_dataset
        print([row["counts"] for row in load_dataset({repo!r})["train"]])
        print([row["sample"] for row in load_dataset({repo!r}, split="test", streaming=True)])
    """
    assert in_a_fresh_process(code, hub_environment, tmp_path) == "[[1, 2], [2, 4], [3, 6]]\n['s4']\n"
    assert 501 not in {request.status for request in hub.requests}
    assert all(request.authorized for request in hub.requests if not re.fullmatch("/lfs/[0-9a-f]+", request.path))


def test_stock_model_is_pushed_and_loaded_in_a_fresh_process(hub, hub_org, hub_environment, tmp_path):
    from transformers import BertConfig, BertModel

    repo = f"{hub_org}/bert"
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertModel(BertConfig(**sizes, vocab_size=11))
    model.push_to_hub(repo)
    code = f"""if True:
        from transformers import AutoConfig, AutoModel
        print(AutoConfig.from_pretrained({repo!r}).model_type)
        print(AutoModel.from_pretrained({repo!r}).embeddings.word_embeddings.weight.double().sum().item())
    """
    kind, total = in_a_fresh_process(code, hub_environment, tmp_path).split()
    assert kind == "bert"
    assert float(total) == model.embeddings.word_embeddings.weight.double().sum().item()
    assert 501 not in {request.status for request in hub.requests}
