"""Files and folders that appear whole or not at all, and runs that never overwrite each other."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

RUN_FILE = "run.json"  # names the script and arguments that own a run folder


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`, on any error it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the place of `path`, on any error it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    os.chmod(temporary, 0o755)
    try:
        yield temporary
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content) -> None:
    """Write `content` as indented JSON to `path`, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def check_replaceable(folder: str | Path, files: Collection[str], overwrite: bool) -> Path:
    """The folder of a result that consists of `files`, once nothing speaks against `atomic_folder` replacing it.

    Raises:
        ValueError: it is a file, holds anything else, or holds such a result that shall not be overwritten.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"The output folder {folder} is a file; choose another folder.")
    contents = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    if contents - set(files):
        raise ValueError(f"The output folder {folder} holds other files; choose a new or empty folder.")
    if contents and not overwrite:
        raise ValueError(f"The output folder {folder} holds results; choose another, or add --overwrite.")
    return folder


def claim_run_folder(path: str | Path, script: str, arguments: dict, resume: bool = False) -> Path:
    """Make the folder of a run and note in it who owns it.

    Raises:
        ValueError: the folder is not empty and belongs to another run, or to anything else than a run to resume.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"The output folder {path} is a file; choose another output_dir.")
    contents = [entry.name for entry in path.iterdir()] if path.exists() else []
    if contents and RUN_FILE not in contents:
        raise ValueError(
            f"The output folder {path} holds other files ({sorted(contents)[0]}, ...); choose a new or empty folder."
        )
    if contents:
        owner = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))["script"]
        if not resume or owner != script:
            raise ValueError(
                f"The output folder {path} holds another run of {owner}; choose another output_dir"
                + (", or resume that run." if owner == script else ".")
            )
    write_json(path / RUN_FILE, {"script": script, "arguments": arguments})
    return path
