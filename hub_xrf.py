"""Hub repositories of models, adapters and corpora: what they hold, how they are written and pushed."""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetCard,
    HfApi,
    ModelCard,
    RepoCard,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from files_xrf import RUN_FILE, atomic_folder

logger = logging.getLogger(__name__)

# The code a repository carries, so that it loads with trust_remote_code where this package is not installed.
# The files are found, not imported: a corpus is pushed without torch.
CODE_FILES = [
    Path(find_spec(module).origin)
    for module in ("configuration_xrf", "modeling_xrf", "feature_extraction_xrf", "pipeline_xrf")
]

CARD = "README.md"
LOADING_FILES = ["preprocessor_config.json", *(file.name for file in CODE_FILES)]
# What a complete repository of each kind holds.
REQUIRED_FILES = {
    "model": ["config.json", "model*.safetensors", *LOADING_FILES, CARD],
    "adapter": ["adapter_config.json", "adapter_model.safetensors", "task/config.json", *LOADING_FILES, CARD],
    "dataset": ["data/*.parquet", CARD],
}
# What its card must state; a model-index of measured results is checked where there is one.
REQUIRED_METADATA = {
    "model": ["library_name", "pipeline_tag", "tags"],
    "adapter": ["library_name", "pipeline_tag", "tags", "base_model"],
    "dataset": ["tags"],
}
# Beside hidden files, what training leaves in a folder and nobody needs for loading.
IGNORED_NAMES = ("*.part", "*.tmp", "*.lock", "*.pyc", "__pycache__", "checkpoint-*", "checkpoints", "logs", RUN_FILE)
# Left over from an earlier push, these would be loaded beside or instead of the new ones.
REPLACED_FILES = ("data/*.parquet", "*.safetensors", "*.safetensors.index.json")

# The client repeats uploads and listings by itself after these answers, but neither the creation of a repository, nor
# the check of a card, nor a commit. Repeating them is safe: a commit is made whole or not at all.
RETRIED_STATUS = (429, 500, 502, 503, 504)
RETRY_WAITS_S = (1, 2, 4)


def save_repository(folder: str | Path, model, feature_extractor, card: str) -> Path:
    """Write a complete model repository: weights, configuration, feature extractor, code files and card (Markdown
    text). It takes the place of `folder` whole or not at all."""
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        feature_extractor.save_pretrained(temporary)
        _write_code_and_card(temporary, card)
    return Path(folder)


def save_adapter_repository(folder: str | Path, peft_model, feature_extractor, card: str) -> Path:
    """Write an adapter repository: the adapter, the task's configuration in the subfolder `task` (peft keeps neither
    the targets nor their statistics, and a `config.json` at the top would make transformers take the folder for a
    whole model), the feature extractor, the code files and the card."""
    with atomic_folder(folder) as temporary:
        peft_model.save_pretrained(temporary, save_embedding_layers=False)  # there are none to look for on the Hub
        peft_model.get_base_model().config.save_pretrained(temporary / "task")
        for copy in (temporary / "task").glob("*.py"):
            copy.unlink()  # the code is looked for at the top
        feature_extractor.save_pretrained(temporary)
        _write_code_and_card(temporary, card)
    return Path(folder)


def _write_code_and_card(folder: Path, card: str) -> None:
    for file in CODE_FILES:
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / CARD).write_text(card, encoding="utf-8")
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)  # safetensors writes them for their owner only


def push_repository(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    token: str | None = None,
    dry_run: bool = False,
    card: str | None = None,
    base_model_id: str | None = None,
) -> str:
    """Push a folder with a model, an adapter or a corpus to the Hub in one commit, creating the repository if missing.

    Args:
        folder: a complete repository, as `save_repository`, `save_adapter_repository` or the corpus builder write it.
        repo_id: its name on the Hub, `org/name`.
        private: create the repository private.
        token: a write token; by default that of the environment or of `hf auth login`.
        dry_run: check everything that can be checked without the network, and upload nothing.
        card, base_model_id: see `repository_content`.

    Returns:
        The repository's address.

    Raises:
        ValueError: see `repository_content`; an adapter's base is not on the Hub; `private` for a public repository.
        HfHubHTTPError: the Hub refused the token, or failed even after retries.
    """
    _check_repo_id(repo_id)
    content = repository_content(folder, card, base_model_id)
    repo_type = "dataset" if repository_kind(folder) == "dataset" else "model"
    api = HfApi(token=token)
    url = f"{api.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
    if dry_run:
        return url
    if "adapter_config.json" in content:
        content["adapter_config.json"] = _with_base_revision(api, content["adapter_config.json"], Path(folder))
    _retried(lambda: api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True))
    if private and not _retried(lambda: api.repo_info(repo_id, repo_type=repo_type)).private:
        raise ValueError(
            f"{repo_id} exists already and is public; make it private in its settings on the Hub, or push to another."
        )
    operations = [CommitOperationAdd(path, source) for path, source in content.items()]
    for path in _retried(lambda: api.list_repo_files(repo_id, repo_type=repo_type)):
        if path not in content and _matches(path, REPLACED_FILES):
            operations.append(CommitOperationDelete(path))
    message = f"Upload {repository_kind(folder)}"
    _retried(lambda: api.create_commit(repo_id, operations, commit_message=message, repo_type=repo_type))
    return url


def repository_kind(folder: str | Path) -> str:
    """What a folder holds: `"model"`, `"adapter"` or `"dataset"`.

    Raises:
        ValueError: none of them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"There is no folder {folder} to push; give the folder that a training run or a builder wrote."
        )
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if (folder / "config.json").is_file():
        return "model"
    if any(folder.glob("data/*.parquet")):
        return "dataset"
    raise ValueError(
        f"{folder} is no repository: it lacks config.json (a model), adapter_config.json (an adapter) and "
        "data/*.parquet (a corpus); give the folder that a training run or a builder wrote."
    )


def missing_files(folder: str | Path) -> list[str]:
    """The files, or patterns of files, that a folder lacks to be a complete repository of its kind."""
    folder = Path(folder)
    present = [file.relative_to(folder).as_posix() for file in _files(folder)]
    required = REQUIRED_FILES[repository_kind(folder)]
    return [pattern for pattern in required if not any(_matches(path, [pattern]) for path in present)]


def repository_content(
    folder: str | Path, card: str | None = None, base_model_id: str | None = None
) -> dict[str, Path | bytes]:
    """What would go up from a folder: path in the repository -> local file, or the bytes to upload in its place.

    Args:
        folder: a complete repository.
        card: Markdown text of the card, for a folder that has none.
        base_model_id: the Hub name of an adapter's base, in place of the one in its configuration and card.

    Raises:
        ValueError: the folder lacks a file, its card lacks metadata or tells a token, or an adapter's base is a local
            path.
    """
    folder, kind = Path(folder), repository_kind(folder)
    content: dict[str, Path | bytes] = {file.relative_to(folder).as_posix(): file for file in _files(folder)}
    if CARD not in content and card is not None:
        content[CARD] = card.encode()
    missing = [name for name in missing_files(folder) if name not in content]
    if missing:
        raise ValueError(
            f"{folder} is no complete {kind} repository: it lacks {', '.join(missing)}; save it again with this "
            "version of the package."
        )
    if base_model_id is not None and kind != "adapter":
        raise ValueError(f"base_model_id is for adapters only, but {folder} holds a {kind}; leave the option out.")
    for path, source in content.items():
        if path.endswith((".md", ".json", ".py")):
            _check_no_token(_read_text(source), folder / path)
    try:
        loaded = (DatasetCard if kind == "dataset" else ModelCard)(_read_text(content[CARD]))
    except Exception as error:  # YAML's own errors, or those of the card's class
        raise ValueError(f"The metadata of {folder / CARD} cannot be read; mend its head ({error}).") from error
    if kind == "adapter":
        config = _hub_adapter_config(folder, base_model_id)
        loaded.data.base_model = config["base_model_name_or_path"]
        content["adapter_config.json"] = _json_bytes(config)
        content[CARD] = loaded.content.encode()
    _check_card(loaded, folder, kind)
    return content


def _check_card(card: RepoCard, folder: Path, kind: str) -> None:
    """The metadata by which the Hub lists a repository and finds the library that loads it."""
    missing = [name for name in REQUIRED_METADATA[kind] if not card.data.get(name)]
    if missing:
        raise ValueError(f"The metadata of {folder / CARD} lacks {', '.join(missing)}; add it at the top of the file.")


def _check_no_token(text: str, file: Path) -> None:
    token = get_token()
    if (token and token in text) or re.search(r"\bhf_[A-Za-z0-9]{30,}\b", text):
        raise ValueError(f"{file} tells a Hub token; remove it there, and revoke it on the Hub.")


def _hub_adapter_config(folder: Path, base_model_id: str | None) -> dict:
    """The adapter's configuration, its base named by a Hub id."""
    config = json.loads(_read_text(folder / "adapter_config.json"))
    if base_model_id is not None:
        _check_repo_id(base_model_id)
        config.update(base_model_name_or_path=base_model_id, revision=None)
    base = config.get("base_model_name_or_path")
    if not base or not _is_hub_id(base):
        raise ValueError(
            f"The adapter {folder} was trained on the local folder {base!r}, where nobody else can load it from; push "
            "that base first, then name it with --base_model_id org/name."
        )
    return config


def _with_base_revision(api: HfApi, adapter_config: bytes, folder: Path) -> bytes:
    """The adapter's configuration with the commit of its base on the Hub, so that a later push to the base does not
    change the adapter's predictions."""
    config = json.loads(adapter_config)
    base, revision = config["base_model_name_or_path"], config.get("revision")
    try:
        info = _retried(lambda: api.model_info(base, revision=revision, files_metadata=True))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(
            f"The adapter's base {base} (revision {revision or 'main'}) is not on the Hub at {api.endpoint}, or the "
            "token may not see it; push the base first, or name another with --base_model_id org/name."
        ) from error
    _check_same_weights(info, folder)
    return _json_bytes({**config, "revision": info.sha})


def _check_same_weights(info, folder: Path) -> None:
    """An adapter trained on a local folder must not go up with another base than that."""
    trained_on = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    local = Path(trained_on or "", "model.safetensors")
    remote = {file.rfilename: file.lfs.sha256 for file in info.siblings if file.lfs is not None}
    if local.is_file() and local.name in remote:
        with open(local, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != remote[local.name]:
                raise ValueError(
                    f"The adapter was trained on {trained_on}, but {info.id} holds other weights on the Hub; push "
                    f"{trained_on} and name that repository with --base_model_id org/name."
                )


def _retried(call: Callable):
    """The answer of a call to the Hub, repeated while the server fails."""
    for wait_s in RETRY_WAITS_S:
        try:
            return call()
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status not in RETRIED_STATUS:
                raise
            logger.warning("The Hub answered %d; trying again in %d s.", status, wait_s)
            time.sleep(wait_s)
    return call()


def _is_hub_id(name: str) -> bool:
    """Whether `name` is an id on the Hub and not a folder here, the order in which from_pretrained looks."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def _check_repo_id(repo_id: str) -> None:
    rule = f"A repository on the Hub is named org/name, but got {repo_id!r}; give such a name."
    if "/" not in repo_id:
        raise ValueError(rule)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(rule) from error


def _files(folder: Path) -> list[Path]:
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and not any(part.startswith(".") or _matches(part, IGNORED_NAMES) for part in file.relative_to(folder).parts)
    ]


def _matches(path: str, patterns) -> bool:
    return any(fnmatch(path, pattern) and path.count("/") == pattern.count("/") for pattern in patterns)


def _read_text(source: Path | bytes) -> str:
    return source.decode() if isinstance(source, bytes) else source.read_text(encoding="utf-8")


def _json_bytes(content: dict) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
